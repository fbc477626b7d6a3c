"""The layer that tells a model for denoising how much of what comes in is noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from celluler.errors import InvalidSpec
from celluler.models.fields import Choice, Whole, declare
from celluler.models.layers.base import Ledger, Place, Signal, need_float, weight_and_bias
from celluler.models.layers.elements import FUNCTIONS


@dataclass(frozen=True, slots=True)
class Timestep:
    """Adds to each channel a number that depends on the step: the first axis of (c), (c, h, w) and of four axes, the
    last of (time, c). Only for denoising.

    Of the step, as a share t of all, come `width` features, the cosines and then the sines of 1000·t·10000^(−i/half),
    with half = width / 2 and i from 0 below it; of these, two dense layers with a function between make the numbers.
    Tensors: up.weight (width, width), up.bias, down.weight (c, width), down.bias. Sources: Vaswani et al. 2017,
    section 3.5; Ho et al. 2020, appendix B.
    """

    KIND: ClassVar[str] = "timestep"
    width: int = declare(Whole(2, 4096), "number of features; even")
    function: str = declare(Choice(FUNCTIONS), "between the two", default="silu")

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        need_float(given, at)
        if not ledger.timed:
            raise InvalidSpec(at.path, "stands only in a model for denoising: there is no step to be told")
        if self.width % 2:
            raise InvalidSpec(f"{at.path}.width", "must be even: one half are cosines, one half sines")
        c = channels_of(given.shape)
        tensors = weight_and_bias(at, (self.width, self.width), fan_in=self.width, bias=True, part="up.")
        tensors += weight_and_bias(at, (c, self.width), fan_in=self.width, bias=True, part="down.")
        ledger.book(at, given, given.elements + self.width * (self.width + c), tensors, inside=3 * self.width + c)
        return given


def channels_of(shape: tuple[int, ...]) -> int:
    """How many numbers a step becomes."""
    return shape[-1] if len(shape) == 2 else shape[0]
