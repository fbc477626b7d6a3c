"""/celluler/averaging/1: parts of an update to their reducers, aggregates back to everybody.

Spec: docs/reference/protocols/averaging.md. This module holds the words and their limits and imports no network
library, so that whoever plans an exchange need not carry one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from celluler.aggregation.q16 import MAX_EXPONENT, ZERO_EXPONENT, is_exponent, part_slices
from celluler.aggregation.rules import rule_named
from celluler.aggregation.wires import FINEST, packed_bytes, wire_named
from celluler.errors import LocalError
from celluler.identity import public_key_of
from celluler.wire import U8, U16, U32, U64, Bytes32, Frames, Length, Name, PeerName, Range

PROTOCOL_ID = "/celluler/averaging/1"
MAX_MEMBERS = 64
MAX_DIMENSION = 1 << 31
"""Values in one update."""
MAX_PART_BYTES = 1 << 28
MAX_UPDATE_BYTES = MAX_DIMENSION * 2
FRAME_LIMIT = 1024
VALUE_BYTES = 2
OWN = 255
"""In place of a member: whoever is asked."""

Address = Annotated[str, Length(1, 256)]
Reason = Annotated[str, Length(0, 200)]
Exponent = Annotated[int, Range(ZERO_EXPONENT, MAX_EXPONENT)]
PartBytes = Annotated[int, Range(VALUE_BYTES, MAX_PART_BYTES)]
UpdateBytes = Annotated[int, Range(VALUE_BYTES, MAX_UPDATE_BYTES)]
Weights = Annotated[tuple[U16, ...], Length(1, MAX_MEMBERS)]


# --- between peers ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """I have the part for which you are the reducer. After `Ready`, `size` bytes of mantissas follow."""

    run: Bytes32
    round: U64
    view: U32
    part: U16
    size: PartBytes


@dataclass(frozen=True, slots=True)
class Reduced:
    """The aggregate of a part. used: bit k is set when member k's input was there. After `Ready`, `size` bytes.

    `Taken` at once: the receiver has found the same by itself and needs no bytes.
    """

    run: Bytes32
    round: U64
    view: U32
    set_hash: Bytes32
    part: U16
    exponent: Exponent
    used: U64
    weights: Weights
    digest: Bytes32
    size: PartBytes


@dataclass(frozen=True, slots=True)
class Want:
    """Send me the input of that member for that part: I check the reducer's work.

    member: its place in that round's set, or OWN: your own input, of one of your last rounds: I do your work again.
    """

    run: Bytes32
    round: U64
    part: U16
    member: U8


@dataclass(frozen=True, slots=True)
class Have:
    """`size` bytes of mantissas follow at once."""

    size: PartBytes


@dataclass(frozen=True, slots=True)
class Ready:
    """Send the bytes now."""


@dataclass(frozen=True, slots=True)
class Taken:
    """All bytes came and were what they should be."""


@dataclass(frozen=True, slots=True)
class Refused:
    """No. final: asking again in this exchange is of no use."""

    reason: Reason
    final: bool


@dataclass(frozen=True, slots=True)
class Update:
    """I have the parts of this exchange for you, who reduce all of them. After `Ready`, all in the plan's order."""

    run: Bytes32
    round: U64
    view: U32
    size: UpdateBytes


def frames() -> Frames:
    return Frames((Part, Reduced, Want, Have, Ready, Taken, Refused, Update), limit=FRAME_LIMIT)


# --- what one exchange is to do, and what came of it -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Member:
    """One of the run's peers in this round.

    peer: its averager. author: the public key of its node, which part hashes name. hashes and exponents: one for
    each part of the update it committed to; none when it committed to nothing and only receives.
    """

    peer: PeerName
    author: Bytes32
    addresses: Annotated[tuple[Address, ...], Length(0, 8)]
    hashes: Annotated[tuple[Bytes32, ...], Length(0, MAX_MEMBERS)]
    exponents: Annotated[tuple[Exponent, ...], Length(0, MAX_MEMBERS)]


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which member, by its place in the list, reduces which part."""

    part: U16
    reducer: U8


@dataclass(frozen=True, slots=True)
class Plan:
    """One exchange of one (run, round, view), as all members were told it.

    dimension: values in the whole update, cut into `parts`. assignments: the parts to exchange now. quorum: how many
    inputs a reducer needs. gather_s: how long it waits for the rest. deadline_s: when the exchange is over.
    wire: how coarse mantissas are, and how they travel. to_all: every input goes to every member, not to its reducer
    alone: where everybody computes all parts anew, that moves each input once.
    """

    run: Bytes32
    round: U64
    view: U32
    set_hash: Bytes32
    me: U8
    members: Annotated[tuple[Member, ...], Length(1, MAX_MEMBERS)]
    dimension: Annotated[int, Range(1, MAX_DIMENSION)]
    parts: Annotated[int, Range(1, MAX_MEMBERS)]
    assignments: Annotated[tuple[Assignment, ...], Length(1, MAX_MEMBERS)]
    rule: Name
    f: U8
    quorum: U8
    gather_s: float
    deadline_s: float
    wire: Name = FINEST
    to_all: bool = False

    @property
    def key(self) -> tuple[bytes, int, int]:
        return self.run, self.round, self.view

    def values_in(self, part: int) -> int:
        piece = part_slices(self.dimension, self.parts)[part]
        return int(piece.stop - piece.start)

    def bytes_of(self, part: int) -> int:
        """Of a part as it travels."""
        return packed_bytes(self.wire, self.values_in(part))


def check_plan(plan: Plan) -> None:
    """Raises LocalError for a plan that contradicts itself."""
    count = len(plan.members)
    pieces = part_slices(plan.dimension, plan.parts)
    rule_named(plan.rule)
    wire_named(plan.wire)
    if max(piece.stop - piece.start for piece in pieces) * VALUE_BYTES > MAX_PART_BYTES:
        raise LocalError(f"{plan.dimension} values in {plan.parts} parts: a part is over {MAX_PART_BYTES} bytes")
    if plan.me >= count or any(each.reducer >= count or each.part >= plan.parts for each in plan.assignments):
        raise LocalError("an assignment names a member or a part that is not there")
    if len({each.part for each in plan.assignments}) != len(plan.assignments):
        raise LocalError("a part is assigned twice")
    if len({member.peer for member in plan.members}) != count:
        raise LocalError("a member is listed twice")
    if not 0 < plan.gather_s <= plan.deadline_s:
        raise LocalError(f"inputs are awaited for {plan.gather_s} s of {plan.deadline_s} s")
    if not 1 <= plan.quorum <= count:
        raise LocalError(f"a quorum of {plan.quorum} among {count}")
    for member in plan.members:
        public_key_of(member.peer)
        if len(member.hashes) not in (0, plan.parts) or len(member.exponents) != len(member.hashes):
            raise LocalError(f"{member.peer} has {len(member.hashes)} hashes for {plan.parts} parts")
        if not all(is_exponent(exponent) for exponent in member.exponents):
            raise LocalError(f"{member.peer} has an exponent that no part has")


class FaultKind(StrEnum):
    """What may be held against a member; `missing` and `unreachable` are faults of a link, so of either end."""

    MISSING = "missing"  # its input for a part we reduce did not come in time
    LENGTH = "length"  # bytes of another length than the part has, or the stream ended within them
    HASH = "hash"  # an input other than the one it committed to
    ORDER = "order"  # a message that does not belong here: unassigned part, second copy, no such round
    UNREACHABLE = "unreachable"  # what we had for it could not be delivered
    NOT_REDUCED = "not-reduced"  # no aggregate of a part it reduces
    AGGREGATE = "aggregate"  # an aggregate whose fields contradict each other, or the bytes


@dataclass(frozen=True, slots=True)
class Fault:
    kind: Name
    member: U8
    part: U16
    detail: Reason


@dataclass(frozen=True, slots=True)
class PartOutcome:
    """An aggregate as it came; `digest` covers all of it. weights: one for each member."""

    part: U16
    exponent: Exponent
    used: U64
    weights: Weights
    digest: Bytes32


@dataclass(frozen=True, slots=True)
class Squares:
    """The squared L2 norm of each member's input of a part, in the units of the update; None of one that was not used.

    Only of inputs that are what their members committed to. Nobody else is told.
    """

    part: U16
    values: Annotated[tuple[float | None, ...], Length(1, MAX_MEMBERS)]


@dataclass(frozen=True, slots=True)
class Outcome:
    """reduced: the parts that came. missing: those that did not. squares: of the parts that we reduced ourselves."""

    reduced: Annotated[tuple[PartOutcome, ...], Length(0, MAX_MEMBERS)]
    missing: Annotated[tuple[U16, ...], Length(0, MAX_MEMBERS)]
    faults: Annotated[tuple[Fault, ...], Length(0, 1024)]
    squares: Annotated[tuple[Squares, ...], Length(0, MAX_MEMBERS)] = ()
