"""Rule NK: nearest-neighbour mixing, then a Krum average, in integers only.

Each row is replaced by the sum of its m nearest rows (itself included), the m most central of those sums are
chosen, and their average is the result. Up to f rows may be anything; see docs/explanation/aggregation.md.
Sources: mixing, Allouah et al. 2023 (nearest-neighbour mixing); the score, Blanchard et al. 2017 (Krum).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from celluler.aggregation.q16 import ZERO_EXPONENT, Mantissas
from celluler.aggregation.rule import Aggregate, Aligned, Reduced, align, check_inputs, pack, weights_of

MAX_ABOVE_MEDIAN = 6
"""A row whose exponent lies further above the median is dropped: it is 64 times larger than a usual one."""
MAX_BELOW_MEDIAN = 8
"""The unit of the result lies this far below the median; smaller rows are rounded to it."""

ExactMatrix = npt.NDArray[np.object_]
"""Python integers: a squared distance may need 84 bits."""


def nk(exponents: npt.NDArray[np.int16], mantissas: Mantissas, f: int) -> Reduced:
    """See `Rule`. weights sum to m², m being how many of the kept rows are trusted."""
    check_inputs(exponents, mantissas, f)
    kept = align_to_median(exponents, mantissas)
    trusted = len(kept.rows) - min(f, (len(kept.rows) - 1) // 2)
    weights = nk_weights(gram(kept), trusted)
    values = weighted_mean(kept, weights, trusted * trusted)
    return pack(values, kept.base, weights_of(kept.rows, weights, len(exponents)))


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


def gram(kept: Aligned) -> ExactMatrix:
    """All inner products of the aligned rows, exact.

    A product of two int16 is at most 2^30, so float64 adds up to 2^23 of them exactly, in any order and with any
    number of threads; the blocks are far smaller, and the blocks' sums are integers.
    """
    size = len(kept.rows)
    total = np.zeros((size, size), dtype=np.int64)
    for columns in kept.columns():
        block = kept.block(columns).astype(np.float64)
        total += (block @ block.T).astype(np.int64)
    scale = [1 << shift for shift in kept.left]
    exact: ExactMatrix = total.astype(object) * np.multiply.outer(np.array(scale, object), np.array(scale, object))
    return exact


def nk_weights(products: ExactMatrix, trusted: int) -> list[int]:
    """How often each row is in the neighbourhood of a chosen row. products: (n, n), exact."""
    near = np.zeros(products.shape, dtype=object)
    for row, distances in enumerate(_squared_distances(products)):
        near[row, _smallest(distances, trusted)] = 1
    between_sums = _squared_distances(near.dot(products).dot(near.T))
    scores = [sum(sorted(distances)[:trusted]) for distances in between_sums]
    chosen = _smallest(scores, trusted)
    return [int(count) for count in near[chosen].sum(axis=0)]


def weighted_mean(kept: Aligned, weights: list[int], total: int) -> Aggregate:
    """Σ weight·row / total, rounded half up, in units of 2^base.

    In float64 and still exact: sums stay below 2^44, and a quotient that is no integer is at least 1/(2·total) away
    from one, far more than the division's error, so that `floor` never errs.
    """
    factors = np.array([2.0 * (weight << shift) for weight, shift in zip(weights, kept.left, strict=True)])
    values = np.empty(kept.mantissas.shape[1], dtype=np.int32)
    for columns in kept.columns():
        quotients = factors @ kept.block(columns).astype(np.float64)
        quotients += total
        quotients /= 2.0 * total
        values[columns] = np.floor(quotients, out=quotients)
    return values


def _squared_distances(products: ExactMatrix) -> list[list[Any]]:
    squares = products.diagonal()
    distances: list[list[Any]] = (squares[:, None] + squares[None, :] - 2 * products).tolist()
    return distances


def _smallest(values: list[Any], count: int) -> list[int]:
    """The places of the `count` smallest, the earlier place first where values are equal."""
    return sorted(range(len(values)), key=lambda place: (values[place], place))[:count]
