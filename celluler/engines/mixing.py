"""Self-centred clipping: our model moved towards our neighbours', none of which can pull it farther than a radius.

    x ← x + Σ w_j · min(1, τ / ‖x_j − x‖) · (x_j − x)

The centre is our own model: in a sparse graph a median or a mean of what neighbours sent is steered by whoever sits at
a narrow place, while our own model is the one that nobody else wrote. τ is the root mean square, by weight, of the
distances of the nearest `trusted` neighbours: equal neighbours are mixed in whole, and a liar pulls no farther than an
honest neighbour of ordinary distance. Where too few neighbours are there to tell any of them from a liar, τ is the
length of our own last step, so that none of them can undo more than we learned.

Float32 throughout but for lengths, which are summed in float64. Nothing is certified by it, so it need not be equal on
two machines. Knows nothing of rounds or peers.
Source: He, Karimireddy, Jaggi 2022 (ClippedGossip), whose radius depends on how much weight the liars have; as nobody
knows that, ours is found from the distances alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from celluler.errors import LocalError

Vector = npt.NDArray[np.float32]

LARGEST_DEVIATION = 1e9
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Mixture:
    """vector: (d,) float32. deviations: how far each row lay from our own, relative to its length.

    pulls: how much of each difference was let in, 0…1.
    """

    vector: Vector
    deviations: tuple[float, ...]
    pulls: tuple[float, ...]


def clipped(
    own: Vector, rows: Sequence[Vector], weights: Sequence[float], *, trusted: int | None, step: float
) -> Mixture:
    """Move `own` towards the rows.

    own: (d,) float32. rows: of the same shape, finite; each asked for twice, one after the other, so that they may be
    made then. weights: one a row, not negative, together at most 1. trusted: how many rows set the radius, the
    nearest; None for the length of our last step instead. step: that length. Raises LocalError for other weights.
    """
    _check(rows, weights)
    if trusted is not None and not 0 <= trusted <= len(rows):
        raise LocalError(f"{trusted} trusted rows of {len(rows)}")
    distances = [length_between(rows[place], own) for place in range(len(rows))]
    radius = step if trusted is None else _radius(distances, weights, trusted)
    pulls = [1.0 if distance <= radius else radius / distance for distance in distances]
    return _mixture(own, rows, weights, distances, pulls)


def averaged(own: Vector, rows: Sequence[Vector], weights: Sequence[float]) -> Mixture:
    """The plain weighted mean: what a run asks for that trusts all its members. As `clipped` without a radius."""
    _check(rows, weights)
    distances = [length_between(rows[place], own) for place in range(len(rows))]
    return _mixture(own, rows, weights, distances, [1.0] * len(rows))


def length_between(one: Vector, two: Vector) -> float:
    """Euclidean, summed in float64: finite for all float32."""
    total = 0.0
    for start in range(0, len(two), _BLOCK):
        part = one[start : start + _BLOCK].astype(np.float64) - two[start : start + _BLOCK]
        total += float(part @ part)
    return math.sqrt(total)


def _radius(distances: Sequence[float], weights: Sequence[float], trusted: int) -> float:
    nearest = sorted(range(len(distances)), key=lambda row: (distances[row], row))[:trusted]
    weight = math.fsum(weights[row] for row in nearest)
    if weight <= 0:
        return 0.0
    return math.sqrt(math.fsum(weights[row] * distances[row] ** 2 for row in nearest) / weight)


def _mixture(
    own: Vector, rows: Sequence[Vector], weights: Sequence[float], distances: Sequence[float], pulls: Sequence[float]
) -> Mixture:
    vector = own.astype(np.float32, copy=True)
    for place, (weight, pull) in enumerate(zip(weights, pulls, strict=True)):
        row, factor = rows[place], weight * pull
        for start in range(0, len(own), _BLOCK):
            block = slice(start, start + _BLOCK)
            difference = row[block].astype(np.float64) - own[block]
            vector[block] += (factor * difference).astype(np.float32)
    length = length_between(np.zeros_like(own), own)
    return Mixture(vector, tuple(_relative(distance, length) for distance in distances), tuple(pulls))


def _relative(distance: float, length: float) -> float:
    if distance == 0.0:
        return 0.0
    return min(distance / length, LARGEST_DEVIATION) if length > 0.0 else LARGEST_DEVIATION


def _check(rows: Sequence[Vector], weights: Sequence[float]) -> None:
    if len(rows) != len(weights) or any(not weight >= 0 for weight in weights) or math.fsum(weights) > 1 + 1e-9:
        raise LocalError("mixing takes one weight a row, none negative, together at most 1")
