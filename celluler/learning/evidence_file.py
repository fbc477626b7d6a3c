"""Evidence against a member as one file, to be given to somebody who was not there.

A file holds the roster, what is held against whom, and, where the members had changed by then, the certificates that
say so. Everything in it is signed; whoever opens it believes nobody but the keys. What remains to be done is told by
`Case.basis`: nothing, computing some parts anew from their inputs, or relying on what a quorum found.

Nothing here says that the members were many: whoever signs a roster may have made all of its keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from celluler.errors import ProtocolViolation
from celluler.identity import PeerId
from celluler.learning.audit_evidence import (
    AuditCase,
    AuditEvidence,
    ElectorateOf,
    MomentumEvidence,
    RefutedEvidence,
    open_audit,
    open_momentum,
    open_refuted,
)
from celluler.learning.audit_messages import MAX_CONVICTION_BYTES, Conviction, Judgement
from celluler.learning.evidence import (
    FalseAccusationsEvidence,
    FraudCase,
    FraudEvidence,
    check_equivocation,
    open_false_accusations,
    open_fraud,
)
from celluler.learning.messages import Certificate, Equivocation, open_message
from celluler.learning.roster import MAX_ROSTER_BYTES, MAX_ROUNDS, Electorate, RosterView, open_roster
from celluler.learning.standing import Standing
from celluler.wire import Bytes32, Length, Name, PeerName, pack, unpack

MARK = b"celluler-evidence-1\n"
"""How a file begins."""
MAX_EVIDENCE_BYTES = 1 << 20
MAX_FILE_BYTES = 1 << 24


class Kind(StrEnum):
    """What is held against somebody. Each is a record of its own, below `EvidenceFile.body`."""

    EQUIVOCATION = "equivocation"
    FRAUD = "fraud"
    FALSE_ACCUSATIONS = "false-accusations"
    AUDIT = "audit"
    UNSERVED = "unserved"
    REFUTED = "refuted-audits"
    MOMENTUM = "momentum"


class Basis(StrEnum):
    """What a case rests on. SIGNATURES: it proves itself. INPUTS: whoever has them computes and sees, until then it
    proves nothing. VERDICTS: a quorum of the members says what it found; with the transcript anybody can look again."""

    SIGNATURES = "signatures"
    INPUTS = "inputs"
    VERDICTS = "verdicts"


Evidence = Equivocation | FraudEvidence | FalseAccusationsEvidence | AuditEvidence | RefutedEvidence | MomentumEvidence

_RECORDS: dict[Kind, type[Any]] = {
    Kind.EQUIVOCATION: Equivocation,
    Kind.FRAUD: FraudEvidence,
    Kind.FALSE_ACCUSATIONS: FalseAccusationsEvidence,
    Kind.AUDIT: AuditEvidence,
    Kind.UNSERVED: AuditEvidence,
    Kind.REFUTED: RefutedEvidence,
    Kind.MOMENTUM: MomentumEvidence,
}


@dataclass(frozen=True, slots=True)
class EvidenceFile:
    """coordinator, roster: who signed the roster, and its envelope. kind: one of `Kind`; body: its record.

    chain: every certificate before the round in question, in order, where the members had changed by then; else none.
    A file without one says that they had not; whoever knows better has a reason to doubt what rests on verdicts.
    """

    KIND: ClassVar[str] = "celluler/rounds/evidence-file/1"
    run: Bytes32
    coordinator: PeerName
    roster: Annotated[bytes, Length(1, MAX_ROSTER_BYTES)]
    kind: Name
    body: Annotated[bytes, Length(1, MAX_EVIDENCE_BYTES)]
    chain: Annotated[tuple[Certificate, ...], Length(0, MAX_ROUNDS)]


@dataclass(frozen=True, slots=True)
class Case:
    """Evidence opened: every signature verified, and that they say this of this member.

    round: the one it happened in, or the latest of them. accused: its roster place. what: in words, after its name.
    frauds: results to be computed anew; `frauds_false` when they prove the case by being right, not by being wrong.
    audits: what a quorum found, and what it takes to do that work again.
    """

    kind: Kind
    basis: Basis
    roster: RosterView
    round: int
    accused: int
    what: str
    frauds: tuple[FraudCase, ...] = ()
    frauds_false: bool = False
    audits: tuple[AuditCase, ...] = ()

    @property
    def peer(self) -> PeerId:
        return self.roster.members[self.accused].peer

    @property
    def nickname(self) -> str:
        return self.roster.members[self.accused].nickname


def evidence_file(roster: RosterView, kind: Kind, record: Evidence | bytes, chain: Iterable[Certificate] = ()) -> bytes:
    """record: of this kind, or its packed form. chain: every certificate before the round in question, needed only if
    a member was expelled or admitted by then.

    The roster is the one that the coordinator signed: whoever was admitted later is in the chain.
    """
    body = record if isinstance(record, bytes) else pack(record)
    return MARK + pack(EvidenceFile(roster.run, roster.coordinator, roster.raw, kind.value, body, tuple(chain)))


def with_chain(raw: bytes, chain: Iterable[Certificate]) -> bytes:
    """The same file with the certificates before the round in question."""
    return MARK + pack(replace(read_evidence_file(raw), chain=tuple(chain)))


def open_evidence_file(raw: bytes, *, coordinator: str | None = None) -> Case:
    """Verify everything in a file. coordinator: who must have signed the roster, when the caller knows.

    Raises ProtocolViolation or BadSignature for a file that does not say what it seems to.
    """
    file = read_evidence_file(raw)
    roster = open_roster(file.roster, coordinator or file.coordinator)
    if roster.run != file.run or roster.coordinator != file.coordinator:
        raise ProtocolViolation("evidence with the roster of another run")
    electorates = electorates_of(roster, file.chain)
    return open_evidence(
        lambda number: electorates[min(number, len(electorates) - 1)] if number <= roster.rules.rounds else None,
        _kind(file.kind),
        file.body,
    )


def read_evidence_file(raw: bytes) -> EvidenceFile:
    """By its form alone: nothing in it is verified. Raises ProtocolViolation."""
    if not raw.startswith(MARK):
        raise ProtocolViolation("no evidence: such a file begins with " + MARK.decode().strip())
    return unpack(EvidenceFile, raw[len(MARK) :], limit=MAX_FILE_BYTES)


def open_evidence(electorate_of: ElectorateOf, kind: Kind, body: bytes) -> Case:
    """The same for one who knows who took part in each round. Raises ProtocolViolation or BadSignature."""
    record = unpack(_RECORDS[kind], body, limit=MAX_EVIDENCE_BYTES)
    return _open(electorate_of, kind, record)


def open_conviction(electorate_of: ElectorateOf, record: Conviction) -> Case:
    """Raises ProtocolViolation or BadSignature, also for what does not prove itself to a member."""
    kind = _kind(record.kind)
    case = open_evidence(electorate_of, kind, record.body)
    if case.basis is Basis.INPUTS or case.round != record.round or len(record.body) > MAX_CONVICTION_BYTES:
        raise ProtocolViolation("a conviction that does not prove itself, or of another round")
    return case


def electorates_of(roster: RosterView, chain: Sequence[Certificate]) -> list[Electorate]:
    """Who took part in each round, and in the one after the last. Every certificate is verified on the way.

    Raises ProtocolViolation or BadSignature for what is no chain from the roster on.
    """
    standing = Standing.of(roster)
    found = [standing.electorate]
    for certificate in chain:
        standing = standing.accept(certificate)
        found.append(standing.electorate)
    return found


# --- one kind after the other -------------------------------------------------------------------------------------


def _open(electorate_of: ElectorateOf, kind: Kind, record: Any) -> Case:
    match record:
        case Equivocation():
            roster = _roster(electorate_of, record.round, record.run)
            accused, what = check_equivocation(roster, record)
            return Case(kind, Basis.SIGNATURES, roster, record.round, accused, f"signed {what}")
        case FraudEvidence():
            return _open_fraud(electorate_of, record)
        case FalseAccusationsEvidence():
            number = max(_round_of(one.accusation) for one in record.accusations)
            roster = _roster(electorate_of, number, record.run)
            accused, frauds = open_false_accusations(roster, record)
            what = "accused reducers that had reduced rightly"
            return Case(kind, Basis.INPUTS, roster, number, accused, what, frauds, frauds_false=True)
        case MomentumEvidence():
            accused, commit = open_momentum(electorate_of, record)
            what = "left its momentum out" if commit.fresh else "carried momentum where there was none"
            roster = _roster(electorate_of, commit.round, record.run)
            return Case(kind, Basis.SIGNATURES, roster, commit.round, accused, f"{what} in round {commit.round}")
        case RefutedEvidence():
            audits = open_refuted(electorate_of, record)
            number = max(audit.accusal.record.round for audit in audits)
            what = "accused trainers of what a quorum found in order, twice"
            roster = _roster(electorate_of, number, record.run)
            return Case(kind, Basis.VERDICTS, roster, number, audits[0].accusal.accuser, what, audits=audits)
        case AuditEvidence():
            return _open_audit(electorate_of, kind, record)
    raise ProtocolViolation("evidence of no kind that is known")


def _open_fraud(electorate_of: ElectorateOf, record: FraudEvidence) -> Case:
    roster = _roster(electorate_of, _round_of(record.statement), record.run)
    fraud = open_fraud(roster, record)
    what = f"signed a result for part {fraud.part} in round {fraud.round} that is to be computed anew"
    return Case(Kind.FRAUD, Basis.INPUTS, roster, fraud.round, fraud.reducer, what, (fraud,))


def _open_audit(electorate_of: ElectorateOf, kind: Kind, record: AuditEvidence) -> Case:
    audit = open_audit(electorate_of, record)
    proves = {Kind.AUDIT: Judgement.GUILTY, Kind.UNSERVED: Judgement.UNSERVED}[kind]
    if audit.judgement is not proves:
        raise ProtocolViolation(f"evidence of an audit in which a quorum says {audit.judgement.name.lower()}")
    told = audit.accusal.record
    roster = _roster(electorate_of, told.round, record.run)
    if proves is Judgement.GUILTY:
        what = f"sent an update in round {told.round} that its steps do not give: off by {audit.deviation:.1e}"
    else:
        what = f"kept what it sent in round {told.round} from those who audited it"
    return Case(kind, Basis.VERDICTS, roster, told.round, told.target, what, audits=(audit,))


def _round_of(raw: bytes) -> int:
    """Of an envelope that is still to be looked into."""
    return int(getattr(open_message(raw).record, "round", 0))


def _roster(electorate_of: ElectorateOf, round_number: int, run: bytes) -> RosterView:
    electorate = electorate_of(round_number)
    if electorate is None or electorate.roster.run != run:
        raise ProtocolViolation("evidence of another run, or of a round that is not known here")
    return electorate.roster


def _kind(name: str) -> Kind:
    try:
        return Kind(name)
    except ValueError as error:
        raise ProtocolViolation(f"evidence of kind {name[:64]!r}, which is none") from error
