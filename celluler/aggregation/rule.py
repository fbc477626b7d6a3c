"""What every aggregation rule takes and gives, and the two integer steps they share: aligning and packing.

Rows of different exponents are made comparable by writing them all in units of 2^base: a mantissa is shifted left
by `exponent - base`, at most MAX_LEFT_SHIFT, so that an aligned value fits 31 bits; a row whose exponent is below
the base is shifted right first (arithmetically: towards minus infinity).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from celluler.aggregation.q16 import MAX_EXPONENT, ZERO_EXPONENT, Mantissas, is_exponent
from celluler.errors import LocalError

MAX_ROWS = 64
"""Peers in one group."""
MAX_LEFT_SHIFT = 14
BLOCK_CELLS = 1 << 16
"""Cells aligned at a time: as float64 they are 512 KiB, two of which a second-level cache holds."""

_RIGHT_SHIFT_END = 15  # shifted this far an int16 is 0 or -1, and further shifts change nothing
_MANTISSA_BITS = 15
_LARGEST = (1 << _MANTISSA_BITS) - 1

Aggregate = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Reduced:
    """The aggregate of one part. weights: how much each input row counted, (n,); a row dropped has 0.

    squares: the squared L2 norm of each input row, (n,), in the units of what it stands for. No part of the result.
    """

    exponent: int
    mantissas: Mantissas
    weights: tuple[int, ...]
    squares: tuple[float, ...]


class Rule(Protocol):
    def __call__(self, exponents: npt.NDArray[np.int16], mantissas: Mantissas, f: int, /) -> Reduced:
        """Aggregate n inputs of one part. Deterministic bit for bit.

        exponents: (n,) int16. mantissas: (n, d) int16. f: how many inputs may be bad.
        Raises LocalError for other shapes or types, an exponent outside q16, n outside 1..64, d = 0 or f < 0.
        """


@dataclass(frozen=True, slots=True)
class Aligned:
    """Rows in units of 2^base. rows: which inputs; left, right: the shift of each."""

    base: int
    rows: tuple[int, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]
    mantissas: Mantissas

    @property
    def width(self) -> int:
        """Of a block: how many columns."""
        return min(max(1, BLOCK_CELLS // len(self.rows)), int(self.mantissas.shape[1]))

    def columns(self) -> list[slice]:
        """The blocks in which to walk over the part."""
        return [slice(start, start + self.width) for start in range(0, self.mantissas.shape[1], self.width)]

    def block(self, columns: slice) -> Mantissas:
        """(rows, block) int16, shifted right where it must be but not yet left. Not to be written to."""
        if len(self.rows) == len(self.mantissas) and not any(self.right):
            return self.mantissas[:, columns]
        block = self.mantissas[list(self.rows), columns]
        for place, shift in enumerate(self.right):
            if shift:
                block[place] >>= shift
        return block


def check_inputs(exponents: npt.NDArray[np.int16], mantissas: Mantissas, f: int) -> None:
    if exponents.dtype != np.int16 or mantissas.dtype != np.int16 or mantissas.ndim != 2:
        raise LocalError("a rule takes int16 exponents and an int16 matrix")
    if exponents.shape != mantissas.shape[:1] or not 1 <= mantissas.shape[0] <= MAX_ROWS or not mantissas.shape[1]:
        raise LocalError(f"{exponents.shape} exponents for a matrix of {mantissas.shape}; 1..{MAX_ROWS} rows")
    if not all(is_exponent(int(exponent)) for exponent in exponents):
        raise LocalError("an exponent that no part has")
    if f < 0:
        raise LocalError(f"f is {f}")


def align(exponents: npt.NDArray[np.int16], mantissas: Mantissas, rows: tuple[int, ...], base: int) -> Aligned:
    """Those rows in units of 2^base; none may lie more than MAX_LEFT_SHIFT above it."""
    shifts = [0 if exponents[row] == ZERO_EXPONENT else int(exponents[row]) - base for row in rows]
    left = tuple(max(shift, 0) for shift in shifts)
    right = tuple(min(max(-shift, 0), _RIGHT_SHIFT_END) for shift in shifts)
    assert max(left) <= MAX_LEFT_SHIFT
    return Aligned(base, rows, left, right, mantissas)


def squares_of(
    exponents: npt.NDArray[np.int16],
    mantissas: Mantissas,
    known: Mapping[int, float] = MappingProxyType({}),
) -> tuple[float, ...]:
    """The squared L2 norm of each row. known: those by row that need not be computed. A zero part's is 0."""
    return tuple(
        0.0 if exponent == ZERO_EXPONENT else known[row] if row in known else _square(int(exponent), mantissas[row])
        for row, exponent in enumerate(exponents)
    )


def _square(exponent: int, row: npt.NDArray[np.int16]) -> float:
    """A product of two int16 is at most 2^30: float64 adds up a block of them exactly."""
    total = 0
    for start in range(0, row.size, BLOCK_CELLS):
        block = row[start : start + BLOCK_CELLS].astype(np.float64)
        total += int(block @ block)
    return math.ldexp(total, 2 * exponent)


def pack(values: Aggregate, base: int, weights: tuple[int, ...], squares: tuple[float, ...]) -> Reduced:
    """The wire form of an aggregate given in units of 2^base: the fewest bits dropped that fit 15, rounded half up.

    Inputs of −2^15 in the largest exponent, which no encoder writes but a liar may, are cut to what the wire can say.
    """
    largest = max(int(values.max()), -int(values.min()))
    if largest == 0:
        return Reduced(ZERO_EXPONENT, np.zeros(values.size, dtype=np.int16), weights, squares)
    shift = min(max(0, largest.bit_length() - _MANTISSA_BITS), MAX_EXPONENT - base)
    half = 1 << (shift - 1) if shift else 0
    mantissas = np.empty(values.size, dtype=np.int16)
    for start in range(0, values.size, BLOCK_CELLS):
        block = values[start : start + BLOCK_CELLS] + np.int32(half)
        block >>= shift
        # Rounding up may reach 2^15 at the very top: one unit less is nearer than doubling every other value's error.
        mantissas[start : start + BLOCK_CELLS] = np.clip(block, -_LARGEST, _LARGEST, out=block)
    return Reduced(base + shift, mantissas, weights, squares)


def weights_of(rows: tuple[int, ...], weights: list[int], inputs: int) -> tuple[int, ...]:
    """The weights of the kept rows, spread over all the inputs."""
    spread = [0] * inputs
    for row, weight in zip(rows, weights, strict=True):
        spread[row] = weight
    return tuple(spread)
