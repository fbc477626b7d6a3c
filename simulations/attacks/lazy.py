"""Members that do not do their steps, and send something that looks as if they had.

What they send is near to an honest update, so no rule of aggregation tells them apart: only who does their steps again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from celluler.aggregation.q16 import Values
from simulations.attacks.updates import Scene, UpdateAttack, Wire


@dataclass(frozen=True, slots=True)
class FewerSteps(UpdateAttack):
    """Does so much of its steps, at least one, and says nothing of the rest."""

    share: float = 0.5

    @property
    def share_of_steps(self) -> float:
        return self.share

    def __call__(self, scene: Scene) -> Wire:
        return scene.own


@dataclass(slots=True)
class Cached(UpdateAttack):
    """Trains once, and sends that update in every round."""

    _first: Wire | None = field(default=None, repr=False)

    def __call__(self, scene: Scene) -> Wire:
        self._first = self._first or scene.own
        return self._first


@dataclass(frozen=True, slots=True)
class Replayed(UpdateAttack):
    """Sends what it would have sent in the round before."""

    def __call__(self, scene: Scene) -> Values | Wire:
        return scene.past[-1] if scene.past else scene.own


@dataclass(slots=True)
class Copied(UpdateAttack):
    """Sends what another member sent in the round before: its parts are there for whoever asks.

    In a node it gets at these bytes by training in that member's place, which is dearer; the bytes are the same.
    """

    knows_others: ClassVar[bool] = True
    _before: Values | None = field(default=None, repr=False)

    def __call__(self, scene: Scene) -> Values | Wire:
        sent = scene.own if self._before is None else self._before
        self._before = scene.honest[-1].copy()
        return sent
