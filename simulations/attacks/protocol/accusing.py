"""Members that accuse others of what these did not do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from celluler.identity import Signed
from celluler.learning.effects import Audit, Effect, Send
from celluler.learning.messages import Entry, Fraud, Reduced, SetProposal, set_hash
from simulations.attacks.protocol.attacker import Attacker, Puppet


class FalseAccuser(Attacker):
    """Says of every result that it is wrong."""

    def __init__(self) -> None:
        self._sets: dict[bytes, tuple[Entry, ...]] = {}

    def effects(self, effects: Iterable[Effect], run: Puppet, now: float) -> Iterable[Effect]:
        for effect in effects:
            self._note(run.own(effect))
            yield effect

    def received(self, message: Signed[Any], run: Puppet, now: float) -> Iterable[Effect]:
        record = message.record
        self._note(record)
        if isinstance(record, Reduced) and record.set_hash in self._sets:
            yield Send(None, run.sign(Fraud(record.run, record.round, message.raw, self._sets[record.set_hash])))

    def _note(self, record: Any) -> None:
        if isinstance(record, SetProposal):
            self._sets[set_hash(record.entries)] = record.entries


class FalseAuditor(Attacker):
    """Finds everybody guilty of not having trained whom it audits, and supports whoever says so."""

    def effects(self, effects: Iterable[Effect], run: Puppet, now: float) -> Iterable[Effect]:
        for effect in effects:
            if isinstance(effect, Audit):
                yield from run.audited(effect.round, effect.member, (0.7,) * len(effect.parts), now)
            else:
                yield effect
