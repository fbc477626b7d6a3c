"""q16, the wire form of an update: one exponent and 16-bit mantissas a part, so that value = mantissa · 2^exponent.

No NaN, no infinity and no declared weight can be written in it. Encoding rounds half to even and never depends on
the machine: scaling by a power of two is exact.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from celluler.errors import LocalError

Mantissas = npt.NDArray[np.int16]
Values = npt.NDArray[np.float32]

ZERO_EXPONENT = -1000
"""The exponent of a part that is zero everywhere."""
MIN_EXPONENT, MAX_EXPONENT = -163, 113
"""Those of the smallest and the largest float32: an update's part has no other, save ZERO_EXPONENT."""
MIN_REDUCED_EXPONENT = -177
"""An aggregate may keep up to 14 bits more below its inputs."""
WIRE_DTYPE = np.dtype("<i2")

_MANTISSA_BITS = 15
_LARGEST = (1 << _MANTISSA_BITS) - 1  # -32768 is never written, so that negation is always possible
_BLOCK = 1 << 16  # values scaled at a time: the temporaries stay in the cache
_FLOAT32_NORMAL = range(-126, 128)  # exponents of powers of two that float32 holds as normal numbers


@dataclass(frozen=True, slots=True)
class Quantised:
    """One part. mantissas: (d,) int16."""

    exponent: int
    mantissas: Mantissas


def encode(values: Values) -> Quantised:
    """The wire form of one part; each value is off by at most 2^exponent, by half of that unless it is the largest.

    values: (d,) float32. Raises LocalError for another shape or type, or a value that is not finite.
    """
    mantissas = np.empty(values.shape, dtype=np.int16)
    return Quantised(_encode_into(mantissas, values), mantissas)


def decode(part: Quantised) -> Values:
    """The values a part stands for: (d,) float32. Raises LocalError for an exponent no part has."""
    values = np.empty(part.mantissas.shape, dtype=np.float32)
    _decode_into(values, part)
    return values


def encode_parts(values: Values, parts: int) -> tuple[tuple[int, ...], Mantissas]:
    """An update cut into parts: (exponent of each part, mantissas (d,) int16 of all of them in order)."""
    mantissas = np.empty(values.shape, dtype=np.int16)
    pieces = part_slices(values.size, parts)
    return tuple(_encode_into(mantissas[piece], values[piece]) for piece in pieces), mantissas


def decode_parts(exponents: tuple[int, ...], mantissas: Mantissas) -> Values:
    """The inverse of `encode_parts`: (d,) float32."""
    values = np.empty(mantissas.shape, dtype=np.float32)
    pieces = part_slices(mantissas.size, len(exponents))
    for exponent, piece in zip(exponents, pieces, strict=True):
        _decode_into(values[piece], Quantised(exponent, mantissas[piece]))
    return values


def is_exponent(exponent: int) -> bool:
    """Whether `encode` could have given it: what a peer claims must be checked."""
    return exponent == ZERO_EXPONENT or MIN_EXPONENT <= exponent <= MAX_EXPONENT


def part_slices(dimension: int, parts: int) -> tuple[slice, ...]:
    """Where each part lies in the whole: sizes differ by at most one, the longer ones first.

    Raises LocalError unless 1 <= parts <= dimension: a part is never empty.
    """
    if not 1 <= parts <= dimension:
        raise LocalError(f"{dimension} values cannot be cut into {parts} parts")
    size, longer = divmod(dimension, parts)
    starts = [part * size + min(part, longer) for part in range(parts + 1)]
    return tuple(slice(start, end) for start, end in itertools.pairwise(starts))


def _encode_into(mantissas: Mantissas, values: Values) -> int:
    """Fill `mantissas` and give the exponent."""
    if values.ndim != 1 or values.dtype != np.float32:
        raise LocalError(f"a part is a float32 vector, not {values.dtype} of shape {values.shape}")
    largest = float(max(values.max(), -values.min())) if values.size else 0.0
    if not math.isfinite(largest):
        raise LocalError("an update with a value that is not finite cannot be sent")
    if largest == 0.0:
        mantissas[:] = 0
        return ZERO_EXPONENT
    exponent = math.frexp(largest)[1] - _MANTISSA_BITS
    factor = _power_of_two(-exponent)
    for block in _blocks(values.size):
        scaled = values[block] * factor
        np.rint(scaled, out=scaled)
        np.clip(scaled, -_LARGEST, _LARGEST, out=scaled)
        mantissas[block] = scaled
    return exponent


def _decode_into(values: Values, part: Quantised) -> None:
    if part.exponent == ZERO_EXPONENT:
        values[:] = 0
        return
    if not MIN_REDUCED_EXPONENT <= part.exponent <= MAX_EXPONENT:
        raise LocalError(f"exponent {part.exponent} is outside {MIN_REDUCED_EXPONENT}..{MAX_EXPONENT}")
    factor = _power_of_two(part.exponent)
    for block in _blocks(values.size):
        values[block] = part.mantissas[block] * factor


def _blocks(size: int) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, size, _BLOCK)]


def _power_of_two(exponent: int) -> np.float32 | np.float64:
    """2^exponent; in float32 where that loses nothing, since it is twice as fast."""
    return np.float32(2.0**exponent) if exponent in _FLOAT32_NORMAL else np.float64(2.0**exponent)
