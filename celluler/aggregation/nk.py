"""Rule NK: nearest-neighbour mixing, then a Krum average, in integers only.

Each row is replaced by the sum of its m nearest rows (itself included), the m most central of those sums are
chosen, and their average is the result. Up to f rows may be anything; see docs/explanation/aggregation.md.
Sources: mixing, Allouah et al. 2023 (nearest-neighbour mixing); the score, Blanchard et al. 2017 (Krum).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from celluler.aggregation.gram import (
    ExactMatrix,
    align_to_median,
    gram,
    neighbourhoods,
    smallest,
    squared_distances,
    squares_in,
    trusted_of,
    weighted_mean,
)
from celluler.aggregation.q16 import Mantissas
from celluler.aggregation.rule import Aggregate, Aligned, Reduced, check_inputs, pack, weights_of


def nk(exponents: npt.NDArray[np.int16], mantissas: Mantissas, f: int) -> Reduced:
    """See `Rule`. weights sum to m², m being how many of the kept rows are trusted."""
    check_inputs(exponents, mantissas, f)
    kept = align_to_median(exponents, mantissas)
    trusted = trusted_of(kept, f)
    products = gram(kept)
    values, weights = mixed(kept, trusted, products)
    squares = squares_in(products, kept, exponents, mantissas)
    return pack(values, kept.base, weights_of(kept.rows, weights, len(exponents)), squares)


def mixed(kept: Aligned, trusted: int, products: ExactMatrix | None = None) -> tuple[Aggregate, list[int]]:
    """The result in units of 2^base, and the weights of the kept rows. products: `gram` of them."""
    weights = nk_weights(gram(kept) if products is None else products, trusted)
    return weighted_mean(kept, weights, trusted * trusted), weights


def nk_weights(products: ExactMatrix, trusted: int) -> list[int]:
    """How often each row is in the neighbourhood of a chosen row. products: (n, n), exact."""
    near = neighbourhoods(products, trusted)
    between_sums = squared_distances(near.dot(products).dot(near.T))
    scores = [sum(sorted(distances)[:trusted]) for distances in between_sums]
    chosen = smallest(scores, trusted)
    return [int(count) for count in near[chosen].sum(axis=0)]
