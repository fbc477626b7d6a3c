"""Members that say what is not: certificates without a quorum, statuses that are lies, nonsense of the right form."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from celluler.identity import Signed
from celluler.learning.effects import Effect, Send
from celluler.learning.messages import (
    BodyProposal,
    Certificate,
    Commit,
    Equivocation,
    Mark,
    Quorum,
    Reduced,
    SetProposal,
    Status,
    Vote,
    record_hash,
    signature_of,
)
from simulations.attacks.protocol.attacker import Attacker, Puppet


class ForgedCertificate(Attacker):
    """Certifies each proposed body, made worse, with its own signature in everybody's name, or q times in its own."""

    def received(self, message: Signed[Any], run: Puppet, now: float) -> Iterable[Effect]:
        record = message.record
        if not isinstance(record, BodyProposal):
            return
        body = replace(record.body, state_root=bytes(32))
        vote = Vote(record.run, body.round, record.view, 2, record_hash(body), 0)
        signature, count = signature_of(run.sign(vote)), run.roster.rules.q
        everybody = tuple(Mark(place, signature) for place in range(count))
        for marks in (everybody, (Mark(run.me, signature),) * count):
            yield Send(None, run.sign(Certificate(record.run, body, Quorum(record.view, marks))))


class StatusLiar(Attacker):
    """Says that it has nothing, so that all send it everything; that the dead live; that it has proof against all."""

    def effects(self, effects: Iterable[Effect], run: Puppet, now: float) -> Iterable[Effect]:
        everybody = (1 << len(run.roster)) - 1
        for effect in effects:
            record = run.own(effect)
            if isinstance(effect, Send) and isinstance(record, Status):
                lie = replace(
                    record, view=record.view + 3, commits=0, has_set=False, has_body=False, reduced=0, votes_1=0,
                    votes_2=0, heard=everybody, checked=False, proven=everybody,
                )  # fmt: skip
                yield replace(effect, data=run.sign(lie))
            else:
                yield effect


class Nonsense(Attacker):
    """Beside every word of its own one that is well-formed, signed, and makes no sense."""

    def effects(self, effects: Iterable[Effect], run: Puppet, now: float) -> Iterable[Effect]:
        for effect in effects:
            yield effect
            record = run.own(effect)
            nonsense = None if record is None or not isinstance(effect, Send) else _absurd(record, effect.data, run)
            if nonsense is not None:
                yield Send(None, run.sign(nonsense))


def _absurd(record: Any, raw: bytes, run: Puppet) -> Any:
    """What no honest member signs, and what contradicts nothing that this one has signed."""
    match record:
        case Commit():
            return replace(record, prev=bytes(32))  # of another history
        case SetProposal():
            return replace(record, view=record.view + 1)  # of a view that another leads
        case Reduced():
            return replace(record, part=len(run.roster) % 64, view=record.view + 1)  # of no such part
        case Vote(body=bytes()):
            return replace(record, view=record.view + 1, lacking=1)  # for what it says it lacks
        case Status():
            return Equivocation(record.run, record.round, raw, raw)  # a contradiction of nobody
    return None
