"""What the node asks of its averager, one for each training run, and what it answers. No network library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from celluler.wire import U8, U64, Bytes32, Length, PeerName, Range
from celluler_node.processes.words import Limits, Program
from celluler_protocols.averaging_messages import (
    MAX_DIMENSION,
    MAX_MEMBERS,
    Address,
    Member,
    Outcome,
    PartOutcome,
    Plan,
    Squares,
)

Addresses = Annotated[tuple[Address, ...], Length(0, 16)]


@dataclass(frozen=True, slots=True)
class Open:
    """Listen. seed: of the averager's own key, which is not the node's. listen: multiaddrs, port 0 for any."""

    seed: Bytes32
    listen: Annotated[tuple[Address, ...], Length(1, 8)]


@dataclass(frozen=True, slots=True)
class Opened:
    """addresses: each ends in `/p2p/<peer>`; what the roster entry says."""

    peer: PeerName
    addresses: Addresses


@dataclass(frozen=True, slots=True)
class Admit:
    """Once the roster is known: listen to these and connect to them. Hashes and exponents may be empty.

    Again, with all of them, when there are more or their addresses have changed.
    """

    members: Annotated[tuple[Member, ...], Length(1, MAX_MEMBERS)]


@dataclass(frozen=True, slots=True)
class Admitted:
    pass


@dataclass(frozen=True, slots=True)
class Exchange:
    """One exchange. Its blob: our mantissas of the assigned parts in their order, or none if we committed to none."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class Moved:
    """Bytes that went over the averager's streams since it was opened."""

    sent_bytes: U64
    received_bytes: U64


@dataclass(frozen=True, slots=True)
class Exchanged:
    """Its blob: the reduced mantissas of the assigned parts in their order, zeros where one is missing."""

    outcome: Outcome
    moved: Moved


@dataclass(frozen=True, slots=True)
class Check:
    """Reduce one part of a recent exchange anew and compare."""

    plan: Plan
    result: PartOutcome


@dataclass(frozen=True, slots=True)
class Checked:
    """equal: bit for bit. squares: of the inputs, equal or not. One that could not be had is an error of the call
    instead. proven_by: where it is not equal, members' places in the plan; its blob: their inputs one after another."""

    equal: bool
    squares: Squares
    moved: Moved
    proven_by: Annotated[tuple[U8, ...], Length(0, MAX_MEMBERS)] = ()


@dataclass(frozen=True, slots=True)
class Inputs:
    """Parts of a member's update of a past round, from that member itself. → Had

    member: with the hashes and exponents it committed to. dimension: values of the whole update. parts: ascending.
    """

    run: Bytes32
    round: U64
    member: Member
    dimension: Annotated[int, Range(1, MAX_DIMENSION)]
    parts: Annotated[tuple[U8, ...], Length(1, MAX_MEMBERS)]


@dataclass(frozen=True, slots=True)
class Had:
    """Its blob: these parts one after another, each what was committed to. One not had is an error of the call."""

    moved: Moved


@dataclass(frozen=True, slots=True)
class Offer:
    """Serve our own mantissas of a round, its blob, to whoever asks by `Inputs`, without any exchange. → Offered"""

    run: Bytes32
    round: U64
    parts: Annotated[int, Range(1, MAX_MEMBERS)]


@dataclass(frozen=True, slots=True)
class Offered:
    pass


@dataclass(frozen=True, slots=True)
class Close:
    """Send what others still lack, for at most `drain_s`, and stop listening. The end of the channel ends it too."""

    drain_s: float


@dataclass(frozen=True, slots=True)
class Closed:
    pass


AVERAGER = Program(
    "averager",
    "celluler_node.processes.averager",
    requests=(Open, Admit, Exchange, Check, Close, Inputs, Offer),
    replies=(Opened, Admitted, Exchanged, Checked, Closed, Had, Offered),
    max_blob_bytes=1 << 32,
    ready_s=60.0,
)

AVERAGER_LIMITS = Limits(open_files=4096)
"""Two sockets a stream, and a stream for each member and direction. p2pd inherits them: no limit of address space, of
which Go reserves far more than it uses."""
