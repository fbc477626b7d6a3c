"""What every layer stands on: signals, tensors, places, and the ledger that counts costs. Knows no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from celluler.errors import InvalidSpec
from celluler.models.fields import MAX_SIZE

Shape = tuple[int, ...]
"""Of one sample: the batch axis is never written."""

FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Signal:
    """What flows between two layers, for one sample. dtype: float32 or int64."""

    dtype: str
    shape: Shape

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One float32 tensor of the weights file.

    name: the place of its layer, then what it is there: `2.weight`, in a repeat `3.1.0.bias` (layer 3, repetition 1,
    layer 0). role: `weight` (drawn uniformly within ±bound), `zero` and `one` (so initialised), trained; `mean` and
    `variance`, the running statistics of a batch norm, moved by training but not by gradients.
    """

    name: str
    shape: Shape
    role: str
    bound: float = 0.0

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def trained(self) -> bool:
        return self.role in ("weight", "zero", "one")


@dataclass(frozen=True, slots=True)
class Budget:
    """What a model may cost at most; a document that asks for more is refused when it is read.

    Costs beside parameters are for one sample. activation_bytes: of what all layers make, as training keeps it for the
    way back; working_bytes: of what a layer takes, makes and works with, and of what waits for a sum behind it, as
    answering holds it at once. layers: counted after repeats are unrolled.
    """

    parameter_bytes: int = 2 << 30
    activation_bytes: int = 4 << 30
    multiply_adds: int = 5 * 10**11
    layers: int = 4096
    working_bytes: int = 512 << 20


@dataclass(slots=True)
class Ledger:
    """What the layers planned so far cost; raises InvalidSpec as soon as the budget is overdrawn.

    timed: whether the model is told a step, so that a layer may ask for it. waiting: elements that are held while other
    layers work. given: elements that the next layer takes.
    """

    budget: Budget
    timed: bool = False
    parameter_bytes: int = 0
    activation_bytes: int = 0
    multiply_adds: int = 0
    layers: int = 0
    working_bytes: int = 0
    waiting: int = 0
    given: int = 0
    vocabulary: int = MAX_SIZE
    tensors: list[TensorSpec] = field(default_factory=list)

    def book(
        self, at: Place, out: Signal, multiply_adds: int, tensors: tuple[TensorSpec, ...] = (), *, inside: int = 0
    ) -> None:
        """One layer. inside: elements that it makes on the way to `out` and keeps for the way back."""
        parameter_bytes = FLOAT_BYTES * sum(tensor.elements for tensor in tensors)
        activation_bytes = FLOAT_BYTES * (out.elements + inside)
        self._check(at, parameter_bytes, activation_bytes, multiply_adds, 1)
        working_bytes = FLOAT_BYTES * (self.waiting + self.given + inside + out.elements)
        if working_bytes > self.budget.working_bytes:
            told = f"needs {working_bytes} bytes at once for a sample, the budget is {self.budget.working_bytes}"
            raise InvalidSpec(at.path, told)
        self.working_bytes, self.given = max(self.working_bytes, working_bytes), out.elements
        self.parameter_bytes += parameter_bytes
        self.activation_bytes += activation_bytes
        self.multiply_adds += multiply_adds
        self.layers += 1
        self.tensors += tensors

    def totals(self) -> tuple[int, int, int, int]:
        return self.parameter_bytes, self.activation_bytes, self.multiply_adds, self.layers

    def foresee(self, at: Place, since: tuple[int, int, int, int], times: int) -> None:
        """Refuse now if what was booked since `since`, another `times` over, would overdraw the budget."""
        each = (now - before for now, before in zip(self.totals(), since, strict=True))
        self._check(at, *(times * cost for cost in each))

    def again(self, at: Place, times: int) -> None:
        """Every sample goes through all that was booked `times` more."""
        activation_bytes, multiply_adds = times * self.activation_bytes, times * self.multiply_adds
        self._check(at, 0, activation_bytes, multiply_adds, 0)
        self.activation_bytes += activation_bytes
        self.multiply_adds += multiply_adds

    def _check(self, at: Place, parameter_bytes: int, activation_bytes: int, multiply_adds: int, layers: int) -> None:
        for what, spent, limit in (
            ("bytes of parameters", self.parameter_bytes + parameter_bytes, self.budget.parameter_bytes),
            ("bytes of activations a sample", self.activation_bytes + activation_bytes, self.budget.activation_bytes),
            ("multiply-adds a sample", self.multiply_adds + multiply_adds, self.budget.multiply_adds),
            ("layers", self.layers + layers, self.budget.layers),
        ):
            if spent > limit:
                raise InvalidSpec(at.path, f"needs {spent} {what}, the budget is {limit}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a layer stands. path: in the document (`layers[2]`). prefix: of its tensors (`2.`). body: name of the list
    that holds the layers inside."""

    path: str = ""
    prefix: str = ""
    body: str = "layers"

    def child(self, place: int, *, copy: int | None = None) -> Place:
        """Of the layer `place` inside this one; `copy` counts repetitions."""
        path = f"{self.path}.{self.body}[{place}]" if self.path else f"{self.body}[{place}]"
        repetition = "" if copy is None else f"{copy}."
        return Place(path, f"{self.prefix}{repetition}{place}.")


class Layer(Protocol):
    """A frozen dataclass of declared fields."""

    KIND: ClassVar[str]

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        """What comes out of this layer. Raises InvalidSpec when `given` does not fit or the budget does not reach."""


# --- what layers share -----------------------------------------------------------------------------------------------


def need_float(given: Signal, at: Place) -> None:
    if given.dtype != "float32":
        raise InvalidSpec(at.path, f"takes float32, given {given.dtype}; an embedding makes float32 of int64")


def need_sequence(given: Signal, at: Place) -> tuple[int, int]:
    """(time, width)"""
    need_float(given, at)
    if len(given.shape) != 2:
        raise InvalidSpec(at.path, f"takes (time, width), given {given.shape}")
    return given.shape[0], given.shape[1]


def need_image(given: Signal, at: Place) -> tuple[int, int, int]:
    if len(given.shape) != 3:
        raise InvalidSpec(at.path, f"takes (channels, height, width), given {given.shape}")
    return given.shape[0], given.shape[1], given.shape[2]


def slide(side: int, window: int, stride: int, padding: int, at: Place) -> int:
    """How many places a window has along a side."""
    room = side + 2 * padding - window
    if room < 0:
        raise InvalidSpec(at.path, f"a window of {window} does not fit on a side of {side} padded by {padding}")
    return room // stride + 1


def scale_and_offset(at: Place, size: int) -> tuple[TensorSpec, ...]:
    """Of a norm: weight and bias, (size) each."""
    return (TensorSpec(f"{at.prefix}weight", (size,), "one"), TensorSpec(f"{at.prefix}bias", (size,), "zero"))


def weight_and_bias(
    at: Place, shape: Shape, *, fan_in: int, bias: bool, part: str = "", outputs: int | None = None
) -> tuple[TensorSpec, ...]:
    """part: `query.` of a layer with several. outputs: length of the bias; the weight's first axis when absent."""
    # He et al. 2015, equation 10, as a uniform distribution: variance 2/fan_in.
    weight = TensorSpec(f"{at.prefix}{part}weight", shape, "weight", bound=math.sqrt(6 / fan_in))
    return (weight, TensorSpec(f"{at.prefix}{part}bias", (outputs or shape[0],), "zero")) if bias else (weight,)
