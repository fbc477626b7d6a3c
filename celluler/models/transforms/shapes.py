"""Steps that move numbers about: resizing, cutting, filling, reordering."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from celluler.errors import InvalidSpec
from celluler.models.fields import Choice, Real, Sizes, Whole, declare
from celluler.models.layers import Signal
from celluler.models.transforms.base import (
    LARGE,
    MAX_RANK,
    MAX_SIDE,
    NUMBERS,
    Array,
    along,
    bounded,
    need,
    need_axis,
)
from celluler.models.transforms.rules import Several

_LAYOUTS = {"hw": (0, 2), "hwc": (0, 3), "chw": (1, 3)}
_SIDE = Whole(1, 1 << 14)
_COUNTS = Several(Whole(0, MAX_SIDE), 1, MAX_RANK)


@dataclass(frozen=True, slots=True)
class Resize:
    """An image of another size, whatever its ratio. Pixel centres are at halves: row i of `height` looks at
    (i + ½) · rows / height − ½ of the image. `nearest` takes ⌊(i + ½) · rows / height⌋ and keeps the dtype; `bilinear`
    mixes the two neighbours, the edge going on outside, first down and then across, in float32; nothing is smoothed
    before."""

    KIND: ClassVar[str] = "resize"

    height: int = declare(_SIDE, "rows")
    width: int = declare(_SIDE, "columns")
    layout: str = declare(Choice(tuple(_LAYOUTS)), "sides of a sample", default="hwc")
    method: str = declare(Choice(("nearest", "bilinear")), "how", default="bilinear")

    def plan(self, given: Signal, path: str) -> Signal:
        need(given, path, *NUMBERS)
        axis, rank = _LAYOUTS[self.layout]
        if len(given.shape) != rank:
            raise InvalidSpec(f"{path}.layout", f"is {self.layout}, of a sample with {len(given.shape)} sides")
        dtype = given.dtype if self.method == "nearest" else "float32"
        half = bounded(dtype, (*given.shape[:axis], self.height, *given.shape[axis + 1 :]), path)
        return bounded(dtype, (*half.shape[: axis + 1], self.width, *half.shape[axis + 2 :]), path)

    def run(self, x: Array) -> Array:
        axis = along(_LAYOUTS[self.layout][0])
        for place, size in ((axis, self.height), (axis + 1, self.width)):
            x = _nearest(x, place, size) if self.method == "nearest" else _bilinear(x, place, size)
        return x


def _nearest(x: Array, axis: int, size: int) -> Array:
    places = (2 * np.arange(size) + 1) * x.shape[axis] // (2 * size)
    made: Array = x.take(places, axis=axis)
    return made


def _bilinear(x: Array, axis: int, size: int) -> Array:
    old = x.shape[axis]
    at = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
    low = np.floor(at).astype(np.int64)
    sides = [1] * x.ndim
    sides[axis] = size
    share = (at - low).astype(np.float32).reshape(sides)
    x = x.astype(np.float32)
    made: Array = x.take(low, axis=axis) * (1 - share) + x.take(np.minimum(low + 1, old - 1), axis=axis) * share
    return made


@dataclass(frozen=True, slots=True)
class Crop:
    """A part of a sample, from `start` on or from its middle (rounded down)."""

    KIND: ClassVar[str] = "crop"

    shape: tuple[int, ...] = declare(Sizes(MAX_RANK), "of the part, every side")
    start: tuple[int, ...] | None = declare(_COUNTS, "of the part in each side; the middle without it", default=None)

    def plan(self, given: Signal, path: str) -> Signal:
        need(given, path, *NUMBERS)
        if len(self.shape) != len(given.shape):
            raise InvalidSpec(f"{path}.shape", f"has {len(self.shape)} sides, the sample has {len(given.shape)}")
        if self.start is not None and len(self.start) != len(given.shape):
            raise InvalidSpec(f"{path}.start", f"has {len(self.start)} sides, the sample has {len(given.shape)}")
        for axis, (start, side, old) in enumerate(zip(self._starts(given.shape), self.shape, given.shape, strict=True)):
            if start < 0 or start + side > old:
                raise InvalidSpec(f"{path}.shape[{axis}]", f"is {side} from {start} on, of {old}")
        return Signal(given.dtype, self.shape)

    def run(self, x: Array) -> Array:
        starts = self._starts(x.shape[1:])
        return x[(slice(None), *(slice(at, at + side) for at, side in zip(starts, self.shape, strict=True)))]

    def _starts(self, given: tuple[int, ...]) -> tuple[int, ...]:
        if self.start is not None:
            return self.start
        return tuple((old - side) // 2 for old, side in zip(given, self.shape, strict=True))


@dataclass(frozen=True, slots=True)
class Pad:
    """The same number around a sample."""

    KIND: ClassVar[str] = "pad"

    before: tuple[int, ...] = declare(_COUNTS, "how many in each side")
    after: tuple[int, ...] = declare(_COUNTS, "the same behind")
    value: float = declare(Real(-LARGE, LARGE), "what; of whole numbers one of them", default=0.0)

    def plan(self, given: Signal, path: str) -> Signal:
        need(given, path, *NUMBERS)
        for name, counts in (("before", self.before), ("after", self.after)):
            if len(counts) != len(given.shape):
                raise InvalidSpec(f"{path}.{name}", f"has {len(counts)} sides, the sample has {len(given.shape)}")
        low, high = (0, 255) if given.dtype == "uint8" else (-(1 << 53), 1 << 53)
        if given.dtype != "float32" and not (self.value.is_integer() and low <= self.value <= high):
            raise InvalidSpec(f"{path}.value", f"is {self.value}, and what is given is {given.dtype}")
        sides = zip(self.before, given.shape, self.after, strict=True)
        return bounded(given.dtype, tuple(sum(side) for side in sides), path)

    def run(self, x: Array) -> Array:
        widths = ((0, 0), *zip(self.before, self.after, strict=True))
        return np.pad(x, widths, constant_values=np.asarray(self.value).astype(x.dtype))


@dataclass(frozen=True, slots=True)
class Reshape:
    """The same numbers in another shape, row-major."""

    KIND: ClassVar[str] = "reshape"

    shape: tuple[int, ...] = declare(Sizes(MAX_RANK), "of a sample")

    def plan(self, given: Signal, path: str) -> Signal:
        need(given, path, *NUMBERS)
        if math.prod(self.shape) != given.elements:
            raise InvalidSpec(f"{path}.shape", f"holds {math.prod(self.shape)} numbers, a sample has {given.elements}")
        return Signal(given.dtype, self.shape)

    def run(self, x: Array) -> Array:
        return x.reshape(len(x), *self.shape)


@dataclass(frozen=True, slots=True)
class Transpose:
    """Sides in another order."""

    KIND: ClassVar[str] = "transpose"

    axes: tuple[int, ...] = declare(
        Several(Whole(0, MAX_RANK - 1), 1, MAX_RANK), "which side comes first, and so on; each once"
    )

    def plan(self, given: Signal, path: str) -> Signal:
        need(given, path, *NUMBERS)
        if sorted(self.axes) != list(range(len(given.shape))):
            raise InvalidSpec(f"{path}.axes", f"must be 0…{len(given.shape) - 1} in some order")
        return Signal(given.dtype, tuple(given.shape[axis] for axis in self.axes))

    def run(self, x: Array) -> Array:
        return x.transpose(0, *(axis + 1 for axis in self.axes))


@dataclass(frozen=True, slots=True)
class Take:
    """Some places of one side, in the order given: columns of a table, channels of an image."""

    KIND: ClassVar[str] = "take"

    places: tuple[int, ...] = declare(Several(Whole(0, MAX_SIDE - 1), 1, 4096), "which, from 0")
    axis: int = declare(Whole(-MAX_RANK, MAX_RANK - 1), "of the side", default=-1)

    def plan(self, given: Signal, path: str) -> Signal:
        need(given, path, *NUMBERS)
        axis = need_axis(given, self.axis, path)
        for number, place in enumerate(self.places):
            if place >= given.shape[axis]:
                raise InvalidSpec(f"{path}.places[{number}]", f"is {place}, of {given.shape[axis]}")
        return bounded(given.dtype, (*given.shape[:axis], len(self.places), *given.shape[axis + 1 :]), path)

    def run(self, x: Array) -> Array:
        return x.take(np.array(self.places), axis=along(self.axis))
