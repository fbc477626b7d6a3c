"""What the node asks of its bulk process, and what it answers. No network library.

A transfer is numbered by the node, a chunk of it too; what becomes of chunks comes back in batches, as the answer to
`Await`, since an answer cannot be lost and an event can. The outcomes are packed behind the record: at full speed
there are a thousand a second.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

from celluler.content.bulk_frames import MAX_HAVE_BYTES
from celluler.content.digest import DIGEST_BYTES, Digest
from celluler.content.movers import Chunk
from celluler.wire import U8, U16, U32, U64, Bytes32, Length, PeerName, Range, Text
from celluler_node.processes.words import Limits, PathText, Program

MAX_TRANSFERS = 64
"""Contents times sources that are fetched at once, each a thread; one more is refused."""
MAX_SERVED = 64
"""Connections served at once, each two threads."""
MAX_SERVED_A_PEER = 2
MAX_QUEUED = 4096
"""Chunks asked of one transfer and not answered yet."""

HostText = Annotated[str, Length(2, 64)]
Hosts = Annotated[tuple[HostText, ...], Length(1, 8)]

PLACED, LACKING, FALSIFIED = range(3)
"""Outcomes of a chunk."""
GONE, BUSY, VIOLATION, DISK, FULL = range(5)
"""Why a transfer ended by itself."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the process waits for others, in seconds.

    handshake: for TLS and the ticket. idle: for the next whole request. stuck: for a whole answer, and for a client
    to take 512 KiB. connect: for a connection to be made, its pin checked.
    """

    handshake_s: float = 10.0
    idle_s: float = 60.0
    stuck_s: float = 60.0
    connect_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Open:
    """Listen on these addresses of this machine, at one port on all of them; on none, serve nobody.

    Rates: bytes of content a second, 0 for no limit.
    """

    store: PathText
    hosts: Annotated[tuple[HostText, ...], Length(0, 8)]
    port: U16
    up_bytes_s: U64
    down_bytes_s: U64
    patience: Patience


@dataclass(frozen=True, slots=True)
class Opened:
    """port: 0 when it could not listen, `reason` says why; then it fetches, and serves nobody.

    confined: whether the kernel keeps it to the store's files.
    """

    port: U16
    pin: Bytes32
    confined: bool
    reason: Text


@dataclass(frozen=True, slots=True)
class Admit:
    """May this peer have a ticket for this root?"""

    peer: PeerName
    root: Bytes32


@dataclass(frozen=True, slots=True)
class Admitted:
    """number: of the ticket and of the connection it becomes, until `News.released` names it. have: see `Grant`."""

    number: U64
    ticket: Bytes32
    have: Annotated[bytes, Length(0, MAX_HAVE_BYTES)]


@dataclass(frozen=True, slots=True)
class Declined:
    """reason: as in the protocol's `Refused`."""

    reason: U8


@dataclass(frozen=True, slots=True)
class Dial:
    """Connect to one of these, check the pin, and only then show the ticket. path: where to write chunks."""

    transfer: U32
    hosts: Hosts
    port: Annotated[int, Range(1, 65535)]
    pin: Bytes32
    ticket: Bytes32
    path: PathText
    max_in_flight: Annotated[int, Range(1, 64)]


@dataclass(frozen=True, slots=True)
class Dialled:
    """reason: why there is no connection; empty when there is one. impostor: somebody else stands at that port."""

    reason: Text
    impostor: bool


@dataclass(frozen=True, slots=True)
class Fetch:
    """Its blob: chunks, packed by `pack_chunks`."""

    transfer: U32


@dataclass(frozen=True, slots=True)
class Hang:
    """End a transfer: answered when nothing of it is left and nothing more will be written."""

    transfer: U32


@dataclass(frozen=True, slots=True)
class Done:
    pass


@dataclass(frozen=True, slots=True)
class Spend:
    """The node itself moves these bytes of content over libp2p: count them against the limits."""

    up_bytes: U32
    down_bytes: U32


@dataclass(frozen=True, slots=True)
class Spent:
    """Wait so long before they pass."""

    up_s: float
    down_s: float


@dataclass(frozen=True, slots=True)
class Await:
    """Answered when there is news; one at a time."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A transfer that ended by itself. why: `GONE`, `BUSY`, `VIOLATION`, `DISK` or `FULL`."""

    transfer: U32
    why: U8
    reason: Text


@dataclass(frozen=True, slots=True)
class Carried:
    """Bytes of content sent to a peer since the last news."""

    peer: PeerName
    sent_bytes: U64


MAX_NEWS = 256


@dataclass(frozen=True, slots=True)
class News:
    """Its blob: outcomes of chunks, packed by `pack_outcomes`; they come before the ends of their transfers.

    released: tickets that expired, connections that ended.
    """

    ended: Annotated[tuple[Ended, ...], Length(0, MAX_NEWS)]
    released: Annotated[tuple[U64, ...], Length(0, MAX_NEWS)]
    carried: Annotated[tuple[Carried, ...], Length(0, MAX_NEWS)]


BULK = Program(
    "bulk",
    "celluler_node.bulk.process",
    requests=(Open, Admit, Dial, Fetch, Hang, Spend, Await),
    replies=(Opened, Admitted, Declined, Dialled, Done, Spent, News),
    max_blob_bytes=1 << 28,
)

BULK_LIMITS = Limits(memory_bytes=8 << 30, open_files=1024)
"""Address space, of which each thread reserves far more than it uses. Descriptors: lobby, connections, their files."""


# --- what travels behind the records -------------------------------------------------------------------------------

_CHUNK = struct.Struct(f">I{DIGEST_BYTES}sII")  # number, digest, length, how many places; then 8 bytes a place
_OUTCOME = struct.Struct(">IIB")

Outcome = tuple[int, int, int]
"""(transfer, chunk, `PLACED` | `LACKING` | `FALSIFIED`)."""


def pack_chunks(chunks: Iterable[tuple[int, Chunk]]) -> bytes:
    """Numbered chunks. A chunk of zeros may have very many places, more than a record may hold."""
    parts = []
    for number, chunk in chunks:
        count = len(chunk.places)
        parts.append(_CHUNK.pack(number, chunk.digest, chunk.length, count) + struct.pack(f">{count}Q", *chunk.places))
    return b"".join(parts)


def unpack_chunks(data: bytearray) -> Iterator[tuple[int, Chunk]]:
    """What the node packed."""
    at = 0
    while at < len(data):
        number, digest, length, count = _CHUNK.unpack_from(data, at)
        places = struct.unpack_from(f">{count}Q", data, at + _CHUNK.size)
        yield number, Chunk(Digest(digest), length, places)
        at += _CHUNK.size + 8 * count


def pack_outcomes(outcomes: Iterable[Outcome]) -> bytes:
    return b"".join(_OUTCOME.pack(*outcome) for outcome in outcomes)


def unpack_outcomes(data: bytes | bytearray | memoryview) -> Iterator[Outcome]:
    """Raises struct.error for what is no list of outcomes."""
    return iter(_OUTCOME.iter_unpack(data))
