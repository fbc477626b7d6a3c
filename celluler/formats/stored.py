"""Tensors that lie in somebody's file: name, shape and type first, values when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from celluler.errors import InvalidSpec

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

MAX_TENSORS = 20_000
MAX_ELEMENTS = 1 << 40
MAX_NAME = 512

NUMPY_DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # numpy has none: the upper half of a float32
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
"""The types that safetensors names, and what numpy reads them as."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a file. dtype: as safetensors names it, or a GGUF block type (`Q8_0`). load: reads the values."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], Array]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def floats(self) -> Floats:
        """float32, whatever it is stored as. Raises InvalidSpec for values that no float32 is, or not finite."""
        with np.errstate(all="ignore"):
            values = self.load()
        if self.dtype == "BF16":
            values = widen_bfloat16(values)
        if not np.issubdtype(values.dtype, np.floating):
            raise InvalidSpec(f"tensors.{self.name[:64]}", f"holds {self.dtype}, not floating-point numbers")
        with np.errstate(all="ignore"):
            floats = np.ascontiguousarray(values, dtype=np.float32).reshape(self.shape)
        if not np.isfinite(floats).all():
            raise InvalidSpec(f"tensors.{self.name[:64]}", "holds values that are not finite in float32")
        return floats


Tensors = Mapping[str, Stored]


def widen_bfloat16(bits: Array) -> Floats:
    """bits: uint16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def map_array(path: Path, dtype: np.dtype[Any], start: int, shape: tuple[int, ...]) -> Array:
    """The values at byte `start` of a file, mapped. The caller has checked that they are there."""
    if math.prod(shape) == 0:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=start, shape=shape)
