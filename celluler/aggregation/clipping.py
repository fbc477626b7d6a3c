"""Centred clipping, in integers: from a centre, a mean step towards the updates in which no far one pulls harder.

    v ← v + 1/n · Σ (x_i − v) · min(1, τ / ‖x_i − v‖)

`clipping` starts at zero with a τ that never changes, as usually published. `nnm_cc` mixes each update with its
nearest neighbours first, starts at the most central mixture, and takes for τ the distance within which the trusted
ones lie. Sources: Karimireddy et al. 2021, section 4; Allouah et al. 2023, for the mixing.
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
    neighbourhoods,
    shared_out,
    smallest,
    squared_distances,
    squares_in,
    trusted_of,
    weighted_mean,
)
from celluler.aggregation.q16 import Mantissas
from celluler.aggregation.rule import Aligned, Reduced, check_inputs, pack, weights_of

STEPS = 3
RADIUS_EXPONENT = -3
"""τ of `clipping` is 2^this in every part: whoever chooses the rule must know how large updates are."""


def clipping(exponents: npt.NDArray[np.int16], mantissas: Mantissas, f: int) -> Reduced:
    """See `Rule`. f plays no part. weights sum to WIRE_TOTAL at most: what they lack is the weight of zero."""
    check_inputs(exponents, mantissas, f)
    kept = align_to_median(exponents, mantissas)
    products, radius = gram(kept), _radius(kept.base)
    shares = [0] * len(kept.rows)
    for _ in range(STEPS):
        shares = _step(products, shares, radius)
    weights = shared_out([*shares, POINT_TOTAL - sum(shares)], WIRE_TOTAL)[:-1]
    return _reduced(kept, weights, squares_in(products, kept, exponents, mantissas))


def nnm_cc(exponents: npt.NDArray[np.int16], mantissas: Mantissas, f: int) -> Reduced:
    """See `Rule`. weights sum to WIRE_TOTAL."""
    check_inputs(exponents, mantissas, f)
    kept = align_to_median(exponents, mantissas)
    trusted = trusted_of(kept, f)
    products = gram(kept)
    near = neighbourhoods(products, trusted)
    shares = _between_mixtures(near.dot(products).dot(near.T), trusted)
    weights = shared_out([int(one) for one in near.T.dot(shares)], WIRE_TOTAL)
    return _reduced(kept, weights, squares_in(products, kept, exponents, mantissas))


def _between_mixtures(products: ExactMatrix, trusted: int) -> list[int]:
    """The shares of the mixtures in the result. All distances here are `trusted` times those of the mixtures."""
    scores = [sum(sorted(distances)[:trusted]) for distances in squared_distances(products)]
    centre = smallest(scores, 1)[0]
    shares = [POINT_TOTAL * (place == centre) for place in range(len(products))]
    for _ in range(STEPS):
        shares = _step(products, shares, sorted(distances_from(products, shares))[trusted - 1])
    return shares


def _step(products: ExactMatrix, shares: list[int], radius: int) -> list[int]:
    """One step from a point. radius: τ times POINT_TOTAL, in units of the rows."""
    rows = len(products)
    pulls = [
        POINT_TOTAL if distance <= radius else POINT_TOTAL * radius // distance
        for distance in distances_from(products, shares)
    ]
    stays = rows * POINT_TOTAL - sum(pulls)
    origin = POINT_TOTAL - sum(shares)
    moved = [share * stays + pull * POINT_TOTAL for share, pull in zip(shares, pulls, strict=True)]
    return shared_out([*moved, origin * stays], POINT_TOTAL)[:-1]


def _radius(base: int) -> int:
    """τ of `clipping` times POINT_TOTAL, in units of 2^base."""
    shift = RADIUS_EXPONENT - base
    return POINT_TOTAL << shift if shift >= 0 else POINT_TOTAL >> -shift


def _reduced(kept: Aligned, weights: list[int], squares: tuple[float, ...]) -> Reduced:
    spread = weights_of(kept.rows, weights, len(squares))
    return pack(weighted_mean(kept, weights, WIRE_TOTAL), kept.base, spread, squares)
