"""Evidence about a played run, true and false, put together from what its members signed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from celluler.identity import Identity, seal
from celluler.learning.audit_evidence import AuditEvidence, RefutedEvidence
from celluler.learning.audit_messages import Accuse, Judgement, Verdict
from celluler.learning.evidence import FalseAccusation, FalseAccusationsEvidence, FraudEvidence
from celluler.learning.evidence_file import Kind, evidence_file
from celluler.learning.messages import Commit, Entry, Equivocation, Fraud, Reduced, open_message, places, record_hash
from celluler.learning.transcript import HeightRecord, Transcript
from simulations.rounds import identity
from tests.support.transcripts import Played


def key_of(played: Played, place: int) -> Identity:
    keys = {one.peer_id: one for one in map(identity, range(len(played.roster)))}
    return keys[played.roster.members[place].peer]


def height(played: Played, number: int) -> HeightRecord:
    with played.transcripts[0].open("rb") as file:
        transcript = Transcript(file)
        transcript.scan(played.roster.rules.parts)
        record = transcript.height(number)
    assert record is not None
    return record


def statement(played: Played, number: int, part: int) -> bytes:
    """What the reducer of a part signed."""
    for raw in height(played, number).statements:
        told: Any = open_message(raw).record
        if isinstance(told, Reduced) and told.part == part:
            return raw
    raise AssertionError("nobody signed it")


def fraud(played: Played, number: int = 0, part: int = 0) -> bytes:
    record = FraudEvidence(played.roster.run, statement(played, number, part), height(played, number).commits)
    return evidence_file(played.roster, Kind.FRAUD, record)


def false_accusations(played: Played, accuser: int, parts: Sequence[int] = (0, 1)) -> bytes:
    run, commits = played.roster.run, height(played, 0).commits
    named = zip(places(height(played, 0).certificate.body.members), commits, strict=True)
    entries = tuple(Entry(member, record_hash(_commit(raw))) for member, raw in named)
    accused = tuple(
        FalseAccusation(seal(key_of(played, accuser), Fraud(run, 0, statement(played, 0, part), entries)), commits)
        for part in parts
    )
    return evidence_file(played.roster, Kind.FALSE_ACCUSATIONS, FalseAccusationsEvidence(run, accused))


def equivocation(played: Played, place: int) -> bytes:
    """Two updates in the first round."""
    raw = commit_of(played, 0, place)
    other = replace(_commit(raw), exponents=tuple(one + 1 for one in _commit(raw).exponents))
    record = Equivocation(played.roster.run, 0, raw, seal(key_of(played, place), other))
    return evidence_file(played.roster, Kind.EQUIVOCATION, record)


def audit(
    played: Played, number: int, target: int, judgement: Judgement = Judgement.GUILTY, *, served: bool = True
) -> bytes:
    """What a quorum says of a member's steps, whatever they were."""
    kind = Kind.AUDIT if judgement is Judgement.GUILTY else Kind.UNSERVED
    return evidence_file(played.roster, kind, audited(played, number, target, judgement, served=served))


def refuted(played: Played, number: int, targets: Sequence[int]) -> bytes:
    cases = tuple(audited(played, number, target, Judgement.INNOCENT) for target in targets)
    return evidence_file(played.roster, Kind.REFUTED, RefutedEvidence(played.roster.run, cases))


def audited(played: Played, number: int, target: int, judgement: Judgement, *, served: bool = True) -> AuditEvidence:
    """The accuser is the last member."""
    run, raw = played.roster.run, commit_of(played, number, target)
    commit, parts = _commit(raw), played.roster.rules.parts
    accuse = Accuse(
        run, number, target, raw,
        None if commit.fresh else commit_of(played, number - 1, target),
        _names(played, number),
        () if commit.fresh else _names(played, number - 1),
        (0.5,) * parts if served else (),
    )  # fmt: skip
    deviation = 0.5 if judgement is Judgement.GUILTY else 0.0
    judges = [place for place in range(len(played.roster)) if place != target][: played.roster.rules.q]
    verdicts = tuple(
        seal(key_of(played, place), Verdict(run, number, target, record_hash(commit), int(judgement), deviation))
        for place in judges
    )
    return AuditEvidence(run, seal(key_of(played, len(played.roster) - 1), accuse), verdicts)


def commit_of(played: Played, number: int, place: int) -> bytes:
    record = height(played, number)
    return record.commits[places(record.certificate.body.members).index(place)]


def _names(played: Played, number: int) -> tuple[bytes, ...]:
    return tuple(record_hash(_commit(raw)) for raw in height(played, number).commits)


def _commit(raw: bytes) -> Commit:
    record: Any = open_message(raw).record
    assert isinstance(record, Commit)
    return record
