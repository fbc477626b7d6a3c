"""Steps that look at each number: casts, scaling, classes and their scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from celluler.errors import InvalidSpec
from celluler.models.fields import Choice, Real, Whole, declare
from celluler.models.layers import Signal
from celluler.models.transforms.base import (
    LARGE,
    MAX_RANK,
    MAX_SIDE,
    NUMBERS,
    TEXT,
    Array,
    along,
    bounded,
    need,
    need_axis,
)
from celluler.models.transforms.rules import Several

_ANY = Real(-LARGE, LARGE)
_AXIS = Whole(-MAX_RANK, MAX_RANK - 1)
_LIMITS = {"uint8": (0, 255), "int64": (-(1 << 53), 1 << 53)}


@dataclass(frozen=True, slots=True)
class Cast:
    """Another dtype. To whole numbers: the fraction is cut off, NaN is 0, and what is out of range (uint8: 0…255,
    int64: ±2⁵³) is its end. Of a text: its bytes."""

    KIND: ClassVar[str] = "cast"

    to: str = declare(Choice(NUMBERS), "of what comes out")

    def plan(self, given: Signal, path: str) -> Signal:
        need(given, path, *NUMBERS, TEXT)
        return bounded(self.to, given.shape, path)

    def run(self, x: Array) -> Array:
        if self.to == "float32":
            return x.astype(np.float32)
        low, high = _LIMITS[self.to]
        if x.dtype.kind == "f":
            x = np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=high, neginf=low)
        elif x.dtype == np.uint8:
            return x.astype(self.to)
        return np.clip(x, low, high).astype(self.to)


@dataclass(frozen=True, slots=True)
class Scale:
    """x · by + add, in float32."""

    KIND: ClassVar[str] = "scale"

    by: float = declare(_ANY, "factor", default=1.0)
    add: float = declare(_ANY, "added after it", default=0.0)

    def plan(self, given: Signal, path: str) -> Signal:
        need(given, path, *NUMBERS)
        return bounded("float32", given.shape, path)

    def run(self, x: Array) -> Array:
        made: Array = x.astype(np.float32) * np.float32(self.by) + np.float32(self.add)
        return made


@dataclass(frozen=True, slots=True)
class Normalise:
    """(x − mean) / deviation, in float32, with one pair a channel or one for all."""

    KIND: ClassVar[str] = "normalise"

    mean: tuple[float, ...] = declare(Several(_ANY, 1, 4096), "of each channel, or one")
    deviation: tuple[float, ...] = declare(Several(Real(1 / LARGE, LARGE), 1, 4096), "as many")
    axis: int = declare(_AXIS, "of the channels", default=-1)

    def plan(self, given: Signal, path: str) -> Signal:
        need(given, path, *NUMBERS)
        axis = need_axis(given, self.axis, path)
        if len(self.mean) not in (1, given.shape[axis]):
            raise InvalidSpec(f"{path}.mean", f"has {len(self.mean)} numbers for {given.shape[axis]} channels")
        if len(self.deviation) != len(self.mean):
            raise InvalidSpec(f"{path}.deviation", f"has {len(self.deviation)} numbers, mean has {len(self.mean)}")
        return bounded("float32", given.shape, path)

    def run(self, x: Array) -> Array:
        sides = [1] * x.ndim
        sides[along(self.axis)] = len(self.mean)
        mean = np.array(self.mean, np.float32).reshape(sides)
        made: Array = (x.astype(np.float32) - mean) / np.array(self.deviation, np.float32).reshape(sides)
        return made


@dataclass(frozen=True, slots=True)
class Clip:
    """Nothing below `low`, nothing above `high`."""

    KIND: ClassVar[str] = "clip"

    low: float = declare(_ANY, "least")
    high: float = declare(_ANY, "most")

    def plan(self, given: Signal, path: str) -> Signal:
        need(given, path, "float32")
        if self.low > self.high:
            raise InvalidSpec(f"{path}.low", f"is {self.low}, above high, {self.high}")
        return given

    def run(self, x: Array) -> Array:
        return np.clip(x, np.float32(self.low), np.float32(self.high))


@dataclass(frozen=True, slots=True)
class OneHot:
    """Of each whole number a row of `classes` numbers: 1 at its place, 0 elsewhere."""

    KIND: ClassVar[str] = "one_hot"

    classes: int = declare(Whole(2, 1 << 16), "numbers are below it")

    def plan(self, given: Signal, path: str) -> Signal:
        need(given, path, "int64", "uint8")
        return bounded("float32", (*given.shape, self.classes), path)

    def run(self, x: Array) -> Array:
        within(x, self.classes)
        made = np.zeros((*x.shape, self.classes), np.float32)
        np.put_along_axis(made, x.astype(np.int64)[..., None], np.float32(1), axis=-1)
        return made


@dataclass(frozen=True, slots=True)
class Softmax:
    """Scores to probabilities along one side."""

    KIND: ClassVar[str] = "softmax"

    axis: int = declare(_AXIS, "of the scores", default=-1)

    def plan(self, given: Signal, path: str) -> Signal:
        need(given, path, "float32")
        need_axis(given, self.axis, path)
        return given

    def run(self, x: Array) -> Array:
        axis = along(self.axis)
        raised = np.exp(x - x.max(axis=axis, keepdims=True))
        made: Array = raised / raised.sum(axis=axis, keepdims=True, dtype=np.float32)
        return made


@dataclass(frozen=True, slots=True)
class Sigmoid:
    """1 / (1 + e^−x)."""

    KIND: ClassVar[str] = "sigmoid"

    def plan(self, given: Signal, path: str) -> Signal:
        need(given, path, "float32")
        return given

    def run(self, x: Array) -> Array:
        return np.float32(0.5) * (np.tanh(np.float32(0.5) * x) + np.float32(1))


@dataclass(frozen=True, slots=True)
class Argmax:
    """The place of the largest number along one side, the first of equals; the side is gone."""

    KIND: ClassVar[str] = "argmax"

    axis: int = declare(_AXIS, "along which", default=-1)

    def plan(self, given: Signal, path: str) -> Signal:
        need(given, path, *NUMBERS)
        axis = need_axis(given, self.axis, path)
        return Signal("int64", given.shape[:axis] + given.shape[axis + 1 :])

    def run(self, x: Array) -> Array:
        return np.asarray(np.argmax(x, axis=along(self.axis)), np.int64)


@dataclass(frozen=True, slots=True)
class TopK:
    """The `k` largest numbers of the last side, largest first, the first of equals first."""

    KIND: ClassVar[str] = "top_k"

    k: int = declare(Whole(1, MAX_SIDE), "how many")
    gives: str = declare(Choice(("places", "values")), "their places (int64) or the numbers", default="places")

    def plan(self, given: Signal, path: str) -> Signal:
        need(given, path, "float32")
        axis = need_axis(given, -1, path)
        if self.k > given.shape[axis]:
            raise InvalidSpec(f"{path}.k", f"is {self.k}, of {given.shape[axis]}")
        return Signal("int64" if self.gives == "places" else "float32", (*given.shape[:-1], self.k))

    def run(self, x: Array) -> Array:
        places = np.argsort(-x, axis=-1, kind="stable")[..., : self.k].astype(np.int64)
        return places if self.gives == "places" else np.take_along_axis(x, places, axis=-1)


@dataclass(frozen=True, slots=True)
class Threshold:
    """1 where a number is at least `at`, else 0."""

    KIND: ClassVar[str] = "threshold"

    at: float = declare(_ANY, "the least that counts")

    def plan(self, given: Signal, path: str) -> Signal:
        need(given, path, *NUMBERS)
        return bounded("int64", given.shape, path)

    def run(self, x: Array) -> Array:
        return np.asarray(x >= np.float32(self.at), np.int64)


def within(x: Array, below: int) -> None:
    """Raises InvalidSpec when a number is not in 0…below − 1."""
    if x.size and (int(x.min()) < 0 or int(x.max()) >= below):
        wrong = int(x.min()) if int(x.min()) < 0 else int(x.max())
        raise InvalidSpec("", f"is given {wrong}, must be 0…{below - 1}")
