"""Layers that take any shape: weighted sums, functions of single elements, other shapes for the same elements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from celluler.errors import InvalidSpec
from celluler.models.fields import MAX_SIZE, Choice, Flag, Real, Sizes, Whole, declare
from celluler.models.layers.base import Ledger, Place, Shape, Signal, TensorSpec, need_float, weight_and_bias

FUNCTIONS = ("relu", "leaky_relu", "elu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid")


@dataclass(frozen=True, slots=True)
class Dense:
    """Weighted sums over the last axis: (…, n) → (…, width). Tensors: weight (width, n), bias (width)."""

    KIND: ClassVar[str] = "dense"
    width: int = declare(Whole(1, MAX_SIZE), "number of outputs")
    bias: bool = declare(Flag(), "add a trained offset", default=True)

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        need_float(given, at)
        n = given.shape[-1]
        tensors = weight_and_bias(at, (self.width, n), fan_in=n, bias=self.bias)
        out = Signal("float32", (*given.shape[:-1], self.width))
        ledger.book(at, out, out.elements * n, tensors)
        return out


@dataclass(frozen=True, slots=True)
class FeedForward:
    """Two dense layers with a function between, over the last axis: (…, n) → (…, n).

    Tensors: up.weight (hidden, n), up.bias, down.weight (n, hidden), down.bias.
    """

    KIND: ClassVar[str] = "feed_forward"
    hidden: int = declare(Whole(1, MAX_SIZE), "width between the two")
    function: str = declare(Choice(FUNCTIONS), "between the two", default="gelu")
    bias: bool = declare(Flag(), "add trained offsets", default=True)

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        return _plan_feed_forward(("up", "down"), self.hidden, self.bias, given, at, ledger)


@dataclass(frozen=True, slots=True)
class SwiGLU:
    """A gated feed-forward, down(silu(gate(x)) · up(x)), over the last axis: (…, n) → (…, n).

    Tensors: gate.weight and up.weight (hidden, n), down.weight (n, hidden), each with its bias behind it if there is
    one. Source: Shazeer 2020, equation 6.
    """

    KIND: ClassVar[str] = "swiglu"
    hidden: int = declare(Whole(1, MAX_SIZE), "width of the gate")
    bias: bool = declare(Flag(), "add trained offsets", default=False)

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        return _plan_feed_forward(("gate", "up", "down"), self.hidden, self.bias, given, at, ledger)


@dataclass(frozen=True, slots=True)
class Activation:
    """A function applied to every element."""

    KIND: ClassVar[str] = "activation"
    function: str = declare(Choice(FUNCTIONS), "which")

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        need_float(given, at)
        ledger.book(at, given, given.elements)
        return given


@dataclass(frozen=True, slots=True)
class Dropout:
    """Zeroes elements at random while training."""

    KIND: ClassVar[str] = "dropout"
    rate: float = declare(Real(0.0, 1.0), "share of elements zeroed")

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        need_float(given, at)
        ledger.book(at, given, given.elements)
        return given


@dataclass(frozen=True, slots=True)
class Flatten:
    """All axes into one: (a, b, …) → (a·b·…)."""

    KIND: ClassVar[str] = "flatten"

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        out = Signal(given.dtype, (given.elements,))
        ledger.book(at, out, 0)
        return out


@dataclass(frozen=True, slots=True)
class Reshape:
    """The same elements under another shape."""

    KIND: ClassVar[str] = "reshape"
    shape: Shape = declare(Sizes(), "of one sample")  # noqa: RUF009

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        out = Signal(given.dtype, self.shape)
        if out.elements != given.elements:
            raise InvalidSpec(f"{at.path}.shape", f"holds {out.elements} elements, given {given.elements}")
        ledger.book(at, out, 0)
        return out


def _plan_feed_forward(
    parts: tuple[str, ...], hidden: int, bias: bool, given: Signal, at: Place, ledger: Ledger
) -> Signal:
    need_float(given, at)
    n = given.shape[-1]
    tensors: tuple[TensorSpec, ...] = ()
    for part in parts:
        shape = (n, hidden) if part == "down" else (hidden, n)
        tensors += weight_and_bias(at, shape, fan_in=shape[1], bias=bias, part=f"{part}.")
    places = given.elements // n
    ledger.book(at, given, len(parts) * given.elements * hidden, tensors, inside=len(parts) * places * hidden)
    return given
