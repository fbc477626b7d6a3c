"""What proves that a member lied, who has been proven to, and what others must be shown to see it too.

Three kinds of proof that need nobody's word:

- *equivocation*: two different signed messages where an honest member signs one;
- *fraud*: a reducer's signed result that is not what the rule gives for the inputs it names. Whoever has these inputs
  computes it anew; they are content named by hashes in signed commits;
- *two false accusations*: an honest member accuses only when its own computation differs, and that is exact.

How members trained is proven by what a quorum says of it: `audit_evidence`. All kinds as files: `evidence_file`.

Knows neither arrays nor rules: computing anew is the caller's (`effects.Check`). Nothing here asks who is right when
inputs cannot be had: then nothing is proven, against anybody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from celluler.errors import PeerViolation, ProtocolViolation
from celluler.identity import Signed
from celluler.learning.audit_evidence import REFUTED_ACCUSATIONS, AuditEvidence, RefutedEvidence
from celluler.learning.audit_messages import Accuse, Verdict
from celluler.learning.inputs import check_part
from celluler.learning.messages import (
    BodyProposal,
    Commit,
    Entry,
    Equivocation,
    Fraud,
    Part,
    Reduced,
    SetProposal,
    Vote,
    open_message,
    record_hash,
    set_hash,
)
from celluler.learning.roster import MAX_MEMBERS, RosterView
from celluler.wire import Bytes32, Length

FALSE_ACCUSATIONS = 2
"""So many prove an accuser to be a liar. One may be a fault of its memory; it is told, and costs nothing else."""
_MAX_COMMIT_BYTES = 8192
_MAX_ACCUSATION_BYTES = 8192


@dataclass(slots=True)
class Docket:
    """Who is proven to have lied, by member, with the messages that prove it to anybody else. Outlives a height.

    unserved: who kept what it sent from a quorum that audited it; with the messages that prove that.
    false: accusations of reducers found false, by accuser and by what was accused, each with the commits of its set.
    refuted: accusations of trainers that a quorum refuted, by accuser and by (round, target).
    """

    proven: dict[int, tuple[bytes, ...]] = field(default_factory=dict)
    unserved: dict[int, tuple[bytes, ...]] = field(default_factory=dict)
    false: dict[int, dict[Any, FalseAccusation]] = field(default_factory=dict)
    refuted: dict[int, dict[tuple[int, int], AuditEvidence]] = field(default_factory=dict)

    def accused_falsely(
        self, accuser: int, what: Any, raw: bytes, commits: tuple[bytes, ...]
    ) -> tuple[FalseAccusation, ...] | None:
        """Note it. The accusations that prove the accuser a liar, once there are enough; None before that."""
        known = self.false.setdefault(accuser, {})
        known.setdefault(what, FalseAccusation(raw, commits))
        return tuple(known.values())[:FALSE_ACCUSATIONS] if len(known) >= FALSE_ACCUSATIONS else None

    def accused_in_vain(self, accuser: int, key: tuple[int, int], refuted: AuditEvidence) -> RefutedEvidence | None:
        """The same for an accusation of a trainer. key: (round, target)."""
        known = self.refuted.setdefault(accuser, {})
        known.setdefault(key, refuted)
        if len(known) < REFUTED_ACCUSATIONS:
            return None
        return RefutedEvidence(refuted.run, tuple(known.values())[:REFUTED_ACCUSATIONS])


# --- equivocation -------------------------------------------------------------------------------------------------


def check_equivocation(roster: RosterView, record: Equivocation) -> tuple[int, str]:
    """(who said two things, what). Raises PeerViolation, the accuser's, when it proves nothing."""
    first, second = open_message(record.first), open_message(record.second)
    one, other = first.record, second.record
    place = roster.index_of(first.signer)
    if place is None or second.signer != first.signer or type(one) is not type(other) or one == other:
        raise ProtocolViolation("two messages that contradict nobody")
    for said in (one, other):
        if getattr(said, "run", None) != roster.run or getattr(said, "round", None) != record.round:
            raise ProtocolViolation("a contradiction of another run or round")
    if _occasion(one) is None or _occasion(one) != _occasion(other):
        raise ProtocolViolation("two messages of which an honest member may sign both")
    return place, _WHAT[type(one)]


def _occasion(record: Any) -> tuple[int, ...] | None:
    """Where, within a round, an honest member signs but one message of this kind."""
    match record:
        case Commit():
            return ()
        case SetProposal() | BodyProposal():
            return (record.view,)
        case Reduced():
            return record.view, record.part
        case Vote():
            return record.view, record.phase
        case Accuse() | Verdict():
            return (record.target,)
    return None


_WHAT: Mapping[type, str] = {
    Commit: "two updates in one round",
    SetProposal: "two different sets of inputs in one view",
    Reduced: "two different results for one part in one view",
    BodyProposal: "two different bodies in one view",
    Vote: "two votes in one phase of one view",
    Accuse: "two different accusations of one update",
    Verdict: "two different verdicts on one update",
}


# --- fraud --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accusation:
    """An accusation that is one by its form: this member signed this result for that set. Says nothing of its truth."""

    accused: int
    statement: Signed[Reduced]
    entries: tuple[Entry, ...]


def open_accusation(roster: RosterView, record: Fraud) -> Accusation:
    """Raises PeerViolation, the accuser's, for what no honest member passes off as evidence."""
    statement = _open_statement(roster, record.statement)
    reduced, members = statement.record, [entry.member for entry in record.entries]
    accused = roster.index_of(statement.signer)
    if accused is None or accused not in members or reduced.round != record.round:
        raise ProtocolViolation("an accusation of a stranger, or for another round")
    if set_hash(record.entries) != reduced.set_hash or members != sorted(set(members)):
        raise ProtocolViolation("an accusation that names other inputs than the result")
    if members[-1] >= len(roster):
        raise ProtocolViolation("an accusation that names the inputs of strangers")
    check_part(reduced.result, len(members), len(members) - 1)
    return Accusation(accused, statement, record.entries)


def _open_statement(roster: RosterView, raw: bytes) -> Signed[Reduced]:
    signed: Signed[Any] = open_message(raw)
    if not isinstance(signed.record, Reduced) or signed.record.run != roster.run:
        raise ProtocolViolation("no reducer's statement of this run")
    if signed.record.part >= roster.rules.parts:
        raise ProtocolViolation(f"no part {signed.record.part} in a run of {roster.rules.parts}")
    return signed


@dataclass(frozen=True, slots=True)
class FraudEvidence:
    """All that is signed in a case of fraud, for somebody who was not there. Proves nothing without the inputs.

    statement: the reducer's envelope. commits: envelopes of every commit of the set, ascending by member.
    """

    KIND: ClassVar[str] = "celluler/rounds/fraud-evidence/1"
    run: Bytes32
    statement: Annotated[bytes, Length(1, 4096)]
    commits: Annotated[tuple[Annotated[bytes, Length(1, _MAX_COMMIT_BYTES)], ...], Length(1, MAX_MEMBERS)]


@dataclass(frozen=True, slots=True)
class FraudCase:
    """Evidence opened. The reducer lied exactly if the rule gives anything but `claimed` for the inputs it used.

    members: roster places of the set, ascending; commits: theirs. reducer: a roster place.
    """

    round: int
    view: int
    set_hash: bytes
    members: tuple[int, ...]
    commits: tuple[Commit, ...]
    part: int
    reducer: int
    claimed: Part


@dataclass(frozen=True, slots=True)
class FalseAccusation:
    """accusation: envelope of a Fraud. commits: envelopes of every commit of the set that it names, ascending."""

    accusation: Annotated[bytes, Length(1, _MAX_ACCUSATION_BYTES)]
    commits: Annotated[tuple[Annotated[bytes, Length(1, _MAX_COMMIT_BYTES)], ...], Length(1, MAX_MEMBERS)]


@dataclass(frozen=True, slots=True)
class FalseAccusationsEvidence:
    """Two accusations of one accuser. Proves nothing without the inputs: of each the rule gives what was claimed."""

    KIND: ClassVar[str] = "celluler/rounds/false-accusations/1"
    run: Bytes32
    accusations: Annotated[tuple[FalseAccusation, ...], Length(FALSE_ACCUSATIONS, FALSE_ACCUSATIONS)]


def open_fraud(roster: RosterView, record: FraudEvidence) -> FraudCase:
    """Verify every signature in it and that they belong together. Raises PeerViolation."""
    if record.run != roster.run:
        raise ProtocolViolation("evidence of another run")
    statement = _open_statement(roster, record.statement)
    reduced, commits, entries = statement.record, [], []
    for one in record.commits:
        signed: Signed[Any] = open_message(one)
        place, commit = roster.index_of(signed.signer), signed.record
        if place is None or not isinstance(commit, Commit) or (commit.run, commit.round) != (roster.run, reduced.round):
            raise PeerViolation("evidence with something else than the commits of its round", peer=signed.signer)
        commits.append(commit)
        entries.append(Entry(place, record_hash(commit)))
    accusation = open_accusation(roster, Fraud(roster.run, reduced.round, record.statement, tuple(entries)))
    return FraudCase(
        reduced.round, reduced.view, reduced.set_hash, tuple(entry.member for entry in entries), tuple(commits),
        reduced.part, accusation.accused, reduced.result,
    )  # fmt: skip


def open_false_accusations(roster: RosterView, record: FalseAccusationsEvidence) -> tuple[int, tuple[FraudCase, ...]]:
    """(the accuser, what it accused others of). It lied exactly if for each the rule gives what was claimed.

    Raises PeerViolation.
    """
    cases, accusers = [], set()
    for one in record.accusations:
        signed: Signed[Any] = open_message(one.accusation)
        if not isinstance(signed.record, Fraud) or {signed.record.run, record.run} != {roster.run}:
            raise ProtocolViolation("evidence of false accusations without one")
        accusers.add(roster.index_of(signed.signer))
        cases.append(open_fraud(roster, FraudEvidence(roster.run, signed.record.statement, one.commits)))
    [accuser, *others] = accusers
    claims = {(case.set_hash, case.part, case.claimed) for case in cases}
    if accuser is None or others or len(claims) != len(cases):
        raise ProtocolViolation("false accusations of several members, of a stranger, or twice the same")
    return accuser, tuple(cases)
