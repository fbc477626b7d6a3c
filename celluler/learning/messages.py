"""The signed messages of a round, and the proofs made of several signatures.

Each message binds run, round and, where there is one, view. Members are named by their place in the roster. Sets of
members or parts are 64-bit masks: bit k for member or part k.

Knows the shape of a message and who signed it, not whether it makes sense now: that is the machine's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Protocol

from blake3 import blake3

from celluler.errors import ProtocolViolation
from celluler.identity import Envelope, Signed, open_envelope, public_key_of
from celluler.learning.audit_messages import Accuse, Conviction, Verdict
from celluler.learning.roster import MAX_MEMBERS, MAX_PARTS, MAX_ROUNDS, Electorate, RosterView
from celluler.wire import I16, U16, U32, U64, Bytes32, Bytes64, Length, PeerName, Range, pack, unpack

MAX_MESSAGE_BYTES = 1 << 16
MAX_PROOF_BYTES = 30_000
"""One envelope inside an Equivocation; the largest, a body of 64 parts for 64 members with admissions, has 29,000."""
MAX_ADMISSION_BYTES = 4096
MAX_ADMITTED = 4
"""Members that one body admits."""
MAX_ADMITTED_BYTES = 8192
"""Of all their envelopes together, so that a body with them still fits an Equivocation."""
_ENVELOPE_BYTES = 320
_CACHED_MESSAGES = 1024

Round = Annotated[int, Range(0, MAX_ROUNDS)]
"""0 for the first; the number of rounds for the closing height, which only certifies the final state."""
Place = Annotated[int, Range(0, MAX_MEMBERS - 1)]
Bits = U64
RawAdmission = Annotated[bytes, Length(1, MAX_ADMISSION_BYTES)]


@dataclass(frozen=True, slots=True)
class Commit:
    """A member's promise of its update. prev: hash of the body certified before, at round 0 the roster's digest.

    state_root: the state the update starts from. hashes, exponents: one a part. fresh: no momentum was carried over.
    """

    KIND: ClassVar[str] = "celluler/rounds/commit/1"
    run: Bytes32
    round: Round
    prev: Bytes32
    state_root: Bytes32
    hashes: Annotated[tuple[Bytes32, ...], Length(0, MAX_PARTS)]
    exponents: Annotated[tuple[I16, ...], Length(0, MAX_PARTS)]
    fresh: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """One commit, named: by the member and the hash of its Commit."""

    member: Place
    commit: Bytes32


@dataclass(frozen=True, slots=True)
class SetProposal:
    """The leader's choice of inputs, ascending by member. barred: members that contribute but do not reduce."""

    KIND: ClassVar[str] = "celluler/rounds/set/1"
    run: Bytes32
    round: Round
    view: U16
    entries: Annotated[tuple[Entry, ...], Length(1, MAX_MEMBERS)]
    barred: Bits


@dataclass(frozen=True, slots=True)
class Part:
    """One reduced part. used and weights go by place in the set, not in the roster."""

    digest: Bytes32
    exponent: I16
    used: Bits
    weights: Annotated[tuple[U16, ...], Length(1, MAX_MEMBERS)]


@dataclass(frozen=True, slots=True)
class Reduced:
    """A reducer's statement of its result: what a later fraud proof is held against."""

    KIND: ClassVar[str] = "celluler/rounds/reduced/1"
    run: Bytes32
    round: Round
    view: U16
    set_hash: Bytes32
    part: Annotated[int, Range(0, MAX_PARTS - 1)]
    result: Part


@dataclass(frozen=True, slots=True)
class Body:
    """What is voted on. Holds no view: the same set reduced again in a later view is the same body.

    members: mask of the set. state_root: the state *before* this round; a member cannot know the one after it until
    it has applied what is being voted on. expelled: mask of those who take no part from the next round on; suspended:
    of those who do not for some rounds. voted: mask of those who voted for the body before, as the leader heard.
    admitted: envelopes of the Admissions of those who join, in the order of their places.
    """

    KIND: ClassVar[str] = "celluler/rounds/body/1"
    round: Round
    prev: Bytes32
    set_hash: Bytes32
    members: Bits
    state_root: Bytes32
    parts: Annotated[tuple[Part, ...], Length(0, MAX_PARTS)]
    expelled: Bits = 0
    suspended: Bits = 0
    voted: Bits = 0
    admitted: Annotated[tuple[RawAdmission, ...], Length(0, MAX_ADMITTED)] = ()


@dataclass(frozen=True, slots=True)
class Mark:
    """One member's signature under something that the reader can write down himself."""

    member: Place
    signature: Bytes64


@dataclass(frozen=True, slots=True)
class Quorum:
    """Votes of one phase and view for one body, without repeating it; ascending by member."""

    view: U16
    marks: Annotated[tuple[Mark, ...], Length(1, MAX_MEMBERS)]


@dataclass(frozen=True, slots=True)
class BodyProposal:
    """The leader's body. Fresh: `statements` holds the reducer's signature under each part's Reduced of this view.

    Again: `proof` holds the phase-1 quorum that the body had in an earlier view.
    """

    KIND: ClassVar[str] = "celluler/rounds/proposal/1"
    run: Bytes32
    round: Round
    view: U16
    body: Body
    statements: Annotated[tuple[Bytes64, ...], Length(0, MAX_PARTS)]
    proof: Quorum | None


@dataclass(frozen=True, slots=True)
class Vote:
    """body: hash, or None for "not in this view". lacking: on such a vote, mask of the parts that did not come."""

    KIND: ClassVar[str] = "celluler/rounds/vote/1"
    run: Bytes32
    round: Round
    view: U16
    phase: Annotated[int, Range(1, 2)]
    body: Bytes32 | None
    lacking: Bits


@dataclass(frozen=True, slots=True)
class Certificate:
    """Proves itself: a body and a quorum of phase-2 votes for it. Whoever passes it on signs only the envelope."""

    KIND: ClassVar[str] = "celluler/rounds/certificate/1"
    run: Bytes32
    body: Body
    quorum: Quorum


@dataclass(frozen=True, slots=True)
class Status:
    """Where a member stands and what it holds, so that others can send what it lacks. Never passed on.

    incarnation, sequence: tell a new status from an old one. commits, reduced, votes: masks, the last three for
    `view`. wanted: commits named by the set that it does not hold.
    heard: members it has heard from lately. certified: it holds this round's certificate already. checked: what it
    found wrong in this view it has told. proven: members against whom it holds proof, or b+1 members say they do.
    failing: members that do not serve, by its own experience or by that of b+1 others.
    """

    KIND: ClassVar[str] = "celluler/rounds/status/1"
    run: Bytes32
    round: Round
    view: U16
    incarnation: U64
    sequence: U32
    certified: bool
    commits: Bits
    has_set: bool
    has_body: bool
    reduced: Bits
    votes_1: Bits
    votes_2: Bits
    heard: Bits
    wanted: Annotated[tuple[Entry, ...], Length(0, MAX_MEMBERS)]
    checked: bool = False
    proven: Bits = 0
    failing: Bits = 0


@dataclass(frozen=True, slots=True)
class Equivocation:
    """Two envelopes of one member where an honest one signs but one. Proves itself, whoever passes it on."""

    KIND: ClassVar[str] = "celluler/rounds/equivocation/1"
    run: Bytes32
    round: Round
    first: Annotated[bytes, Length(1, MAX_PROOF_BYTES)]
    second: Annotated[bytes, Length(1, MAX_PROOF_BYTES)]


@dataclass(frozen=True, slots=True)
class Fraud:
    """An accusation: this signed result is not what the rule gives for these inputs. Whoever has them sees for itself.

    statement: the reducer's envelope of a Reduced. entries: the set that it names. The commits are known by their
    hashes; the inputs are content named by the hashes in them.
    """

    KIND: ClassVar[str] = "celluler/rounds/fraud/1"
    run: Bytes32
    round: Round
    statement: Annotated[bytes, Length(1, 4096)]
    entries: Annotated[tuple[Entry, ...], Length(1, MAX_MEMBERS)]


@dataclass(frozen=True, slots=True)
class CheckDraw:
    """Signed and shown to nobody: our signature under it is the secret from which we draw the parts to check."""

    KIND: ClassVar[str] = "celluler/rounds/check-draw/1"
    run: Bytes32
    view: U16
    set_hash: Bytes32


@dataclass(frozen=True, slots=True)
class Invite:
    """Signed by the coordinator, or by the inviter that the rules name: this peer may join. expires_s: Unix time."""

    KIND: ClassVar[str] = "celluler/rounds/invite/1"
    run: Bytes32
    peer: PeerName
    expires_s: U64


@dataclass(frozen=True, slots=True)
class Vouch:
    """Signed by a member: this peer may join, for all it knows."""

    KIND: ClassVar[str] = "celluler/rounds/vouch/1"
    run: Bytes32
    peer: PeerName


@dataclass(frozen=True, slots=True)
class Admission:
    """Signed by whoever wants to join a run that has begun, and passed on by members.

    entry: its envelope of a RosterEntry. invite: envelope of an Invite, or none; vouches: members' signatures under the
    Vouch for it, ascending.
    """

    KIND: ClassVar[str] = "celluler/rounds/admission/1"
    run: Bytes32
    entry: RawAdmission
    invite: RawAdmission | None
    vouches: Annotated[tuple[Mark, ...], Length(0, MAX_MEMBERS)]


Message = (
    Commit | SetProposal | Reduced | BodyProposal | Vote | Certificate | Status | Equivocation | Fraud
    | Accuse | Verdict | Conviction | Admission
)  # fmt: skip
MESSAGES: tuple[Any, ...] = (
    Commit, SetProposal, Reduced, BodyProposal, Vote, Certificate, Status, Equivocation, Fraud,
    Accuse, Verdict, Conviction, Admission,
)  # fmt: skip
OF_A_HEIGHT = (Commit, SetProposal, Reduced, BodyProposal, Vote)
"""What is said towards one certificate, and by nobody who takes no part in its round."""
_BY_KIND = {cls.KIND: cls for cls in MESSAGES}


class Hashed(Protocol):
    KIND: ClassVar[str]


def record_hash(record: Hashed) -> bytes:
    """BLAKE3 of kind, NUL and canonical bytes: 32 bytes. Of what was said, not of who signed it."""
    return blake3(record.KIND.encode() + b"\0" + pack(record)).digest()


def set_hash(entries: tuple[Entry, ...]) -> bytes:
    """The name of a set of inputs, the same in every view."""
    return blake3(b"celluler/rounds/inputs/1\0" + b"".join(bytes((e.member,)) + e.commit for e in entries)).digest()


def mask(places: Iterable[int]) -> int:
    return sum(1 << place for place in set(places))


def places(bits: int) -> tuple[int, ...]:
    return tuple(place for place in range(bits.bit_length()) if bits >> place & 1)


@lru_cache(maxsize=_CACHED_MESSAGES)
def open_message(raw: bytes) -> Signed[Any]:
    """Verify and parse one message. Raises PeerViolation.

    Remembers the last ones: a message arrives once from its author and once from every member that passes it on.
    """
    kind = unpack(Envelope, raw, limit=MAX_MESSAGE_BYTES + _ENVELOPE_BYTES).kind
    cls = _BY_KIND.get(kind)
    if cls is None:
        raise ProtocolViolation(f"envelope of kind {kind!r} is no message of a round")
    return open_envelope(cls, raw, limit=MAX_MESSAGE_BYTES)


def signature_of(raw: bytes) -> bytes:
    """The signature in an envelope."""
    return unpack(Envelope, raw, limit=len(raw)).signature


def check_signature(roster: RosterView, member: int, record: Any, signature: bytes) -> bytes:
    """Raises BadSignature unless this member signed this record; returns the envelope that says so."""
    signer = public_key_of(roster.members[member].peer)
    raw = pack(Envelope(record.KIND, signer, pack(record), signature))
    if record.KIND in _BY_KIND:
        open_message(raw)  # which may remember it
    else:
        open_envelope(type(record), raw, limit=MAX_MESSAGE_BYTES)
    return raw


def check_quorum(electorate: Electorate, round_number: int, phase: int, body: bytes, quorum: Quorum) -> None:
    """Raises PeerViolation unless q of those who vote in that round signed this vote."""
    members = [mark.member for mark in quorum.marks]
    if len(members) < electorate.q or any(one >= two for one, two in pairwise(members)):
        raise ProtocolViolation(f"{len(members)} marks are no quorum of {electorate.q} members in order")
    if not electorate.has(mask(members)):
        raise ProtocolViolation(f"a mark of a member that is not among the {len(electorate)} of this round")
    vote = Vote(electorate.roster.run, round_number, quorum.view, phase, body, 0)
    for mark in quorum.marks:
        check_signature(electorate.roster, mark.member, vote, mark.signature)


def check_certificate(electorate: Electorate, certificate: Certificate) -> None:
    """Raises PeerViolation unless the certificate is of this run and its quorum is one. Says nothing of the body.

    electorate: that of the certificate's round.
    """
    if certificate.run != electorate.roster.run:
        raise ProtocolViolation("certificate of another run")
    body = certificate.body
    check_quorum(electorate, body.round, 2, record_hash(body), certificate.quorum)
