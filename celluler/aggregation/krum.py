"""Krum and Multi-Krum, in integers: the one update, or the several, with the nearest neighbours.

Here to compare with and to choose. Both judge by whole distances, so a lie that hides within the honest spread, or
agrees with its fellows better than honest updates do, is chosen happily.
Source: Blanchard et al. 2017, section 4; Multi-Krum with m = n − f, as in their section 5.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from celluler.aggregation.gram import (
    ExactMatrix,
    align_to_median,
    gram,
    smallest,
    squared_distances,
    squares_in,
    trusted_of,
    weighted_mean,
)
from celluler.aggregation.q16 import Mantissas
from celluler.aggregation.rule import Reduced, check_inputs, pack, weights_of


def krum(exponents: npt.NDArray[np.int16], mantissas: Mantissas, f: int) -> Reduced:
    """See `Rule`. One row has weight 1."""
    return _central(exponents, mantissas, f, several=False)


def multi_krum(exponents: npt.NDArray[np.int16], mantissas: Mantissas, f: int) -> Reduced:
    """See `Rule`. As many rows as are trusted have weight 1; the result is their mean."""
    return _central(exponents, mantissas, f, several=True)


def krum_scores(products: ExactMatrix, trusted: int) -> list[int]:
    """Each row's squared distances to its trusted − 2 nearest others, added up; to one other at least."""
    others = max(1, trusted - 2)
    return [sum(sorted(distances)[: others + 1]) for distances in squared_distances(products)]  # the row itself adds 0


def _central(exponents: npt.NDArray[np.int16], mantissas: Mantissas, f: int, *, several: bool) -> Reduced:
    check_inputs(exponents, mantissas, f)
    kept = align_to_median(exponents, mantissas)
    trusted = trusted_of(kept, f)
    count = trusted if several else 1
    products = gram(kept)
    chosen = smallest(krum_scores(products, trusted), count)
    weights = [int(place in chosen) for place in range(len(kept.rows))]
    values = weighted_mean(kept, weights, count)
    squares = squares_in(products, kept, exponents, mantissas)
    return pack(values, kept.base, weights_of(kept.rows, weights, len(exponents)), squares)
