"""/celluler/bulk/1: leave to fetch one content over TLS beside libp2p. Spec: docs/reference/protocols/bulk.md

A stream carries one question and one answer. The grant names a port, the certificate that stands there, and a ticket
good once for this peer and this root. It names no address: who was granted something dials only the addresses at which
it already knows the peer, so that a grant cannot send anybody to a third party's door.

Knows nothing of TLS, of the process behind the port, nor of what moves over the connection (`content/bulk_frames.py`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

import trio

from celluler.content.bulk_frames import ABSENT, MAX_HAVE_BYTES, MAX_IN_FLIGHT, OFF, REFUSED_BUSY
from celluler.content.digest import Digest
from celluler.errors import Busy, NotFound, ProtocolViolation, Unavailable
from celluler.identity import PeerId
from celluler.wire import Bytes32, Frames, Length, Range

PROTOCOL_ID = "/celluler/bulk/1"
MAX_ASK_BYTES = 64
MAX_TTL_S = 60
MAX_CONNECTIONS = 16

_RECEIVE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Ask:
    """May I fetch the content of this root?"""

    root: Bytes32


@dataclass(frozen=True, slots=True)
class Grant:
    """pin: SHA-256 of the certificate (DER) that the server at `port` shows. ttl_s: of the ticket, from now.

    max_conns: connections this peer may hold at once. max_inflight: requests on one of them without an answer.
    have: one bit a piece in the order of the file, the lowest bit of a byte first; empty says nothing is lacking.
    """

    port: Annotated[int, Range(1, 65535)]
    pin: Bytes32
    ticket: Bytes32
    ttl_s: Annotated[int, Range(1, MAX_TTL_S)]
    max_conns: Annotated[int, Range(1, MAX_CONNECTIONS)]
    max_inflight: Annotated[int, Range(1, MAX_IN_FLIGHT)]
    have: Annotated[bytes, Length(0, MAX_HAVE_BYTES)]


@dataclass(frozen=True, slots=True)
class Refused:
    """reason: `ABSENT`, `REFUSED_BUSY` or `OFF`."""

    reason: Annotated[int, Range(ABSENT, OFF)]


WORDS = (Ask, Grant, Refused)  # wire tag = position

Admit = Callable[[Digest], Awaitable[Grant | Refused]]
"""What to answer a peer that asks for this root."""


def frames() -> Frames:
    return Frames(WORDS, limit=MAX_HAVE_BYTES + 256)


async def ask_grant(stream: trio.abc.Stream, root: bytes, *, peer: PeerId | None = None) -> Grant:
    """Ask one peer. Closes the stream; the deadline is the caller's.

    Raises NotFound when it has not got the content, Busy, Unavailable when it serves none or went away,
    ProtocolViolation naming it.
    """
    incoming = frames()
    try:
        async with stream:
            await stream.send_all(incoming.encode(Ask(root)))
            while data := await stream.receive_some(_RECEIVE_BYTES):
                if messages := incoming.feed(data):
                    return _read(messages, root, peer)
    except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
        raise Unavailable("the peer went away before it answered", peer=peer) from error
    except ProtocolViolation as error:
        raise ProtocolViolation(str(error), peer=peer) from error
    raise Unavailable("the peer closed before it answered", peer=peer)


def _read(messages: list[object], root: bytes, peer: PeerId | None) -> Grant:
    match messages:
        case [Grant() as grant]:
            return grant
        case [Refused(reason)] if reason == ABSENT:
            raise NotFound(f"content {root.hex()[:16]}…", peer=peer)
        case [Refused(reason)] if reason == REFUSED_BUSY:
            raise Busy(peer=peer)
        case [Refused()]:
            raise Unavailable("the peer moves nothing in bulk", peer=peer)
        case _:
            raise ProtocolViolation("no answer to the question asked", peer=peer)


async def serve_grants(stream: trio.abc.Stream, peer: PeerId, admit: Admit) -> None:
    """Answer the one question of a stream, and close it; the deadline is the caller's.

    Raises ProtocolViolation naming the peer.
    """
    incoming = Frames(WORDS, limit=MAX_ASK_BYTES)
    async with stream:
        try:
            while data := await stream.receive_some(MAX_ASK_BYTES + 4):
                match incoming.feed(data):
                    case []:
                        continue
                    case [Ask(root)] if incoming.idle:
                        await stream.send_all(frames().encode(await admit(Digest(root))))
                        return
                    case _:
                        raise ProtocolViolation("one question a stream, and nothing else")
            if not incoming.idle:
                raise ProtocolViolation("the stream ended inside a message")
        except ProtocolViolation as error:
            raise ProtocolViolation(str(error), peer=peer) from error
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            return
