"""The coordinate-wise trimmed mean, in integers: the f smallest and the f largest left out, the mean of the rest.

Source: Yin et al. 2018, definition 2. Like the median no guard against a drift spread over coordinates.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from celluler.aggregation.gram import align_to_median, trusted_of
from celluler.aggregation.q16 import Mantissas
from celluler.aggregation.rule import Aligned, Reduced, check_inputs, pack, squares_of, weights_of


def trimmed_mean(exponents: npt.NDArray[np.int16], mantissas: Mantissas, f: int) -> Reduced:
    """See `Rule`. weights: 1 for a row that was looked at."""
    check_inputs(exponents, mantissas, f)
    kept = align_to_median(exponents, mantissas)
    trimmed = len(kept.rows) - trusted_of(kept, f)
    values = np.empty(mantissas.shape[1], dtype=np.int32)
    for columns in kept.columns():
        values[columns] = _mean_of_rest(kept, columns, trimmed)
    weights = weights_of(kept.rows, [1] * len(kept.rows), len(exponents))
    return pack(values, kept.base, weights, squares_of(exponents, mantissas))


def _mean_of_rest(kept: Aligned, columns: slice, trimmed: int) -> npt.NDArray[np.int64]:
    block = kept.block(columns).astype(np.int32) << np.array(kept.left, dtype=np.int32)[:, None]
    block.sort(axis=0)
    rest = block[trimmed : len(block) - trimmed]
    total: npt.NDArray[np.int64] = rest.sum(axis=0, dtype=np.int64)
    return (2 * total + len(rest)) // (2 * len(rest))
