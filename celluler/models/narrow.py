"""Weights stored in less than float32: which tensors, in what form, and the way there and back.

Matrices (what has two axes or more) are narrow; biases, norms and running statistics stay float32, since they are few
and what they do is not forgiving. A row is everything behind the first axis.

    bfloat16, float16   rounded to nearest, ties to even
    int8                −127…127 times one float32 scale a row, whose largest value is 127 or −127
    int4                −8…7 times one float16 scale for each 32 values of a row; rows of any other length are int8

The same bytes on any machine: NumPy alone, each operation rounded on its own. Knows no torch and no documents.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from celluler.errors import InvalidSpec
from celluler.models.stored import Stored

Values = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

DTYPES = ("float32", "bfloat16", "float16", "int8", "int4")
NARROW = DTYPES[1:]
GROUP = 32
"""Values of an int4 row that share a scale."""
SCALE = ".scale"
"""Behind the name of a tensor: of its scales."""


def is_narrow(shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape is stored in less than float32 when its model is."""
    return len(shape) >= 2


def form_of(dtype: str, shape: tuple[int, ...]) -> str:
    """In what a narrow tensor is really stored: `dtype`, or int8 where groups of an int4 do not fill its rows."""
    return "int8" if dtype == "int4" and math.prod(shape[1:]) % GROUP else dtype


def stored_as(dtype: str, name: str, shape: tuple[int, ...]) -> tuple[Stored, ...]:
    """What of a narrow tensor lies in the file. Two int4 share a byte, the first in its lower half."""
    rows, length = shape[0], math.prod(shape[1:])
    match form_of(dtype, shape):
        case "int8":
            return Stored(name, "int8", shape), Stored(name + SCALE, "float32", (rows,))
        case "int4":
            groups = Stored(name + SCALE, "float16", (rows, length // GROUP))
            return Stored(name, "uint8", (rows, length // 2)), groups
        case form:
            return (Stored(name, form, shape),)


def narrowed(dtype: str, name: str, values: Values) -> dict[str, Bytes]:
    """The bytes of a tensor by the names of `stored_as`. values: of its shape, finite.

    Raises InvalidSpec for values that leave the range of float16 or bfloat16.
    """
    match form := form_of(dtype, values.shape):
        case "int8":
            codes, scales = _int8(values.reshape(len(values), -1))
            return {name: _bytes(codes), name + SCALE: _bytes(scales)}
        case "int4":
            nibbles, groups = _int4(values.reshape(len(values), -1, GROUP))
            return {name: _bytes(nibbles), name + SCALE: _bytes(groups)}
    halves = _bfloat16(values) if form == "bfloat16" else _float16(values)
    if not np.isfinite(_floats(form, halves)).all():
        raise InvalidSpec(f"weights.{name}", f"leaves the range of {form}", hint="choose bfloat16 or int8")
    return {name: _bytes(halves)}


def widened(dtype: str, shape: tuple[int, ...], stored: tuple[Bytes, ...]) -> Values:
    """The float32 values that a narrow tensor stands for. stored: in the order of `stored_as`.

    Raises InvalidSpec for one that is not finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # of what is refused below
        values = _widened(form_of(dtype, shape), shape, stored)
    if not np.isfinite(values).all():
        raise InvalidSpec("weights", "hold values that are not finite")
    widened: Values = values.astype(np.float32, copy=False).reshape(shape)
    return widened


def _widened(form: str, shape: tuple[int, ...], stored: tuple[Bytes, ...]) -> Values:
    match form:
        case "int8":
            scales: Values = stored[1].view("<f4")[:, None]
            return stored[0].view(np.int8).reshape(shape[0], -1) * scales
        case "int4":
            codes = np.stack((stored[0] & 15, stored[0] >> 4), axis=-1).reshape(shape[0], -1, GROUP)
            scales = stored[1].view("<f2").astype(np.float32).reshape(shape[0], -1, 1)
            return (codes.astype(np.int8) - np.int8(8)) * scales
    return _floats(form, stored[0].view("<u2" if form == "bfloat16" else "<f2"))


# --- each form -------------------------------------------------------------------------------------------------------


def _int8(rows: Values) -> tuple[npt.NDArray[np.int8], Values]:
    scales = (np.abs(rows).max(axis=1) / np.float32(127)).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.nan_to_num(np.rint(rows / scales[:, None]), posinf=0, neginf=0)
    return np.clip(codes, -127, 127).astype(np.int8), scales


def _int4(groups: Values) -> tuple[Bytes, npt.NDArray[np.float16]]:
    """groups: (rows, groups, 32). The value farthest from zero becomes −8, so that all sixteen codes are used."""
    farthest = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[..., None], axis=2)
    scales = _float16(np.clip(farthest / np.float32(-8), -65504, 65504))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        codes = np.nan_to_num(np.rint(groups / scales.astype(np.float32)), posinf=0, neginf=0)
    shifted = (np.clip(codes, -8, 7) + 8).astype(np.uint8).reshape(len(groups), -1, 2)
    return shifted[..., 0] | shifted[..., 1] << 4, scales.reshape(groups.shape[:2])


def _float16(values: Values) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore"):
        return values.astype("<f2")


def _bfloat16(values: Values) -> npt.NDArray[np.uint16]:
    """The upper halves of the bits, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype("<u2")


def _floats(form: str, halves: npt.NDArray[Any]) -> Values:
    if form == "bfloat16":
        return (halves.astype("<u4") << 16).view("<f4")
    return halves.astype(np.float32)


def _bytes(values: npt.NDArray[Any]) -> Bytes:
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).reshape(-1).view(np.uint8)
