"""Rule `winsorised-nk`: every coordinate first drawn into the range of its trusted values, then rule NK. In integers.

In each coordinate the f smallest values become the next larger one, the f largest the next smaller. What is left for
NK to weigh are rows that are unremarkable in every coordinate, so that members whose honest updates lie far apart
(data of their own) hide less of a lie. Sources: winsorising, Tukey 1962; NK, see there. Rows are sorted coordinate by
coordinate: dearer than NK alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from celluler.aggregation.gram import align_to_median, trusted_of
from celluler.aggregation.nk import mixed
from celluler.aggregation.q16 import Mantissas
from celluler.aggregation.rule import Aligned, Reduced, check_inputs, pack, squares_of, weights_of


def winsorised_nk(exponents: npt.NDArray[np.int16], mantissas: Mantissas, f: int) -> Reduced:
    """See `Rule`. weights: those of NK."""
    check_inputs(exponents, mantissas, f)
    kept = align_to_median(exponents, mantissas)
    trusted = trusted_of(kept, f)
    values, weights = mixed(winsorised(kept, len(kept.rows) - trusted), trusted)
    spread = weights_of(kept.rows, weights, len(exponents))
    return pack(values, kept.base, spread, squares_of(exponents, mantissas))


def winsorised(kept: Aligned, tail: int) -> Aligned:
    """The rows with the `tail` smallest and largest values of each coordinate drawn in, in one unit. 2·tail < rows.

    That unit is the coarsest but `tail` of the rows: nothing that is left is larger than it can say, and values of
    finer rows are rounded to it, half up.
    """
    rows, width = len(kept.rows), kept.mantissas.shape[1]
    left = np.array(kept.left, dtype=np.int32)[:, None]
    unit = sorted(kept.left)[rows - 1 - tail]
    half = np.int32(1 << unit >> 1)
    drawn = np.empty((rows, width), dtype=np.int16)
    for columns in kept.columns():
        values = kept.block(columns).astype(np.int32) << left
        order = np.sort(values, axis=0)
        np.clip(values, order[tail], order[rows - 1 - tail], out=values)
        values += half
        drawn[:, columns] = values >> unit
    return Aligned(kept.base, kept.rows, (unit,) * rows, (0,) * rows, drawn)
