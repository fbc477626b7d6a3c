"""Members that keep others busy: too late with everything, or asking without end."""

from __future__ import annotations

from collections.abc import Iterable

from celluler.learning.effects import Certified, Check, Effect, Fetch, Send
from simulations.attacks.protocol.attacker import Attacker, Puppet

FLOOD_EVERY_S = 0.1
KEPT = 8
"""Questions that a flood asks over and over: the latest ones."""


class Late(Attacker):
    """Says everything, so many deltas too late."""

    def __init__(self, deltas: float = 2.0) -> None:
        self._deltas = deltas
        self._waiting: list[tuple[float, Effect]] = []

    def effects(self, effects: Iterable[Effect], run: Puppet, now: float) -> Iterable[Effect]:
        for effect in effects:
            if isinstance(effect, Send):
                self._waiting.append((now + self._deltas * run.delta_s, effect))
            else:
                yield effect

    def next_deadline(self) -> float | None:
        return self._waiting[0][0] if self._waiting else None

    def tick(self, run: Puppet, now: float) -> Iterable[Effect]:
        due = [effect for at, effect in self._waiting if at <= now]
        self._waiting = [(at, effect) for at, effect in self._waiting if at > now]
        return due


class WantFlood(Attacker):
    """Asks for the inputs of every check, and for every part of the last rounds, ten times a second, for ever."""

    def __init__(self) -> None:
        self._asked: list[Check | Fetch] = []
        self._at: float | None = None

    def effects(self, effects: Iterable[Effect], run: Puppet, now: float) -> Iterable[Effect]:
        for effect in effects:
            yield effect
            match effect:
                case Check():
                    self._asked = [*self._asked, effect][-KEPT:]
                case Certified(certificate, _) if certificate.body.parts:
                    body = certificate.body
                    wanted = Fetch(body.round, body.set_hash, tuple(enumerate(body.parts)), run.others)
                    self._asked = [*self._asked, wanted][-KEPT:]
        self._at = self._at or now + FLOOD_EVERY_S

    def next_deadline(self) -> float | None:
        return self._at

    def tick(self, run: Puppet, now: float) -> Iterable[Effect]:
        if self._at is None or now < self._at:
            return ()
        self._at = now + FLOOD_EVERY_S
        return tuple(self._asked)
