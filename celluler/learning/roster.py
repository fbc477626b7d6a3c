"""Who takes part in a run, and under which rules: entries signed by the members, a roster signed by the coordinator.

The coordinator chooses who is in; it cannot put words in a member's mouth, because every entry carries the member's
own signature over the run. After the roster is signed the coordinator has no further say.

Knows nothing of how entries are collected, nor of the job beyond its digest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntFlag
from functools import cached_property
from typing import Annotated, ClassVar

from blake3 import blake3

from celluler.errors import LocalError, PeerViolation, ProtocolViolation
from celluler.identity import Identity, PeerId, open_envelope, public_key_of, seal, short
from celluler.wire import U8, U16, Bytes32, Length, PeerName, Range

MAX_MEMBERS = 64
MAX_PARTS = 64
MAX_ROUNDS = 1024
MAX_ENTRY_BYTES = 4096
MAX_ROSTER_BYTES = MAX_MEMBERS * (MAX_ENTRY_BYTES + 8) + 1024
MAX_WAIT_MS = 24 * 3600 * 1000
TOPOLOGIES = ("mesh", "star")
"""mesh: the parts are reduced by as many members as there are; star: all of them by one."""

Address = Annotated[str, Length(1, 256)]
Milliseconds = Annotated[int, Range(1, MAX_WAIT_MS)]
_RawEntry = Annotated[bytes, Length(1, MAX_ENTRY_BYTES)]


class Role(IntFlag):
    """What a member does. WORKER: trains. AGGREGATOR: may reduce parts of the sets it is in. VALIDATOR: votes,
    checks, audits."""

    WORKER = 1
    AGGREGATOR = 2
    VALIDATOR = 4


ALL_ROLES = Role.WORKER | Role.AGGREGATOR | Role.VALIDATOR


@dataclass(frozen=True, slots=True)
class RosterEntry:
    """One member's offer to take part, signed by its node's key: it introduces the averager, which has its own key.

    roles: of `Role`. audit_class: members of one class compute alike to the last bit that an audit looks at; "" for
    unknown. region: where it says it stands; "" when it does not say.
    """

    KIND: ClassVar[str] = "celluler/rounds/roster-entry/1"
    run: Bytes32
    averager: PeerName
    averager_addresses: Annotated[tuple[Address, ...], Length(0, 8)]
    nickname: Annotated[str, Length(0, 64)]
    roles: U8 = ALL_ROLES
    audit_class: Annotated[str, Length(0, 64)] = ""
    region: Annotated[str, Length(0, 32)] = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "roles", int(self.roles))  # a record holds plain integers


@dataclass(frozen=True, slots=True)
class RoundRules:
    """What all members go by. b: arbitrary members tolerated; q: a quorum, both of those that have a vote.

    iid: whether the data was assigned alike, on which f, the bad updates that the rule is told of, depends.
    audits: expected audits a round over all members, in thousandths; 0 for none. tolerance: a replay that deviates
    further is guilty. probation: rounds that a late joiner follows before it counts. suspension: for how many rounds;
    0 when nobody is suspended. inviter: whose invites count beside the coordinator's; "" for nobody's.
    delta_ms: how long a step of the protocol may take before the members give up on it (grows with each view).
    exchange_ms: the same for moving the parts. train_ms: the longest a round's training may take.
    stall_ms: how long a run without progress is kept alive.
    """

    rounds: Annotated[int, Range(1, MAX_ROUNDS)]
    parts: Annotated[int, Range(1, MAX_PARTS)]
    rule: Annotated[str, Length(1, 32)]
    b: U8
    q: U8
    delta_ms: Milliseconds
    exchange_ms: Milliseconds
    train_ms: Milliseconds
    stall_ms: Milliseconds
    iid: bool = True
    topology: Annotated[str, Length(1, 16)] = "mesh"
    audits: U16 = 0
    tolerance: float = 1e-3
    probation: U16 = 32
    suspension: U16 = 32
    inviter: Annotated[str, Length(0, 64)] = ""


@dataclass(frozen=True, slots=True)
class Roster:
    """Signed by the coordinator. entries: envelopes of RosterEntry, ascending by the signer's public key."""

    KIND: ClassVar[str] = "celluler/rounds/roster/1"
    run: Bytes32
    job: Bytes32
    entries: Annotated[tuple[_RawEntry, ...], Length(1, MAX_MEMBERS)]
    rules: RoundRules


@dataclass(frozen=True, slots=True)
class RosterMember:
    """A verified entry. index: its place, by which every message of the run names it."""

    index: int
    peer: PeerId
    averager: PeerId
    averager_addresses: tuple[str, ...]
    nickname: str
    roles: Role = ALL_ROLES
    audit_class: str = ""
    region: str = ""


@dataclass(frozen=True, slots=True)
class RosterView:
    """A roster whose every signature was verified. digest: BLAKE3 of `raw`, the first link of the chain."""

    run: bytes
    job: bytes
    coordinator: PeerId
    rules: RoundRules
    members: tuple[RosterMember, ...]
    digest: bytes
    raw: bytes

    def __len__(self) -> int:
        return len(self.members)

    def index_of(self, peer: str) -> int | None:
        """The member's place; None for a stranger."""
        return next((member.index for member in self.members if member.peer == peer), None)

    def with_members(self, more: tuple[RosterMember, ...]) -> RosterView:
        """The same roster with members that were admitted later: digest and raw stay those of the signed one."""
        return replace(self, members=(*self.members, *more)) if more else self


@dataclass(frozen=True)
class Electorate:
    """Who takes part in one round, and how; everybody keeps its place. All but the roster are masks.

    `in`, `len` and `places` are of those who vote now. b and q count the suspended too: for the others a suspended
    member is one that is silent, and leaving it out of the count would let those who lie weigh more.
    waiting: in probation, so that they count for nothing yet. voteless: those that came late and have not shown yet
    that they are there: so they have no vote, whatever their roles say, and no number rises by them.
    """

    roster: RosterView
    expelled: int = 0
    suspended: int = 0
    waiting: int = 0
    voteless: int = 0

    def __len__(self) -> int:
        return len(self.places)

    def __contains__(self, place: int) -> bool:
        return place >= 0 and bool(self.voters >> place & 1)

    @cached_property
    def places(self) -> tuple[int, ...]:
        return _places(self.voters)

    @cached_property
    def voters(self) -> int:
        """Mask of those who vote in this round."""
        return self._electors & ~self.suspended

    @cached_property
    def workers(self) -> int:
        """Mask of those whose updates may be in a set."""
        return self._with(Role.WORKER) & ~self.suspended

    @cached_property
    def aggregators(self) -> int:
        """Mask of those workers that may reduce."""
        return self._with(Role.AGGREGATOR) & self.workers

    @cached_property
    def b(self) -> int:
        return tolerated(self._electors.bit_count())

    @cached_property
    def q(self) -> int:
        return quorum(self._electors.bit_count())

    @cached_property
    def spared(self) -> int:
        """How many of the workers a set may lack, and of a set's updates a part."""
        return tolerated(self._counted_on.bit_count())

    @cached_property
    def least(self) -> int:
        """How many updates a set needs."""
        return quorum(self._counted_on.bit_count())

    @cached_property
    def trying(self) -> int:
        """Mask of those whose votes only show that they are there."""
        return self._with(Role.VALIDATOR) & self.voteless & ~self.suspended

    @cached_property
    def acting(self) -> int:
        """Mask of those of whom anything they say may count."""
        return self.voters | self.workers | self.trying

    def acts(self, place: int) -> bool:
        return bool(self.acting >> place & 1)

    def has(self, members: int) -> bool:
        """Whether a mask names nobody but those who vote."""
        return not members & ~self.voters

    def may_expel(self, members: int) -> bool:
        """Whether a body may expel these: they take part, and the voters among all that were ever expelled are no
        more than b of those that ever had a vote.

        Whoever proves more liars than that has shown that nothing here can be relied upon, least of all an expulsion.
        """
        ever = self._all(Role.VALIDATOR) & ~self.waiting & ~self.voteless
        known = (self.acting | self.suspended) & ~self.expelled
        return not members & ~known and ((self.expelled | members) & ever).bit_count() <= tolerated(ever.bit_count())

    def may_suspend(self, members: int) -> bool:
        """Whether a body may suspend these: they act, and enough others are left."""
        known = not members & ~self.acting and self.roster.rules.suspension > 0
        return not members or (known and replace(self, suspended=self.suspended | members).able)

    @cached_property
    def able(self) -> bool:
        """Whether enough are left to vote, to train and to reduce."""
        working = self._counted_on & ~self.suspended
        return len(self) >= self.q and working.bit_count() >= self.least and bool(self.aggregators)

    @cached_property
    def _electors(self) -> int:
        """Mask of those on whom b and q are counted."""
        return self._with(Role.VALIDATOR) & ~self.voteless

    @cached_property
    def _counted_on(self) -> int:
        """Mask of those from whose number follows how many a set needs."""
        return self._with(Role.WORKER) & ~self.voteless

    def _with(self, role: Role) -> int:
        """Mask of those that count for a role, the suspended among them."""
        return self._all(role) & ~self.expelled & ~self.waiting

    def _all(self, role: Role) -> int:
        return sum(1 << member.index for member in self.roster.members if role in member.roles)


def _places(bits: int) -> tuple[int, ...]:
    return tuple(place for place in range(bits.bit_length()) if bits >> place & 1)


def tolerated(members: int) -> int:
    """b: how many members may do anything at all. None of fewer than four."""
    return (members - 1) // 3


def quorum(members: int) -> int:
    """q: any two sets of this many share more than b members, and so at least one honest one."""
    return members - tolerated(members)


def bad_updates(members: int, *, iid: bool) -> int:
    """f, always the maximum: under-estimating it costs the accuracy that the rule is there to keep."""
    return (members - 1) // 2 if iid else members // 5


def rules_for(
    members: int,
    *,
    rounds: int,
    rule: str = "nk",
    iid: bool = True,
    parts: int | None = None,
    voters: int | None = None,
    delta_ms: int = 10_000,
    exchange_ms: int = 30_000,
    train_ms: int = 600_000,
    stall_ms: int = 60_000,
    topology: str = "mesh",
    audits: int = 0,
    tolerance: float = 1e-3,
    probation: int = 32,
    suspension: int = 32,
    inviter: str = "",
) -> RoundRules:
    """The rules of a run of so many members. parts: as many as members unless given; voters: those of them that are
    validators, all unless given. Raises LocalError for rules that no member would accept."""
    if not 1 <= members <= MAX_MEMBERS:
        raise LocalError(f"a group has 1..{MAX_MEMBERS} members, not {members}")
    if topology not in TOPOLOGIES:
        raise LocalError(f"no topology {topology!r}; there are {', '.join(TOPOLOGIES)}")
    voting = members if voters is None else voters
    return RoundRules(
        rounds=rounds,
        parts=members if parts is None else parts,
        rule=rule,
        b=tolerated(voting),
        q=quorum(voting),
        delta_ms=delta_ms,
        exchange_ms=exchange_ms,
        train_ms=train_ms,
        stall_ms=stall_ms,
        iid=iid,
        topology=topology,
        audits=audits,
        tolerance=tolerance,
        probation=probation,
        suspension=suspension,
        inviter=inviter,
    )


def seal_roster(
    coordinator: Identity, *, run: bytes, job: bytes, entries: tuple[bytes, ...], rules: RoundRules
) -> bytes:
    """The coordinator's half: sorts and signs. Raises what `open_roster` would, so nothing wrong leaves here."""
    ordered = sorted(entries, key=lambda raw: public_key_of(open_entry(raw, run).peer))
    raw = seal(coordinator, Roster(run, job, tuple(ordered), rules))
    open_roster(raw, coordinator.peer_id)
    return raw


def open_roster(raw: bytes, coordinator: str) -> RosterView:
    """Verify a roster and every entry in it.

    Raises BadSignature or ProtocolViolation, naming in `peer` the coordinator or the member whose entry is wrong.
    """
    signed = open_envelope(Roster, raw, limit=MAX_ROSTER_BYTES, signer=coordinator)
    roster = signed.record
    members = tuple(open_entry(raw_entry, roster.run, index) for index, raw_entry in enumerate(roster.entries))
    keys = [public_key_of(member.peer) for member in members]
    for place in range(1, len(keys)):
        if keys[place - 1] >= keys[place]:
            peer = members[place].peer
            raise ProtocolViolation(f"roster: entry of {short(peer)} is twice there or out of order", peer=peer)
    if len({member.averager for member in members}) != len(members):
        raise ProtocolViolation("roster: two members name one averager", peer=coordinator)
    _check_rules(roster.rules, members, coordinator)
    return RosterView(roster.run, roster.job, signed.signer, roster.rules, members, blake3(raw).digest(), raw)


def open_entry(raw: bytes, run: bytes, index: int = 0) -> RosterMember:
    """Verify one member's offer. index: the place it gets. Raises BadSignature or ProtocolViolation, naming it."""
    signed = open_envelope(RosterEntry, raw, limit=MAX_ENTRY_BYTES)
    peer, entry = signed.signer, signed.record
    try:
        public_key_of(entry.averager)
    except PeerViolation as error:
        raise ProtocolViolation(f"roster entry of {short(peer)}: {error}", peer=peer) from error
    if entry.run != run:
        raise ProtocolViolation(f"roster entry of {short(peer)} is for another run", peer=peer)
    if entry.roles & ~int(ALL_ROLES) or not entry.roles & (Role.WORKER | Role.VALIDATOR):
        raise ProtocolViolation(f"roster entry of {short(peer)}: no member does {entry.roles:#x}", peer=peer)
    return RosterMember(
        index,
        peer,
        PeerId(entry.averager),
        entry.averager_addresses,
        entry.nickname,
        Role(entry.roles),
        entry.audit_class,
        entry.region,
    )


def _check_rules(rules: RoundRules, members: tuple[RosterMember, ...], coordinator: str) -> None:
    """b and q follow from how many have a vote; a coordinator that could choose them could choose a fork."""
    voters = sum(Role.VALIDATOR in member.roles for member in members)
    if not voters or not any(Role.WORKER | Role.AGGREGATOR in member.roles for member in members):
        raise ProtocolViolation("roster: nobody votes, or nobody trains and reduces", peer=coordinator)
    if (rules.b, rules.q) != (tolerated(voters), quorum(voters)):
        raise ProtocolViolation(f"roster: b={rules.b} and q={rules.q} do not fit {voters} votes", peer=coordinator)
    if rules.topology not in TOPOLOGIES or rules.tolerance < 0:
        raise ProtocolViolation(f"roster: no topology {rules.topology!r}, or a negative tolerance", peer=coordinator)
