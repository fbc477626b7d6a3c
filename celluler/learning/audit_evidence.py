"""What proves, by signatures alone, that a member did not train as it says, or that it accused others falsely of that.

- *audit*: an accusation, and a quorum that did the work again and found another result;
- *unserved*: an accusation, and a quorum of which nobody could get what was sent, or found another result;
- *refuted*: two accusations, and for each a quorum that found the very same result;
- *momentum*: an update signed as carrying momentum where there was none to carry, or the other way round. Whether there
  was, says the body that the update itself names as the one before.

A quorum is q of the voters of the audited round, each counted once. Of q at least b+1 are honest, so what they say
is so; but it is *their word*. Whoever has the transcript can do the work again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from celluler.errors import ProtocolViolation
from celluler.identity import PeerId, Signed
from celluler.learning.audit_messages import MAX_COMMIT_BYTES, Accuse, Judgement, Verdict
from celluler.learning.messages import Body, Commit, open_message, record_hash
from celluler.learning.roster import MAX_MEMBERS, Electorate
from celluler.wire import Bytes32, Length

REFUTED_ACCUSATIONS = 2
"""So many prove an accuser to be a liar. One may be a fault of its memory."""
CLEAR = 0.5
"""Share of the tolerance up to which a member says innocent. Between that and the tolerance nobody says anything, so
that an update made to lie right at the tolerance cannot make one honest member accuse what others find in order."""
_MAX_VERDICT_BYTES = 512
_MAX_ACCUSE_BYTES = 1 << 15

ElectorateOf = Callable[[int], Electorate | None]
"""Who took part in a round, as its electorate; None when that is not known here."""


@dataclass(frozen=True, slots=True)
class AuditEvidence:
    """accusation: envelope of an Accuse. verdicts: envelopes, ascending by member, of those that make the quorum."""

    KIND: ClassVar[str] = "celluler/rounds/audit-evidence/1"
    run: Bytes32
    accusation: Annotated[bytes, Length(1, _MAX_ACCUSE_BYTES)]
    verdicts: Annotated[tuple[Annotated[bytes, Length(1, _MAX_VERDICT_BYTES)], ...], Length(1, MAX_MEMBERS)]


@dataclass(frozen=True, slots=True)
class RefutedEvidence:
    """Two accusations of one member, each with the quorum that refuted it."""

    KIND: ClassVar[str] = "celluler/rounds/refuted-evidence/1"
    run: Bytes32
    refuted: Annotated[tuple[AuditEvidence, ...], Length(REFUTED_ACCUSATIONS, REFUTED_ACCUSATIONS)]


@dataclass(frozen=True, slots=True)
class MomentumEvidence:
    """commit: the envelope. before: the body that it names as `prev`; None when that is the roster, in round 0."""

    KIND: ClassVar[str] = "celluler/rounds/momentum-evidence/1"
    run: Bytes32
    commit: Annotated[bytes, Length(1, MAX_COMMIT_BYTES)]
    before: Body | None


@dataclass(frozen=True, slots=True)
class Accusal:
    """An accusation whose form is right, opened. Says nothing of its truth, nor of certified sets.

    deviation: the largest that the accuser found; None when it says that it was not served.
    """

    raw: bytes
    record: Accuse
    accuser: int
    commit: Signed[Commit]
    before: Signed[Commit] | None

    @property
    def key(self) -> tuple[int, int]:
        return self.record.round, self.record.target

    @property
    def name(self) -> bytes:
        """H(commit)."""
        return record_hash(self.commit.record)

    @property
    def deviation(self) -> float | None:
        return max(self.record.deviations, default=None)


def open_accusal(electorate: Electorate, signed: Signed[Accuse]) -> Accusal:
    """electorate: of the audited round. Raises ProtocolViolation, the accuser's, for what no honest member signs."""
    record, roster = signed.record, electorate.roster
    accuser = roster.index_of(signed.signer)
    if accuser is None or accuser == record.target:
        raise ProtocolViolation("an accusation by a stranger, or of oneself")
    if accuser not in jury(electorate, record.target):
        raise ProtocolViolation("an accusation by a member that cannot replay the accused, or of a stranger")
    target = roster.members[record.target].peer
    commit = _open_commit(roster.run, record.round, target, record.commit)
    before = None
    if record.before is not None:
        before = _open_commit(roster.run, record.round - 1, target, record.before)
    if (before is None) is not commit.record.fresh or (before is None) is bool(record.inside_before):
        raise ProtocolViolation("an accusation that leaves out the update before, or brings one where none counts")
    if record_hash(commit.record) not in record.inside:
        raise ProtocolViolation("an accusation for an update that is not in its own set")
    if before is not None and record_hash(before.record) not in record.inside_before:
        raise ProtocolViolation("an accusation for an update before that is not in its own set")
    found = record.deviations
    if found and (len(found) != len(commit.record.hashes) or min(found) < 0 or max(found) <= roster.rules.tolerance):
        raise ProtocolViolation("an accusation of less than is tolerated, or of other parts")
    return Accusal(signed.raw, record, accuser, commit, before)


def _open_commit(run: bytes, round_number: int, author: PeerId, raw: bytes) -> Signed[Commit]:
    signed: Signed[Any] = open_message(raw)
    record = signed.record
    if not isinstance(record, Commit) or (record.run, record.round, signed.signer) != (run, round_number, author):
        raise ProtocolViolation("an accusation with something else than the commit of the accused")
    return signed


def open_verdict(electorate: Electorate, signed: Signed[Verdict]) -> int:
    """Its author's place. electorate: of the audited round. Raises ProtocolViolation."""
    record, roster = signed.record, electorate.roster
    author = roster.index_of(signed.signer)
    if author is None or author not in jury(electorate, record.target):
        raise ProtocolViolation("a verdict of a member that cannot replay the accused, or on a stranger")
    tolerance, found = roster.rules.tolerance, record.deviation
    fits = {
        Judgement.GUILTY: found > tolerance,
        Judgement.INNOCENT: 0.0 <= found <= tolerance * CLEAR,
        Judgement.UNSERVED: found == 0.0,
    }
    if not fits[Judgement(record.judgement)] or (author == record.target and record.judgement != Judgement.INNOCENT):
        raise ProtocolViolation("a verdict that contradicts itself")
    return author


def jury(electorate: Electorate, target: int) -> tuple[int, ...]:
    """Who can say something of this member: the voters whose machines compute like its own, itself included.

    Nobody of one whose class is not known.
    """
    members = electorate.roster.members
    there = target < len(members) and not electorate.expelled >> target & 1
    kind = members[target].audit_class if there else ""
    return tuple(place for place in electorate.places if kind and members[place].audit_class == kind)


def count(electorate: Electorate, name: bytes, key: tuple[int, int], verdicts: dict[int, Verdict]) -> Judgement | None:
    """What a quorum of the audited round's voters says by these verdicts, if one does. name: H(commit).

    Who found it guilty was served, but also knows that nobody need be; with those who were not, they are a quorum for
    UNSERVED: otherwise a target that serves a few only would get away.
    """
    told = [v.judgement for v in verdicts.values() if (v.round, v.target) == key and v.commit == name]
    guilty, q = told.count(Judgement.GUILTY), electorate.q
    if guilty >= q:
        return Judgement.GUILTY
    if told.count(Judgement.INNOCENT) >= q:
        return Judgement.INNOCENT
    return Judgement.UNSERVED if guilty + told.count(Judgement.UNSERVED) >= q else None


@dataclass(frozen=True, slots=True)
class AuditCase:
    """Evidence of an audit, opened. judgement: what the quorum says. judges: those of whom it is made."""

    accusal: Accusal
    judgement: Judgement
    judges: tuple[int, ...]
    deviation: float


def open_audit(electorate_of: ElectorateOf, evidence: AuditEvidence) -> AuditCase:
    """Verify every signature in it, and that a quorum says something. Raises ProtocolViolation or BadSignature."""
    signed: Signed[Any] = open_message(evidence.accusation)
    if not isinstance(signed.record, Accuse) or signed.record.run != evidence.run:
        raise ProtocolViolation("evidence of an audit without its accusation")
    electorate = _electorate(electorate_of, signed.record.round, evidence.run)
    accusal = open_accusal(electorate, signed)
    verdicts: dict[int, Verdict] = {}
    for raw in evidence.verdicts:
        one: Signed[Any] = open_message(raw)
        if not isinstance(one.record, Verdict) or one.record.run != evidence.run:
            raise ProtocolViolation("evidence of an audit with something else than verdicts")
        author = open_verdict(electorate, one)
        if verdicts and author <= max(verdicts):
            raise ProtocolViolation("evidence with verdicts twice there or out of order")
        verdicts[author] = one.record
    judgement = count(electorate, accusal.name, accusal.key, verdicts)
    if judgement is None:
        raise ProtocolViolation(f"{len(verdicts)} verdicts are no quorum of {electorate.q} for anything")
    deviation = max((v.deviation for v in verdicts.values()), default=0.0)
    return AuditCase(accusal, judgement, tuple(verdicts), deviation)


def open_refuted(electorate_of: ElectorateOf, evidence: RefutedEvidence) -> tuple[AuditCase, ...]:
    """Raises ProtocolViolation or BadSignature unless one member accused twice, falsely, of different things."""
    cases = tuple(open_audit(electorate_of, one) for one in evidence.refuted)
    if any(one.judgement is not Judgement.INNOCENT or one.accusal.deviation is None for one in cases):
        raise ProtocolViolation("accusations that nobody refuted")
    if len({case.accusal.accuser for case in cases}) != 1 or len({case.accusal.key for case in cases}) != len(cases):
        raise ProtocolViolation("refuted accusations of several members, or the same one twice")
    return cases


def open_momentum(electorate_of: ElectorateOf, evidence: MomentumEvidence) -> tuple[int, Commit]:
    """(whose, the update). Raises ProtocolViolation or BadSignature when it says what is so."""
    signed: Signed[Any] = open_message(evidence.commit)
    commit = signed.record
    if not isinstance(commit, Commit) or commit.run != evidence.run:
        raise ProtocolViolation("evidence of momentum without an update")
    roster = _electorate(electorate_of, commit.round, evidence.run).roster
    place = roster.index_of(signed.signer)
    if place is None or not odd_momentum(place, commit, roster.digest, evidence.before):
        raise ProtocolViolation("an update that says rightly whether it carries momentum, or of a stranger")
    return place, commit


def odd_momentum(place: int, commit: Commit, roster_digest: bytes, before: Body | None) -> bool:
    """Whether an update's author contradicts itself: it names the body before, and that says what it should carry.

    Raises ProtocolViolation when `before` is not the body that it names.
    """
    if commit.prev != (roster_digest if before is None else record_hash(before)):
        raise ProtocolViolation("another body than the one that the update follows")
    if before is not None and before.round + 1 != commit.round:
        raise ProtocolViolation("a body that is not of the round before")
    carries = before is not None and bool(before.members >> place & 1)
    return bool(commit.hashes) and commit.fresh is carries


def _electorate(electorate_of: ElectorateOf, round_number: int, run: bytes) -> Electorate:
    electorate = electorate_of(round_number)
    if electorate is None or electorate.roster.run != run:
        raise ProtocolViolation("evidence of another run, or of a round that is not known here")
    return electorate
