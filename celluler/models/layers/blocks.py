"""Layers made of layers, and how layers are read from a document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from celluler.errors import InvalidSpec
from celluler.models.fields import Choice, Whole, declare, read_fields
from celluler.models.layers.base import Layer, Ledger, Place, Signal, need_float
from celluler.models.layers.elements import Activation, Dense, Dropout, FeedForward, Flatten, Reshape, SwiGLU
from celluler.models.layers.images import AvgPool2d, Conv2d, ConvTranspose2d, GlobalAvgPool, MaxPool2d, Upsample2d
from celluler.models.layers.norms import BatchNorm, GroupNorm, LayerNorm, RmsNorm
from celluler.models.layers.sequences import Attention, Embedding, First, Last, Lstm, MeanPool, Positions
from celluler.models.layers.timesteps import Timestep


@dataclass(frozen=True, slots=True)
class Body:
    """The rule of a field that holds layers."""

    @property
    def text(self) -> str:
        return "list of 1…256 layers"

    def read(self, value: Any, path: str) -> tuple[Layer, ...]:
        if not isinstance(value, list | tuple) or not 1 <= len(value) <= 256:
            raise InvalidSpec(path, "must be a list of 1…256 layers")
        return tuple(read_layer(item, f"{path}[{place}]") for place, item in enumerate(value))


@dataclass(frozen=True, slots=True)
class Residual:
    """What comes in, joined with what its layers make of it."""

    KIND: ClassVar[str] = "residual"
    layers: tuple[Layer, ...] = declare(Body(), "the branch")
    join: str = declare(
        Choice(("add", "concat")), "sum of equal shapes, or concatenation on the first axis", default="add"
    )

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        need_float(given, at)
        ledger.waiting += given.elements
        branch = plan_layers(self.layers, given, at, ledger)
        if self.join == "add":
            if branch.shape != given.shape:
                raise InvalidSpec(at.path, f"cannot add {branch.shape} to {given.shape}")
            out = given
        else:
            if branch.shape[1:] != given.shape[1:]:
                raise InvalidSpec(at.path, f"cannot concatenate {branch.shape} to {given.shape}")
            out = Signal("float32", (given.shape[0] + branch.shape[0], *given.shape[1:]))
        ledger.book(at, out, out.elements)
        ledger.waiting -= given.elements
        return out


@dataclass(frozen=True, slots=True)
class Repeat:
    """Its layers several times in a row, each time with parameters of their own."""

    KIND: ClassVar[str] = "repeat"
    times: int = declare(Whole(1, 1024), "how often")
    layers: tuple[Layer, ...] = declare(Body(), "what is repeated")

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        for copy in range(self.times):
            before = ledger.totals()
            out = plan_layers(self.layers, given, at, ledger, copy=copy)
            if out == given and copy == 0:
                ledger.foresee(at, before, self.times - 1)
            given = out
        return given


KINDS: dict[str, type[Layer]] = {
    cls.KIND: cls
    for cls in (
        Dense,
        FeedForward,
        SwiGLU,
        Conv2d,
        ConvTranspose2d,
        BatchNorm,
        LayerNorm,
        RmsNorm,
        GroupNorm,
        Embedding,
        Positions,
        Lstm,
        Attention,
        Activation,
        Dropout,
        Flatten,
        Reshape,
        MaxPool2d,
        AvgPool2d,
        GlobalAvgPool,
        Upsample2d,
        MeanPool,
        First,
        Last,
        Timestep,
        Residual,
        Repeat,
    )
}
"""Every layer there is, by its name in a document."""


def read_layer(document: Any, path: str) -> Layer:
    """A layer from its JSON object; its shapes are not looked at yet."""
    if not isinstance(document, dict):
        raise InvalidSpec(path, "must be an object")
    kind = document.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise InvalidSpec(f"{path}.kind", f"must be one of {', '.join(KINDS)}")
    return KINDS[kind](**read_fields(KINDS[kind], document, path, besides=("kind",)))


def plan_layers(
    layers: tuple[Layer, ...], given: Signal, at: Place, ledger: Ledger, *, copy: int | None = None
) -> Signal:
    """One sample through all of `layers` in order."""
    for place, layer in enumerate(layers):
        given = layer.plan(given, at.child(place, copy=copy), ledger)
    return given


def walk(layers: tuple[Layer, ...]) -> Iterator[Layer]:
    """Every layer as it is written, those inside others behind them; repeats are not unrolled."""
    for layer in layers:
        yield layer
        if isinstance(layer, Repeat | Residual):
            yield from walk(layer.layers)


def count_layers(layers: tuple[Layer, ...]) -> int:
    """With repeats unrolled, by arithmetic alone."""
    total = 0
    for layer in layers:
        match layer:
            case Repeat():
                total += layer.times * count_layers(layer.layers)
            case Residual():
                total += 1 + count_layers(layer.layers)
            case _:
                total += 1
    return total
