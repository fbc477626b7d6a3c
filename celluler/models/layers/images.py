"""Layers over images: (channels, height, width)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from celluler.errors import InvalidSpec
from celluler.models.fields import MAX_SIZE, Flag, Whole, declare
from celluler.models.layers.base import Ledger, Place, Signal, need_float, need_image, slide, weight_and_bias


@dataclass(frozen=True, slots=True)
class Conv2d:
    """Convolution with a square kernel: (c, h, w) → (channels, h', w').

    Tensors: weight (channels, c/groups, kernel, kernel), bias (channels).
    """

    KIND: ClassVar[str] = "conv2d"
    channels: int = declare(Whole(1, MAX_SIZE), "number of output channels")
    kernel: int = declare(Whole(1, 64), "side of the kernel")
    stride: int = declare(Whole(1, 64), "step of the kernel", default=1)
    padding: int = declare(Whole(0, 64), "zeros added at each side", default=0)
    groups: int = declare(Whole(1, MAX_SIZE), "must divide both channel counts", default=1)
    bias: bool = declare(Flag(), "add a trained offset a channel", default=True)

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        need_float(given, at)
        c, h, w = need_image(given, at)
        if c % self.groups or self.channels % self.groups:
            raise InvalidSpec(f"{at.path}.groups", f"must divide {c} input and {self.channels} output channels")
        fan_in = c // self.groups * self.kernel**2
        shape = (self.channels, c // self.groups, self.kernel, self.kernel)
        tensors = weight_and_bias(at, shape, fan_in=fan_in, bias=self.bias)
        side_h, side_w = (slide(side, self.kernel, self.stride, self.padding, at) for side in (h, w))
        out = Signal("float32", (self.channels, side_h, side_w))
        ledger.book(at, out, out.elements * fan_in, tensors)
        return out


@dataclass(frozen=True, slots=True)
class ConvTranspose2d:
    """The way back from a convolution: (c, h, w) → (channels, (h−1)·stride − 2·padding + kernel, the same of w).

    Tensors: weight (c, channels, kernel, kernel), bias (channels).
    """

    KIND: ClassVar[str] = "conv_transpose2d"
    channels: int = declare(Whole(1, MAX_SIZE), "number of output channels")
    kernel: int = declare(Whole(1, 64), "side of the kernel")
    stride: int = declare(Whole(1, 64), "how far apart the kernel is laid down", default=1)
    padding: int = declare(Whole(0, 64), "taken off at each side", default=0)
    bias: bool = declare(Flag(), "add a trained offset a channel", default=True)

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        need_float(given, at)
        c, h, w = need_image(given, at)
        sides = tuple((side - 1) * self.stride - 2 * self.padding + self.kernel for side in (h, w))
        if min(sides) < 1:
            raise InvalidSpec(f"{at.path}.padding", f"leaves nothing of {given.shape}")
        shape = (c, self.channels, self.kernel, self.kernel)
        fan_in = max(1, c * self.kernel**2 // self.stride**2)
        tensors = weight_and_bias(at, shape, fan_in=fan_in, bias=self.bias, outputs=self.channels)
        out = Signal("float32", (self.channels, *sides))
        ledger.book(at, out, given.elements * self.channels * self.kernel**2, tensors)
        return out


@dataclass(frozen=True, slots=True)
class Upsample2d:
    """Each element as a square of itself: (c, h, w) → (c, factor·h, factor·w)."""

    KIND: ClassVar[str] = "upsample2d"
    factor: int = declare(Whole(2, 16), "side of the square", default=2)

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        need_float(given, at)
        c, h, w = need_image(given, at)
        out = Signal("float32", (c, self.factor * h, self.factor * w))
        ledger.book(at, out, out.elements)
        return out


@dataclass(frozen=True, slots=True)
class MaxPool2d:
    """The largest element of each square window: (c, h, w) → (c, h', w')."""

    KIND: ClassVar[str] = "max_pool2d"
    size: int = declare(Whole(1, 64), "side of the window")
    stride: int | None = declare(Whole(1, 64), "step of the window; `size` when absent", default=None)

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        return _plan_pool(self.size, self.stride, given, at, ledger)


@dataclass(frozen=True, slots=True)
class AvgPool2d:
    """The mean of each square window: (c, h, w) → (c, h', w')."""

    KIND: ClassVar[str] = "avg_pool2d"
    size: int = declare(Whole(1, 64), "side of the window")
    stride: int | None = declare(Whole(1, 64), "step of the window; `size` when absent", default=None)

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        return _plan_pool(self.size, self.stride, given, at, ledger)


@dataclass(frozen=True, slots=True)
class GlobalAvgPool:
    """The mean of each channel: (c, h, w) → (c)."""

    KIND: ClassVar[str] = "global_avg_pool"

    def plan(self, given: Signal, at: Place, ledger: Ledger) -> Signal:
        need_float(given, at)
        c, _, _ = need_image(given, at)
        out = Signal("float32", (c,))
        ledger.book(at, out, given.elements)
        return out


def _plan_pool(size: int, stride: int | None, given: Signal, at: Place, ledger: Ledger) -> Signal:
    need_float(given, at)
    c, h, w = need_image(given, at)
    out = Signal("float32", (c, slide(h, size, stride or size, 0, at), slide(w, size, stride or size, 0, at)))
    ledger.book(at, out, out.elements * size**2)
    return out
