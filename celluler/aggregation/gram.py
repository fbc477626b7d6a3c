"""What a rule that judges updates by their distances computes with: exact inner products, and points told by shares.

A point between the rows is `Σ share·row / total` with integer shares. Its distances follow from the rows' inner
products alone, so that an iteration costs n² integers however long the rows are, and loses nothing to rounding but
where it says so. Python integers: a squared distance may need 84 bits, one from a point 60 more.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from celluler.aggregation.q16 import ZERO_EXPONENT, Mantissas
from celluler.aggregation.rule import Aggregate, Aligned, align, squares_of

MAX_ABOVE_MEDIAN = 6
"""A row whose exponent lies further above the median is dropped: it is 64 times larger than a usual one."""
MAX_BELOW_MEDIAN = 8
"""The unit of the result lies this far below the median; smaller rows are rounded to it."""

POINT_TOTAL = 1 << 20
"""Shares of a point while it moves."""
WIRE_TOTAL = 1 << 15
"""Shares that leave the rule as weights, which travel as 16 bits each."""

MAX_FLOAT32_SHARES = 1 << 9
"""Times 2^15, the largest mantissa, this is 2^24: as far as float32 counts."""

ExactMatrix = npt.NDArray[np.object_]


def align_to_median(exponents: npt.NDArray[np.int16], mantissas: Mantissas) -> Aligned:
    """The rows whose exponent is not far above the lower median of those of the non-zero rows."""
    present = sorted(int(exponent) for exponent in exponents if exponent != ZERO_EXPONENT)
    median = present[(len(present) - 1) // 2] if present else 0
    rows = tuple(
        row
        for row, exponent in enumerate(exponents)
        if exponent == ZERO_EXPONENT or int(exponent) <= median + MAX_ABOVE_MEDIAN
    )
    return align(exponents, mantissas, rows, median - MAX_BELOW_MEDIAN)


def trusted_of(kept: Aligned, f: int) -> int:
    """How many of the kept rows are taken for good: f of them may be bad, but never half."""
    return len(kept.rows) - min(f, (len(kept.rows) - 1) // 2)


def gram(kept: Aligned) -> ExactMatrix:
    """All inner products of the aligned rows, exact.

    A product of two int16 is at most 2^30, so float64 adds up to 2^23 of them exactly, in any order and with any
    number of threads; the blocks are far smaller, and the blocks' sums are integers.
    """
    size = len(kept.rows)
    total = np.zeros((size, size), dtype=np.int64)
    # One row of zeros more on the right: by its own transpose BLAS multiplies in a way that is slow for few rows.
    scratch = np.zeros((size + 1, kept.width))
    for columns in kept.columns():
        block = kept.block(columns)
        right = scratch[:, : block.shape[1]]
        left = right[:size]
        np.copyto(left, block)
        total += (left @ right.T)[:, :size].astype(np.int64)
    scale = [1 << shift for shift in kept.left]
    exact: ExactMatrix = total.astype(object) * np.multiply.outer(np.array(scale, object), np.array(scale, object))
    return exact


def squares_in(
    products: ExactMatrix, kept: Aligned, exponents: npt.NDArray[np.int16], mantissas: Mantissas
) -> tuple[float, ...]:
    """The squared L2 norm of each input row, in the units of what it stands for. products: `gram` of the kept rows.

    Rows that were dropped, or lost bits when they were aligned, are added up anew.
    """
    kept_whole = [(place, row) for place, row in enumerate(kept.rows) if not kept.right[place]]
    known = {row: math.ldexp(int(products[place, place]), 2 * kept.base) for place, row in kept_whole}
    return squares_of(exponents, mantissas, known)


def squared_distances(products: ExactMatrix) -> list[list[Any]]:
    squares = products.diagonal()
    distances: list[list[Any]] = (squares[:, None] + squares[None, :] - 2 * products).tolist()
    return distances


def smallest(values: list[Any], count: int) -> list[int]:
    """The places of the `count` smallest, the earlier place first where values are equal."""
    return sorted(range(len(values)), key=lambda place: (values[place], place))[:count]


def neighbourhoods(products: ExactMatrix, count: int) -> ExactMatrix:
    """(n, n) of 0 and 1: row i holds the `count` rows nearest to row i, itself among them."""
    near = np.zeros(products.shape, dtype=object)
    for row, distances in enumerate(squared_distances(products)):
        near[row, smallest(distances, count)] = 1
    return near


def distances_from(products: ExactMatrix, shares: list[int]) -> list[int]:
    """The distance of each row from a point, times POINT_TOTAL, rounded down.

    shares: of the rows; what they lack to POINT_TOTAL is the origin's.
    """
    mixed = products.dot(np.array(shares, dtype=object))
    own = int(sum(share * product for share, product in zip(shares, mixed, strict=True)))
    return [
        math.isqrt(POINT_TOTAL * POINT_TOTAL * int(square) - 2 * POINT_TOTAL * int(product) + own)
        for square, product in zip(products.diagonal(), mixed, strict=True)
    ]


def shared_out(parts: list[int], total: int) -> list[int]:
    """Integers that sum to `total`, in proportion to the parts: rounded down, the rest to the largest remainders.

    The earlier place first where remainders are equal. The parts' sum must be positive.
    """
    whole = sum(parts)
    shares = [part * total // whole for part in parts]
    remainders = [-(part * total % whole) for part in parts]
    for place in smallest(remainders, total - sum(shares)):
        shares[place] += 1
    return shares


def weighted_mean(kept: Aligned, weights: list[int], total: int) -> Aggregate:
    """Σ weight·row / total, rounded half up, in units of 2^base. The weights may sum to less than `total` <= 2^15.

    In floats and still exact: sums stay below 2^44, or are taken in float32 where they stay within 2^24. With the odd
    half added every quotient lies at least 1/(4·total) away from an integer, far more than it errs, so that `floor`
    never does.
    """
    least = min(kept.left)
    shares = [weight << (shift - least) for weight, shift in zip(weights, kept.left, strict=True)]
    kind = np.float32 if sum(shares) <= MAX_FLOAT32_SHARES else np.float64
    factors, scratch = np.array(shares, dtype=kind), np.empty((len(shares), kept.width), dtype=kind)
    sums, quotients = np.empty(kept.width, dtype=kind), np.empty(kept.width)
    scale, half = 2.0**least / total, (total + 0.5) / (2.0 * total)
    values = np.empty(kept.mantissas.shape[1], dtype=np.int32)
    for columns in kept.columns():
        block = kept.block(columns)
        size = block.shape[1]
        np.copyto(scratch[:, :size], block)
        np.matmul(factors, scratch[:, :size], out=sums[:size])
        found = np.multiply(sums[:size], scale, out=quotients[:size], dtype=np.float64)
        found += half
        values[columns] = np.floor(found, out=found)
    return values
