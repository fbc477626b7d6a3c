"""What every step of a transform stands on: its bounds, and how it says what goes in and comes out."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from celluler.errors import InvalidSpec
from celluler.models.layers import Shape, Signal

Array = npt.NDArray[Any]
TEXT = "text"
ITEM_BYTES = {"float32": 4, "int64": 8, "uint8": 1, TEXT: 1}
"""Of what flows between steps. `text` is UTF-8 in its last side, filled up with zeros; it travels as uint8."""
NUMBERS = ("float32", "int64", "uint8")
MAX_ELEMENTS = 1 << 22
"""Of one value of one sample."""
MAX_TOTAL = 1 << 24
"""Of all values of one sample together."""
MAX_RANK = 6
MAX_SIDE = 1 << 20
MAX_STEPS = 64
MAX_TEXT_BYTES = 1 << 16
LARGE = 1e30


class Step(Protocol):
    """One step. KIND: its name in a document."""

    KIND: ClassVar[str]

    def plan(self, given: Signal, path: str) -> Signal:
        """What comes of one such sample. Raises InvalidSpec, at `path` or below, for one that it does not take."""


class NumberStep(Step, Protocol):
    """A step that runs here."""

    def run(self, x: Array) -> Array:
        """x: (n, *given), of the dtype of what was planned. Raises InvalidSpec for values that it does not take."""


def bounded(dtype: str, shape: Shape, path: str) -> Signal:
    """Raises InvalidSpec for a value that nobody should allocate."""
    if len(shape) > MAX_RANK:
        raise InvalidSpec(path, f"gives {len(shape)} sides, limit {MAX_RANK}")
    if (elements := math.prod(shape)) > MAX_ELEMENTS:
        raise InvalidSpec(path, f"gives {elements} elements a sample, limit {MAX_ELEMENTS}")
    return Signal(dtype, shape)


def need(given: Signal, path: str, *dtypes: str) -> None:
    if given.dtype not in dtypes:
        raise InvalidSpec(path, f"takes {' or '.join(dtypes)}, and is given {given.dtype}")


def need_axis(given: Signal, axis: int, path: str) -> int:
    """From 0. A negative axis counts from the end."""
    if not -len(given.shape) <= axis < len(given.shape):
        raise InvalidSpec(f"{path}.axis", f"is {axis}, of a sample with {len(given.shape)} sides")
    return axis % len(given.shape)


def along(axis: int) -> int:
    """The axis of a batch that is this axis of a sample."""
    return axis if axis < 0 else axis + 1


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    return np.dtype("uint8" if dtype == TEXT else dtype)
