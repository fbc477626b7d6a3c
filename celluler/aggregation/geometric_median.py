"""The geometric median, in integers: the point whose distances to the updates add up to least.

Weiszfeld's iteration, smoothed and of a fixed number of steps, on shares instead of coordinates (see `gram`).
Source: Pillutla et al. 2022 (RFA), algorithm 2.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from celluler.aggregation.gram import (
    POINT_TOTAL,
    WIRE_TOTAL,
    ExactMatrix,
    align_to_median,
    distances_from,
    gram,
    shared_out,
    squares_in,
    weighted_mean,
)
from celluler.aggregation.q16 import Mantissas
from celluler.aggregation.rule import Reduced, check_inputs, pack, weights_of

STEPS = 16
SMOOTHING_SHIFT = 10
"""A distance counts as at least the lower median distance over 2^this: no row takes all the weight by being hit."""


def geometric_median(exponents: npt.NDArray[np.int16], mantissas: Mantissas, f: int) -> Reduced:
    """See `Rule`. f plays no part. weights sum to WIRE_TOTAL."""
    check_inputs(exponents, mantissas, f)
    kept = align_to_median(exponents, mantissas)
    products = gram(kept)
    weights = shared_out(_shares(products), WIRE_TOTAL)
    values = weighted_mean(kept, weights, WIRE_TOTAL)
    squares = squares_in(products, kept, exponents, mantissas)
    return pack(values, kept.base, weights_of(kept.rows, weights, len(exponents)), squares)


def _shares(products: ExactMatrix) -> list[int]:
    rows = len(products)
    shares = shared_out([1] * rows, POINT_TOTAL)
    for _ in range(STEPS):
        distances = distances_from(products, shares)
        least = max(1, sorted(distances)[(rows - 1) // 2] >> SMOOTHING_SHIFT)
        farthest = max(least, *distances)
        shares = shared_out([farthest * POINT_TOTAL // max(least, distance) for distance in distances], POINT_TOTAL)
    return shares
