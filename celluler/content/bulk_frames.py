"""What travels inside a bulk connection, sans-IO: a ticket, then requests one way and answers the other.

    client -> server   ticket 32 bytes, once; then { type u8 = 1 | id u32 | digest 32 bytes } ...
    server -> client   { status u8 | id u32 | length u32 | `length` bytes } ...

Numbers are big-endian. Fixed layouts and no msgpack: a chunk must get from the socket to the hash without a copy, so
the client's half says where the next bytes belong and never reads past the end of an answer.

What a server answers is believed in nothing: an id that was not asked, or another length than the asked one, is refused
when its head is read, before a byte of it is kept. Knows nothing of sockets, TLS, files or hashes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from celluler.content.digest import DIGEST_BYTES, Digest
from celluler.errors import LocalError, ProtocolViolation

TICKET_BYTES = 32
MAX_IN_FLIGHT = 64
"""Requests that one connection may owe an answer; one more is a violation."""

MAX_HAVE_BYTES = 1 << 17
"""Of the bitmap of a partial content; one with more pieces is granted without a bitmap, as if it were whole."""

ABSENT, REFUSED_BUSY, OFF = 0, 1, 2
"""Why there is no grant: the content is not here; no room now; this peer has no bulk port at all."""

GET = 1
_REQUEST = struct.Struct(f">BI{DIGEST_BYTES}s")
_HEAD = struct.Struct(">BII")
REQUEST_BYTES, HEAD_BYTES = _REQUEST.size, _HEAD.size


class Status(IntEnum):
    OK = 0
    NOT_FOUND = 1
    BUSY = 2
    """No answer will come on this connection any more."""


_CODES = frozenset(map(int, Status))


@dataclass(frozen=True, slots=True)
class Request:
    """number: chosen by the client, not in use for another request that is in flight."""

    number: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class Answer:
    """data: a view of the buffer that `Client` was given, valid until its next `space`; empty unless OK."""

    status: Status
    number: int
    data: memoryview


class FalseLength(ProtocolViolation):
    """An answer of another length than its chunk has. `number`: of the request."""

    def __init__(self, number: int, length: int, expected: int) -> None:
        super().__init__(f"an answer of {length} bytes where {expected} are due")
        self.number = number


def encode_head(status: Status, number: int, length: int = 0) -> bytes:
    """What stands before the bytes of an answer."""
    return _HEAD.pack(status, number, length)


class Client:
    """The requester's half of one connection. Write what comes to `space()`, then tell `filled`.

    buffer: where chunks are put together, as long as the largest of them; the only memory that ever holds one.
    """

    def __init__(self, buffer: bytearray, *, max_in_flight: int = MAX_IN_FLIGHT) -> None:
        self._buffer = memoryview(buffer)
        self._head = memoryview(bytearray(HEAD_BYTES))
        self._limit = max_in_flight
        self._asked: dict[int, int] = {}  # number -> length due
        self._open: tuple[Status, int] | None = None  # of the answer whose bytes are coming
        self._target, self._at = self._head, 0

    @property
    def room(self) -> int:
        """How many more requests may be sent now."""
        return self._limit - len(self._asked)

    @property
    def owes(self) -> bool:
        """Whether the server still has to say something: an answer, or the rest of one."""
        return bool(self._asked) or not self.idle

    @property
    def idle(self) -> bool:
        """True between answers."""
        return self._open is None and not self._at

    def request(self, number: int, digest: Digest, length: int) -> bytes:
        """The bytes that ask for a chunk of this length."""
        if not self.room or number in self._asked or not 0 < length <= len(self._buffer):
            raise LocalError(f"request {number} of {length} bytes with {len(self._asked)} in flight")
        self._asked[number] = length
        return _REQUEST.pack(GET, number, digest)

    def space(self) -> memoryview:
        """Where the next bytes belong; never empty, never longer than what is left of this answer."""
        return self._target[self._at :]

    def filled(self, count: int) -> Answer | None:
        """`count` bytes were written there. The answer they complete. Raises ProtocolViolation."""
        self._at += count
        if self._at < len(self._target):
            return None
        if self._open is None:
            status, number, length = self._read_head()
            if length:
                self._open, self._target, self._at = (status, number), self._buffer[:length], 0
                return None
        else:
            status, number = self._open
        data = self._buffer[: self._at] if self._open else self._buffer[:0]
        self._open, self._target, self._at = None, self._head, 0
        return Answer(status, number, data)

    def _read_head(self) -> tuple[Status, int, int]:
        code, number, length = _HEAD.unpack(self._head)
        if number not in self._asked:
            raise ProtocolViolation(f"an answer to request {number}, which was not asked")
        if code not in _CODES:
            raise ProtocolViolation(f"an answer of status {code}")
        due = self._asked.pop(number)
        if code != Status.OK and length:
            raise ProtocolViolation("bytes in an answer that has none")
        if code == Status.OK and length != due:
            raise FalseLength(number, length, due)
        return Status(code), number, length


class Server:
    """The provider's half of one connection, after the ticket: bytes in, requests out."""

    def __init__(self, *, max_in_flight: int = MAX_IN_FLIGHT) -> None:
        self._limit = max_in_flight
        self._buffer = bytearray()
        self._asked: set[int] = set()

    @property
    def idle(self) -> bool:
        """True between requests: the only place where the connection may end."""
        return not self._buffer

    @property
    def owes(self) -> bool:
        """Whether a request waits for its answer."""
        return bool(self._asked)

    def feed(self, chunk: bytes | memoryview) -> list[Request]:
        """The requests that `chunk` completes. Raises ProtocolViolation; then the connection is lost."""
        self._buffer += chunk
        whole = len(self._buffer) - len(self._buffer) % REQUEST_BYTES
        requests = [self._take(*fields) for fields in _REQUEST.iter_unpack(bytes(self._buffer[:whole]))]
        del self._buffer[:whole]
        return requests

    def answered(self, number: int) -> None:
        """This request owes nothing more. Call it before its answer is sent: the client may ask again at once."""
        self._asked.discard(number)

    def _take(self, kind: int, number: int, digest: bytes) -> Request:
        if kind != GET:
            raise ProtocolViolation(f"a request of type {kind}")
        if number in self._asked or len(self._asked) >= self._limit:
            raise ProtocolViolation(f"request {number} with {len(self._asked)} in flight, limit {self._limit}")
        self._asked.add(number)
        return Request(number, Digest(digest))
