"""Attacks by liars that know what honest members send, and agree on one lie.

In the simulation they know every honest update. In a real node they compute them: data and batches are public, so a
liar may train in another member's place (`trainer.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from celluler.aggregation.q16 import Quantised, Values, decode, encode
from celluler.aggregation.rules import rule_named
from simulations.attacks.updates import Scene, UpdateAttack

Vector = npt.NDArray[np.float64]

STEPS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 4.0, 8.0)
"""How far those who adapt look, in typical distances of an honest update from the honest mean."""


class Colluder(UpdateAttack):
    knows_others: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class InnerProduct(Colluder):
    """IPM: the honest mean, backwards. Xie et al. 2020."""

    times: float = 0.6

    def __call__(self, scene: Scene) -> Values:
        return (-self.times * _mean(scene)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class LittleIsEnough(Colluder):
    """ALIE: off the mean in every coordinate by as much as hides in the honest spread. Baruch et al. 2019, algorithm 3.

    z: standard deviations; 0 for what numbers of members and liars give.
    """

    z: float = 0.0

    def __call__(self, scene: Scene) -> Values:
        return (_mean(scene) - (self.z or _hidden_deviations(scene)) * _spread(scene)).astype(np.float32)


@dataclass(slots=True)
class Mimic(Colluder):
    """All copy one honest member: the one farthest out where honest members differ most. Karimireddy et al. 2022, B."""

    _axis: Vector | None = field(default=None, repr=False)

    def __call__(self, scene: Scene) -> Values:
        apart = scene.honest.astype(np.float64) - _mean(scene)
        if self._axis is None:
            self._axis = np.random.default_rng(0).standard_normal(apart.shape[1])
        for _ in range(3):  # the power iteration follows the axis from round to round
            self._axis = _unit(self._axis * 1e-6 + apart.T @ (apart @ self._axis))
        return scene.honest[int(np.argmax(scene.honest @ self._axis))].copy()


@dataclass(frozen=True, slots=True)
class Orthogonal(Colluder):
    """ROP: around where clipping is centred, off at a right angle, always the same way. After Ozfatura et al. 2023."""

    times: float = 1.0

    def __call__(self, scene: Scene) -> Values:
        mean = _mean(scene)
        centre = mean if scene.aggregate is None else (mean + scene.aggregate) / 2
        along = _unit(centre)
        away = np.random.default_rng(0).standard_normal(mean.size)
        away -= along * (along @ away)
        return (centre + self.times * _typical_distance(scene) * _unit(away)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class MinMax(Colluder):
    """As far from the mean as no farther from any honest update than these are from each other.

    Against the mean, or against the standard deviation (`std`). Shejwalkar and Houmansadr 2021, section IV.
    """

    direction: str = "std"

    def __call__(self, scene: Scene) -> Values:
        mean, way = _mean(scene), _direction(scene, self.direction)
        gamma = min(_reach(way, mean - row, _widest(scene)) for row in scene.honest)
        return (mean + gamma * way).astype(np.float32)


@dataclass(frozen=True, slots=True)
class MinSum(Colluder):
    """As MinMax, with the sum of squared distances to honest updates no larger than any of theirs."""

    direction: str = "std"

    def __call__(self, scene: Scene) -> Values:
        mean, way = _mean(scene), _direction(scene, self.direction)
        honest = scene.honest.astype(np.float64)
        largest = max(float(np.square(honest - row).sum()) for row in honest)
        room = (largest - float(np.square(honest - mean).sum())) / len(honest)  # Σ(mean − row) is zero
        return (mean + math.sqrt(max(0.0, room)) / (float(np.linalg.norm(way)) or 1.0) * way).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Adaptive(Colluder):
    """Tries lies on the rule itself and sends the one that takes most of the honest mean away, part by part.

    A line search along two ways: against the mean, and against it by coordinate within the honest spread.
    """

    rule: str = "nk"

    def __call__(self, scene: Scene) -> Values:
        return _searched(scene, self.rule, _mean(scene))


@dataclass(slots=True)
class Undo(Colluder):
    """As Adaptive, against all that honest members have learned so far and not only against this round's step."""

    rule: str = "nk"
    _learned: Vector | None = field(default=None, repr=False)

    def __call__(self, scene: Scene) -> Values:
        self._learned = _mean(scene) + (0.0 if self._learned is None else self._learned)
        return _searched(scene, self.rule, self._learned)


def _searched(scene: Scene, rule: str, goal: Vector) -> Values:
    """The lie after which the rule's result goes least towards the goal, of those around the honest mean."""
    lie = scene.honest.mean(axis=0)
    spread = -_spread(scene) * np.sign(goal)
    for piece in scene.pieces:
        lie[piece] = _worst(scene, piece, rule, goal[piece], (-goal[piece], spread[piece]))
    return lie


def _worst(scene: Scene, piece: slice, rule: str, goal: Vector, ways: tuple[Vector, ...]) -> Values:
    honest = scene.honest[:, piece]
    mean = honest.mean(axis=0, dtype=np.float64)
    typical = float(np.median(np.linalg.norm(honest - mean, axis=1)))
    rows = [encode(np.ascontiguousarray(row)) for row in honest]
    lengths = (*(step * typical for step in STEPS), float(np.linalg.norm(mean)))
    tried = [(mean + length * _unit(way)).astype(np.float32) for way in ways for length in lengths]
    return min(tried, key=lambda lie: float(goal @ _outcome(scene, rule, rows, lie)))


def _outcome(scene: Scene, rule: str, rows: list[Quantised], lie: Values) -> Values:
    """What the rule would give if we sent this."""
    everybody = [*rows, *([encode(lie)] * scene.liars)]
    exponents = np.array([row.exponent for row in everybody], dtype=np.int16)
    reduced = rule_named(rule)(exponents, np.stack([row.mantissas for row in everybody]), scene.f)
    return decode(Quantised(reduced.exponent, reduced.mantissas))


def _mean(scene: Scene) -> Vector:
    mean: Vector = scene.honest.mean(axis=0, dtype=np.float64)
    return mean


def _spread(scene: Scene) -> Vector:
    """The standard deviation of each coordinate."""
    spread: Vector = scene.honest.std(axis=0, dtype=np.float64)
    return spread


def _typical_distance(scene: Scene) -> float:
    return float(np.median(np.linalg.norm(scene.honest - _mean(scene), axis=1)))


def _direction(scene: Scene, name: str) -> Vector:
    match name:
        case "mean":
            return -_unit(_mean(scene))
        case "std":
            return -_spread(scene)
    raise ValueError(f"no direction is called {name!r}; there are mean and std")


def _widest(scene: Scene) -> float:
    """The largest squared distance between two honest updates."""
    honest = scene.honest.astype(np.float64)
    products = honest @ honest.T
    squares = products.diagonal()
    return float(max(0.0, (squares[:, None] + squares[None, :] - 2 * products).max()))


def _reach(way: Any, start: Any, within: float) -> float:
    """The largest γ >= 0 with ‖start + γ·way‖² <= within."""
    square, half, rest = float(way @ way), float(way @ start), float(start @ start) - within
    if square == 0.0 or rest > 0:
        return 0.0
    return (math.sqrt(half * half - square * rest) - half) / square


def _unit(vector: Vector) -> Vector:
    unit: Vector = vector / (float(np.linalg.norm(vector)) or 1.0)
    return unit


def _hidden_deviations(scene: Scene) -> float:
    """z of algorithm 3: so far out that enough honest members are farther out still."""
    supporters = scene.members // 2 + 1 - scene.liars
    share = (scene.members - scene.liars - supporters) / (scene.members - scene.liars)
    return max(0.0, NormalDist().inv_cdf(min(max(share, 1e-3), 1 - 1e-3)))
