"""The plain mean, in integers. It resists nothing: one row times -1000 moves it. It is here to compare with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from celluler.aggregation.gram import weighted_mean
from celluler.aggregation.q16 import ZERO_EXPONENT, Mantissas
from celluler.aggregation.rule import MAX_LEFT_SHIFT, Reduced, align, check_inputs, pack, squares_of


def mean(exponents: npt.NDArray[np.int16], mantissas: Mantissas, f: int) -> Reduced:
    """See `Rule`. f plays no part, every row has weight 1 and none is dropped, however large.

    The unit follows the largest row, so rows 2^14 times smaller lose their last bits.
    """
    check_inputs(exponents, mantissas, f)
    present = [int(exponent) for exponent in exponents if exponent != ZERO_EXPONENT]
    base = max(present) - MAX_LEFT_SHIFT if present else 0
    rows = tuple(range(len(exponents)))
    values = weighted_mean(align(exponents, mantissas, rows, base), [1] * len(rows), len(rows))
    return pack(values, base, (1,) * len(rows), squares_of(exponents, mantissas))
