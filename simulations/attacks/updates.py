"""Attacks on a member's update: each turns what a liar knows in a round into what it sends instead.

The same objects lie in `simulations/accuracy.py` and, wrapped around the shipped trainer, in a real node
(`trainer.py`, `node.py`). Those here need nothing but the liar's own honest update; those of `colluders.py` look at
what others send as well. One object serves one liar, or one party of liars, for one run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from celluler.aggregation.q16 import Mantissas, Values, decode_parts, encode_parts, part_slices

PAST_ROUNDS = 8
"""How many of its own earlier updates a liar remembers."""

_LARGEST = 3e38
_LARGEST_MANTISSA = 2**15 - 1


@dataclass(frozen=True, slots=True)
class Wire:
    """An update as it travels: an exponent a part, and (dimension,) int16."""

    exponents: tuple[int, ...]
    mantissas: Mantissas

    def values(self) -> Values:
        return decode_parts(self.exponents, self.mantissas)


@dataclass(frozen=True, slots=True)
class Scene:
    """What a liar knows when it makes up its update of one round.

    own: what it would send if it were honest. honest: (k, dimension) what others that are honest send, as far as it
    knows; at least one row. past: its own honest updates of earlier rounds, the newest last. aggregate: of the round
    before, if there was one. liars: how many send the same as it. f: how many bad updates the rule is told of.
    """

    round: int
    me: int
    members: int
    liars: int
    f: int
    own: Wire
    honest: npt.NDArray[np.float32]
    past: Sequence[Values] = ()
    aggregate: Values | None = None

    @property
    def parts(self) -> int:
        return len(self.own.exponents)

    @property
    def pieces(self) -> tuple[slice, ...]:
        return part_slices(self.own.mantissas.size, self.parts)


class UpdateAttack:
    """What a lying member does. Called once a round.

    knows_others: it needs the updates of others, and all of its party send the same. flips_labels: what it calls its
    own honest update was trained on wrong labels. share_of_steps: how much of its steps it does.
    """

    knows_others: ClassVar[bool] = False
    flips_labels: ClassVar[bool] = False

    @property
    def share_of_steps(self) -> float:
        return 1.0

    def __call__(self, scene: Scene) -> Values | Wire:
        raise NotImplementedError


def forged(attack: UpdateAttack, scene: Scene) -> Wire:
    """The lie in its wire form: well-formed, committed to, and wrong."""
    lie = attack(scene)
    if isinstance(lie, Wire):
        return lie
    bounded = np.clip(np.nan_to_num(lie, nan=0.0), -_LARGEST, _LARGEST).astype(np.float32)
    return Wire(*encode_parts(bounded, scene.parts))


@dataclass(frozen=True, slots=True)
class Scale(UpdateAttack):
    """The own update times a factor: −1000 is sign flipping with force."""

    factor: float = -1000.0

    def __call__(self, scene: Scene) -> Values:
        return (scene.own.values() * np.float32(self.factor)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class LabelFlip(UpdateAttack):
    """Trains in earnest on wrong labels: class c as the c-th from the end. Nothing in the numbers tells it apart."""

    flips_labels: ClassVar[bool] = True

    def __call__(self, scene: Scene) -> Wire:
        return scene.own


@dataclass(frozen=True, slots=True)
class Noise(UpdateAttack):
    """Gaussian noise, so many times the root mean square of the own update."""

    times: float = 1.0

    def __call__(self, scene: Scene) -> Values:
        own = scene.own.values()
        size = self.times * float(np.sqrt(np.mean(np.square(own, dtype=np.float64))))
        random = np.random.default_rng([scene.round, scene.me])
        return (size * random.standard_normal(own.size)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class NanBytes(UpdateAttack):
    """Bytes that are float32 NaN to whoever reads them as floats. As mantissas they are numbers like any others."""

    def __call__(self, scene: Scene) -> Wire:
        size = scene.own.mantissas.size
        nonsense = np.full((size + 1) // 2, np.nan, dtype="<f4").view("<i2")[:size].astype(np.int16)
        return Wire(scene.own.exponents, nonsense)


@dataclass(frozen=True, slots=True)
class Delayed(UpdateAttack):
    """The honest update of so many rounds ago, or the oldest it has."""

    rounds: int = 5

    def __call__(self, scene: Scene) -> Values | Wire:
        return scene.past[max(0, len(scene.past) - self.rounds)] if scene.past else scene.own


@dataclass(frozen=True, slots=True)
class Drift(UpdateAttack):
    """The honest update and, in every part, as much of one fixed direction as a replay lets pass, round after round.

    A replay compares with the fifth of the update that is new, so `tolerance` is relative to that.
    """

    tolerance: float = 0.9e-3

    def __call__(self, scene: Scene) -> Wire:
        mantissas = scene.own.mantissas.astype(np.int32)
        away = np.random.default_rng(0).choice(np.array([-1, 1], dtype=np.int32), mantissas.size)
        for piece in scene.pieces:
            mantissas[piece] += away[piece] * self._steps(mantissas[piece])
        return Wire(scene.own.exponents, np.clip(mantissas, -_LARGEST_MANTISSA, _LARGEST_MANTISSA).astype(np.int16))

    def _steps(self, part: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """How many units each mantissa is moved: as many as fit, all alike but for one more at the front."""
        room = float(np.square(self.tolerance * 0.2 * part.astype(np.float64)).sum())
        least = int(np.sqrt(room / part.size))
        more = int((room - part.size * least * least) / (2 * least + 1))
        return np.where(np.arange(part.size) < more, least + 1, least).astype(np.int32)
