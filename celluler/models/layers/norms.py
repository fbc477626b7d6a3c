"""Layers that bring what comes in to one scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from celluler.errors import InvalidSpec
from celluler.models.fields import MAX_SIZE, Real, Whole, declare
from celluler.models.layers.base import Ledger, Place, Signal, TensorSpec, need_float, scale_and_offset


@dataclass(frozen=True, slots=True)
class BatchNorm:
    """Normalises each channel (the first axis) over the batch, by running statistics when predicting.

    Tensors: weight, bias, running_mean, running_var, all (c).
    """

    KIND: ClassVar[str] = "batch_norm"

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        need_float(given, at)
        if len(given.shape) > 3:
            raise InvalidSpec(at.path, f"takes at most 3 axes, given {given.shape}")
        c = given.shape[0]
        running = (("running_mean", "mean"), ("running_var", "variance"))
        tensors = (*scale_and_offset(at, c), *(TensorSpec(at.prefix + name, (c,), role) for name, role in running))
        ledger.book(at, given, 2 * given.elements, tensors)
        return given


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Normalises the last axis of each sample. Tensors: weight, bias, both (n)."""

    KIND: ClassVar[str] = "layer_norm"

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        need_float(given, at)
        ledger.book(at, given, 2 * given.elements, scale_and_offset(at, given.shape[-1]))
        return given


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """Divides the last axis by its root mean square. Tensors: weight (n). Source: Zhang and Sennrich 2019."""

    KIND: ClassVar[str] = "rms_norm"
    epsilon: float = declare(Real(1e-12, 1.0), "added to the mean square", default=1e-5)

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        need_float(given, at)
        weight = TensorSpec(f"{at.prefix}weight", given.shape[-1:], "one")
        ledger.book(at, given, 2 * given.elements, (weight,))
        return given


@dataclass(frozen=True, slots=True)
class GroupNorm:
    """Normalises groups of channels (the first axis) of each sample. Tensors: weight, bias, both (c)."""

    KIND: ClassVar[str] = "group_norm"
    groups: int = declare(Whole(1, MAX_SIZE), "must divide the channels")

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        need_float(given, at)
        c = given.shape[0]
        if c % self.groups:
            raise InvalidSpec(f"{at.path}.groups", f"must divide {c} channels")
        if given.elements == self.groups:
            raise InvalidSpec(f"{at.path}.groups", "leave one element in each: nothing to normalise")
        ledger.book(at, given, 2 * given.elements, scale_and_offset(at, c))
        return given
