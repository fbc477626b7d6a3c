"""Members that say one thing to some and another to the rest, and sign both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from blake3 import blake3

from celluler.identity import Record
from celluler.learning.effects import Effect, Send
from celluler.learning.messages import BodyProposal, Commit, Reduced, SetProposal, Vote
from simulations.attacks.protocol.attacker import Attacker, Puppet


class Equivocating(Attacker):
    """Of what `twin` names, every second member hears the twin."""

    def twin(self, record: Any, run: Puppet) -> Record | None:
        """Another message for the same occasion; None where it is honest."""
        raise NotImplementedError

    def effects(self, effects: Iterable[Effect], run: Puppet, now: float) -> Iterable[Effect]:
        for effect in effects:
            record = run.own(effect)
            twin = None if record is None else self.twin(record, run)
            if twin is None:
                yield effect
            else:
                assert isinstance(effect, Send)
                yield from run.parted(effect, run.sign(twin))


class EquivocatingCommit(Equivocating):
    """Commits to two updates."""

    def twin(self, record: Any, run: Puppet) -> Record | None:
        return replace(record, fresh=not record.fresh) if isinstance(record, Commit) else None


class EquivocatingLeader(Equivocating):
    """Leads some to one set of inputs and the rest to another; likewise with bodies."""

    def twin(self, record: Any, run: Puppet) -> Record | None:
        match record:
            case SetProposal():
                return replace(record, barred=0 if record.barred else 1 << record.entries[-1].member)
            case BodyProposal() if record.proof is None:
                return replace(record, body=replace(record.body, state_root=_other(record.body.state_root)))
        return None


class EquivocatingReducer(Equivocating):
    """Signs one result of a part for some and another one for the rest."""

    def twin(self, record: Any, run: Puppet) -> Record | None:
        if not isinstance(record, Reduced):
            return None
        return replace(record, result=replace(record.result, digest=_other(record.result.digest)))


class EquivocatingVoter(Equivocating):
    """Votes for the body to some and against it to the rest."""

    def twin(self, record: Any, run: Puppet) -> Record | None:
        return replace(record, body=None) if isinstance(record, Vote) and record.body is not None else None


def _other(digest: bytes) -> bytes:
    return blake3(b"another " + digest).digest()
