"""Layers over sequences: (time, width). What comes first in time stands first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from celluler.errors import InvalidSpec
from celluler.models.fields import MAX_SIZE, Choice, Flag, Real, Whole, declare
from celluler.models.layers.base import Ledger, Place, Signal, TensorSpec, need_float, need_sequence, weight_and_bias
from celluler.models.layers.rotary import Scaling, ScalingRule


@dataclass(frozen=True, slots=True)
class Embedding:
    """A trained vector for each number below `vocabulary`: int64 (…) → (…, width).

    Tensors: weight (vocabulary, width).
    """

    KIND: ClassVar[str] = "embedding"
    vocabulary: int = declare(Whole(1, MAX_SIZE), "numbers known")
    width: int = declare(Whole(1, MAX_SIZE), "length of a vector")

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        if given.dtype != "int64":
            raise InvalidSpec(at.path, f"takes int64, given {given.dtype}")
        weight = TensorSpec(f"{at.prefix}weight", (self.vocabulary, self.width), "weight", bound=math.sqrt(3))
        out = Signal("float32", (*given.shape, self.width))
        ledger.book(at, out, out.elements, (weight,))
        ledger.vocabulary = min(ledger.vocabulary, self.vocabulary)
        return out


@dataclass(frozen=True, slots=True)
class Positions:
    """Adds a trained vector for each place in time: (time, n) → (time, n). Tensors: weight (time, n)."""

    KIND: ClassVar[str] = "positions"

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        need_sequence(given, at)
        weight = TensorSpec(f"{at.prefix}weight", given.shape, "weight", bound=math.sqrt(3) / 10)
        ledger.book(at, given, given.elements, (weight,))
        return given


@dataclass(frozen=True, slots=True)
class Lstm:
    """Long short-term memory, one layer above another: (time, n) → (time, hidden), or (hidden) after the last step.

    Tensors, of each layer l from 0 and in this order: weight_ih_l (4·hidden, what comes in), weight_hh_l (4·hidden,
    hidden), bias_ih_l and bias_hh_l (4·hidden); four blocks each: input, forget, cell and output gate. Computed in
    float32 whatever the precision of training.
    """

    KIND: ClassVar[str] = "lstm"
    hidden: int = declare(Whole(1, MAX_SIZE), "length of its state")
    layers: int = declare(Whole(1, 16), "one above another", default=1)
    output: str = declare(Choice(("sequence", "last")), "the state at every step, or at the last", default="sequence")

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        time, width = need_sequence(given, at)
        tensors: list[TensorSpec] = []
        steps = 0
        for layer in range(self.layers):
            for name, n in (("ih", width), ("hh", self.hidden)):
                shape, bound = (4 * self.hidden, n), 1 / math.sqrt(self.hidden)
                tensors.append(TensorSpec(f"{at.prefix}weight_{name}_l{layer}", shape, "weight", bound=bound))
                steps += math.prod(shape)
            for name in ("ih", "hh"):
                tensors.append(TensorSpec(f"{at.prefix}bias_{name}_l{layer}", (4 * self.hidden,), "zero"))
            width = self.hidden
        out = Signal("float32", (time, self.hidden) if self.output == "sequence" else (self.hidden,))
        ledger.book(at, out, time * steps, tuple(tensors), inside=6 * time * self.hidden * self.layers)
        return out


@dataclass(frozen=True, slots=True)
class Attention:
    """Each place looks at all, or at those before it and itself: (time, n) → (time, n).

    A head is n / heads wide. Tensors: query.weight (n, n), key.weight and value.weight (kv_heads · n / heads, n),
    output.weight (n, n), each with its bias behind it if there is one. Rotary positions pair element i of a head with
    element i + half of it. Sources: Vaswani et al. 2017; Ainslie et al. 2023, for fewer heads of keys and values;
    Su et al. 2021, for rotary positions.
    """

    KIND: ClassVar[str] = "attention"
    heads: int = declare(Whole(1, 1024), "of queries; must divide n")
    kv_heads: int | None = declare(
        Whole(1, 1024), "of keys and values, each for several of queries; `heads` when absent", default=None
    )
    causal: bool = declare(Flag(), "no place sees a later one", default=False)
    rope_base: float | None = declare(
        Real(1.0, 1e9), "turn queries and keys by their place; 10000 is usual; not at all when absent", default=None
    )
    bias: bool = declare(Flag(), "add trained offsets", default=False)
    rope_scaling: Scaling | None = declare(  # noqa: RUF009  a field like the others, of a class that is frozen
        ScalingRule(), "turn them otherwise, for longer texts", default=None
    )

    @property
    def groups(self) -> int:
        """Heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        time, n = need_sequence(given, at)
        if n % self.heads:
            raise InvalidSpec(f"{at.path}.heads", f"must divide the width {n}")
        if self.heads % self.groups:
            raise InvalidSpec(f"{at.path}.kv_heads", f"must divide {self.heads} heads")
        if self.rope_base is not None and n // self.heads % 2:
            raise InvalidSpec(f"{at.path}.rope_base", f"needs heads of even width, they are {n // self.heads} wide")
        if self.rope_scaling is not None and (self.rope_base is None or self.rope_base <= 1):
            raise InvalidSpec(f"{at.path}.rope_scaling", "needs a rope_base above 1")
        few = self.groups * (n // self.heads)
        tensors: tuple[TensorSpec, ...] = ()
        for part, outputs in (("query", n), ("key", few), ("value", few), ("output", n)):
            tensors += weight_and_bias(at, (outputs, n), fan_in=n, bias=self.bias, part=f"{part}.")
        products = 2 * n * (n + few) + 2 * n * time
        ledger.book(at, given, time * products, tensors, inside=time * (2 * n + 2 * few))
        return given


@dataclass(frozen=True, slots=True)
class MeanPool:
    """The mean over time: (time, …) → (…)."""

    KIND: ClassVar[str] = "mean_pool"

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        return _plan_pool(given, at, ledger, given.elements)


@dataclass(frozen=True, slots=True)
class First:
    """What stands first in time: (time, …) → (…)."""

    KIND: ClassVar[str] = "first"

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        return _plan_pool(given, at, ledger, 0)


@dataclass(frozen=True, slots=True)
class Last:
    """What stands last in time: (time, …) → (…)."""

    KIND: ClassVar[str] = "last"

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        return _plan_pool(given, at, ledger, 0)


def _plan_pool(given: Signal, at: Place, ledger: Ledger, multiply_adds: int) -> Signal:
    need_float(given, at)
    if len(given.shape) < 2:
        raise InvalidSpec(at.path, f"takes (time, …), given {given.shape}")
    out = Signal("float32", given.shape[1:])
    ledger.book(at, out, multiply_adds)
    return out
