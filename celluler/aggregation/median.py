"""The coordinate-wise median, in integers: robust and simple, but no guard against a drift spread over coordinates.

The median of an even number of values is the mean of the two in the middle, rounded half up.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from celluler.aggregation.gram import align_to_median
from celluler.aggregation.q16 import Mantissas
from celluler.aggregation.rule import Aligned, Reduced, check_inputs, pack, squares_of, weights_of


def median(exponents: npt.NDArray[np.int16], mantissas: Mantissas, f: int) -> Reduced:
    """See `Rule`. f plays no part: the median is what it is. weights: 1 for a row that was looked at."""
    check_inputs(exponents, mantissas, f)
    kept = align_to_median(exponents, mantissas)
    values = np.empty(mantissas.shape[1], dtype=np.int32)
    for columns in kept.columns():
        values[columns] = _middle(kept, columns)
    weights = weights_of(kept.rows, [1] * len(kept.rows), len(exponents))
    return pack(values, kept.base, weights, squares_of(exponents, mantissas))


def _middle(kept: Aligned, columns: slice) -> npt.NDArray[np.int32]:
    block = kept.block(columns).astype(np.int32) << np.array(kept.left, dtype=np.int32)[:, None]
    block.sort(axis=0)
    low, high = block[(len(block) - 1) // 2], block[len(block) // 2]
    middle: npt.NDArray[np.int32] = (low + high + 1) >> 1  # each below 2^29 in magnitude: no overflow
    return middle
