"""Frames between the node and its processes: `length | header | blobs`.

length: 4 bytes, big-endian, of the header. header: a `Header` in canonical msgpack. blobs: raw, of the sizes the
header declares. A blob is never copied on its way out, and on its way in it is received where it will stay: the
reader says where the next bytes go, the caller lets the socket write there. Small frames share one staging buffer.

Knows nothing of event loops, nor of what a record means.
"""

from __future__ import annotations

import itertools
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from celluler.errors import LocalError, ProtocolViolation
from celluler.wire import pack, unpack
from celluler_node.processes.words import MAX_BLOBS, MAX_HEADER_BYTES, Header, Kind

PREFIX_BYTES = 4
STAGING_BYTES = 1 << 16

Blob = bytes | bytearray | memoryview
_PIECES_A_CALL = 32
_EMPTY = memoryview(b"")


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as it came in. Its record is still bytes: who reads it knows the vocabulary."""

    header: Header
    blobs: tuple[bytearray, ...]


def encode(kind: Kind, record: Any, blobs: Sequence[Blob] = (), *, call: int = 0, tag: int = 0) -> list[memoryview]:
    """The pieces to send, in order. The blobs are views of the caller's memory, which must stay as it is until sent."""
    views = [memoryview(blob).cast("B") for blob in blobs]
    if len(views) > MAX_BLOBS:
        raise LocalError(f"{len(views)} blobs in one frame, limit {MAX_BLOBS}")
    body = b"" if record is None else pack(record)
    header = pack(Header(call, int(kind), tag, body, tuple(len(view) for view in views)))
    if len(header) > MAX_HEADER_BYTES:
        raise LocalError(f"{type(record).__name__} of {len(header)} bytes: what is large must travel as a blob")
    return [memoryview(len(header).to_bytes(PREFIX_BYTES, "big") + header), *(view for view in views if len(view))]


def tag_of(vocabulary: tuple[type, ...], record: Any) -> int:
    """The place of a record in its vocabulary. Raises LocalError for a word of another one."""
    try:
        return vocabulary.index(type(record))
    except ValueError:
        raise LocalError(f"{type(record).__name__} is not a word this process knows") from None


def record_of(vocabulary: tuple[type, ...], header: Header) -> Any:
    """The record of a frame. Raises ProtocolViolation unless it is one of the vocabulary, in canonical form."""
    if header.tag >= len(vocabulary):
        raise ProtocolViolation(f"tag {header.tag} of {len(vocabulary)}")
    return unpack(vocabulary[header.tag], header.record, limit=MAX_HEADER_BYTES)


class Outbox:
    """Outgoing half of a channel over a socket that does not block: what could not be sent yet waits here, in order."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._pieces: deque[memoryview] = deque()

    def push(self, pieces: list[memoryview]) -> bool:
        """Queue one frame and send what goes at once. True when nothing is left."""
        self._pieces.extend(pieces)
        return len(self._pieces) == len(pieces) and self.flush()

    def flush(self) -> bool:
        """Send what goes without blocking. True when nothing is left. Raises OSError when the other end is gone."""
        pieces = self._pieces
        while pieces:
            try:
                sent = self._sock.sendmsg(tuple(itertools.islice(pieces, _PIECES_A_CALL)))
            except BlockingIOError:
                return False
            while pieces and sent >= len(pieces[0]):
                sent -= len(pieces.popleft())
            if sent:
                pieces[0] = pieces[0][sent:]
        return True


class FrameReader:
    """Incoming half of a channel.

    max_blob_bytes: the most one frame may carry behind its header; a frame that declares more is refused when its
    header is read, before anything is allocated for it.
    """

    def __init__(self, max_blob_bytes: int) -> None:
        self._max_blob_bytes = max_blob_bytes
        self._staging = memoryview(bytearray(STAGING_BYTES))
        self._start = self._end = 0
        self._target = _EMPTY
        self._received = 0
        self._prefix = True
        self._header: Header | None = None
        self._blobs: list[bytearray] = []
        self._direct = False

    def space(self) -> memoryview:
        """Where the next bytes are to be written; never empty. Call `filled` before asking again."""
        self._direct = self._start == self._end and not self._prefix
        if self._direct:
            return self._target[self._received :]
        if self._start:
            left = self._end - self._start
            self._staging[:left] = self._staging[self._start : self._end]
            self._start, self._end = 0, left
        return self._staging[self._end :]

    def filled(self, count: int) -> list[Frame]:
        """`count` bytes were written there. Returns the frames they complete; raises ProtocolViolation."""
        if self._direct:
            self._received += count
        else:
            self._end += count
        frames: list[Frame] = []
        while self._advance(frames):
            pass
        return frames

    @property
    def idle(self) -> bool:
        """True between frames: the only place where a channel may end."""
        return self._prefix and self._start == self._end

    def _advance(self, frames: list[Frame]) -> bool:
        """One step of the parse; False when more bytes are needed."""
        available = self._end - self._start
        if self._prefix:
            if available < PREFIX_BYTES:
                return False
            self._begin_header(int.from_bytes(self._staging[self._start : self._start + PREFIX_BYTES], "big"))
            self._start += PREFIX_BYTES
            return True
        taken = min(available, len(self._target) - self._received)
        if taken:
            self._target[self._received : self._received + taken] = self._staging[self._start : self._start + taken]
            self._start += taken
            self._received += taken
        if self._received < len(self._target):
            return False
        self._complete(frames)
        return True

    def _begin_header(self, size: int) -> None:
        if not 0 < size <= MAX_HEADER_BYTES:
            raise ProtocolViolation(f"header of {size} bytes, limit {MAX_HEADER_BYTES}")
        self._prefix = False
        self._aim(bytearray(size))

    def _aim(self, target: bytearray) -> None:
        self._target, self._received = memoryview(target), 0

    def _complete(self, frames: list[Frame]) -> None:
        """The header, or one blob, is whole: go on to the next blob that is not empty, or finish the frame."""
        if self._header is None:
            self._header = unpack(Header, bytes(self._target), limit=MAX_HEADER_BYTES)
            total = sum(self._header.blobs)
            if total > self._max_blob_bytes:
                raise ProtocolViolation(f"blobs of {total} bytes, limit {self._max_blob_bytes}")
        while len(self._blobs) < len(self._header.blobs):
            blob = bytearray(self._header.blobs[len(self._blobs)])
            self._blobs.append(blob)
            if blob:
                self._aim(blob)
                return
        frames.append(Frame(self._header, tuple(self._blobs)))
        self._header, self._blobs, self._prefix, self._target = None, [], True, _EMPTY
