"""Frames between the node and its processes: `head | blob sizes | record | blobs`.

head: 16 bytes, of fixed layout, since reading one as a record costs more than all else that a small call does.
blob sizes: 8 bytes each. record: canonical msgpack of a word of the channel's vocabulary. blobs: raw.
A blob is never copied on its way out, and on its way in it is received where it will stay: the reader says where the
next bytes go, the caller lets the socket write there. Small frames share one staging buffer.

Knows nothing of event loops, nor of what a record means.
"""

from __future__ import annotations

import itertools
import socket
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from celluler.errors import LocalError, ProtocolViolation
from celluler.wire import pack, unpack
from celluler_node.processes.words import MAX_BLOBS, MAX_RECORD_BYTES, Kind

STAGING_BYTES = 1 << 16

Blob = bytes | bytearray | memoryview

_HEAD = struct.Struct(">QBBHI")  # call, kind, number of blobs, tag, size of the record
_PIECES_A_CALL = 32
_EMPTY = memoryview(b"")


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as it came in.

    call: chosen by the node, 0 where no call is meant. tag: the record's place in its vocabulary.
    record: still bytes, unchecked: who reads it knows the vocabulary.
    """

    call: int
    kind: int
    tag: int
    record: bytes
    blobs: tuple[bytearray, ...]


def encode(kind: Kind, record: Any, blobs: Sequence[Blob] = (), *, call: int = 0, tag: int = 0) -> list[memoryview]:
    """The pieces to send, in order. The blobs are views of the caller's memory, which must stay as it is until sent."""
    views = [_view(blob) for blob in blobs]
    if len(views) > MAX_BLOBS:
        raise LocalError(f"{len(views)} blobs in one frame, limit {MAX_BLOBS}")
    body = b"" if record is None else pack(record)
    if len(body) > MAX_RECORD_BYTES:
        raise LocalError(f"{type(record).__name__} of {len(body)} bytes: what is large must travel as a blob")
    sizes = b"".join(len(view).to_bytes(8, "big") for view in views)
    head = _HEAD.pack(call, kind, len(views), tag, len(body))
    return [memoryview(head + sizes + body), *(view for view in views if len(view))]


def _view(blob: Blob) -> memoryview:
    """Its bytes as they lie in memory. Raises LocalError for memory with gaps, such as a column of an array."""
    view = memoryview(blob)
    if not view.c_contiguous:
        raise LocalError("a blob must be contiguous")
    return view.cast("B") if view.nbytes else _EMPTY  # an empty array cannot be cast


def tag_of(vocabulary: tuple[type, ...], record: Any) -> int:
    """The place of a record in its vocabulary. Raises LocalError for a word of another one."""
    try:
        return vocabulary.index(type(record))
    except ValueError:
        raise LocalError(f"{type(record).__name__} is not a word this process knows") from None


def record_of(vocabulary: tuple[type, ...], frame: Frame) -> Any:
    """The record of a frame. Raises ProtocolViolation unless it is one of the vocabulary, in canonical form."""
    if frame.tag >= len(vocabulary):
        raise ProtocolViolation(f"tag {frame.tag} of {len(vocabulary)}")
    return unpack(vocabulary[frame.tag], frame.record, limit=MAX_RECORD_BYTES)


class Outbox:
    """Outgoing half of a channel over a socket that does not block: what could not be sent yet waits here, in order."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._pieces: deque[memoryview] = deque()

    def push(self, pieces: list[memoryview]) -> bool:
        """Queue one frame and send what goes at once. True when nothing is left. Raises OSError as `flush` does."""
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

    max_blob_bytes: the most one frame may carry behind its record; a frame that declares more is refused when its
    sizes are read, before anything is allocated for it.
    """

    def __init__(self, max_blob_bytes: int) -> None:
        self._max_blob_bytes = max_blob_bytes
        self._staging = memoryview(bytearray(STAGING_BYTES))
        self._start = self._end = 0
        self._target, self._received = _EMPTY, 0  # where a body or a blob is put together
        self._direct = False  # the space handed out last was of the target
        self._head: tuple[int, int, int, int, int] | None = None
        self._sizes: tuple[int, ...] | None = None
        self._record = b""
        self._blobs: list[bytearray] = []

    @property
    def idle(self) -> bool:
        """True between frames: the only place where a channel may end."""
        return self._head is None and self._start == self._end

    def space(self) -> memoryview:
        """Where the next bytes are to be written; never empty. Call `filled` before asking again."""
        self._direct = self._start == self._end and self._head is not None
        if self._direct:
            return self._target[self._received :]
        left = self._end - self._start
        if self._start:
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

    def _advance(self, frames: list[Frame]) -> bool:
        """One step of the parse; False when more bytes are needed."""
        if self._head is None:
            return self._begin()
        if not self._gather():
            return False
        if self._sizes is None:
            self._open_body(self._head)
        while len(self._blobs) < len(self._sizes or ()):
            if self._start_blob():
                return True
        call, kind, _, tag, _ = self._head
        frames.append(Frame(call, kind, tag, self._record, tuple(self._blobs)))
        self._head, self._sizes, self._target, self._blobs = None, None, _EMPTY, []
        return True

    def _begin(self) -> bool:
        if self._end - self._start < _HEAD.size:
            return False
        head = _HEAD.unpack_from(self._staging, self._start)
        self._start += _HEAD.size
        _, kind, blobs, _, size = head
        if blobs > MAX_BLOBS or size > MAX_RECORD_BYTES:
            raise ProtocolViolation(f"{blobs} blobs (limit {MAX_BLOBS}), record of {size} bytes ({MAX_RECORD_BYTES})")
        if blobs and kind not in (Kind.REQUEST, Kind.REPLY):
            raise ProtocolViolation(f"blobs in a frame of kind {kind}")
        self._head = head
        self._aim(8 * blobs + size)
        return True

    def _aim(self, size: int) -> bytearray:
        target = bytearray(size)
        self._target, self._received = memoryview(target), 0
        return target

    def _gather(self) -> bool:
        """Move what is staged into the target. True when that is whole."""
        missing = len(self._target) - self._received
        taken = min(self._end - self._start, missing)
        if taken:
            self._target[self._received : self._received + taken] = self._staging[self._start : self._start + taken]
            self._start += taken
            self._received += taken
        return taken == missing

    def _open_body(self, head: tuple[int, int, int, int, int]) -> None:
        count = head[2]
        sizes = struct.unpack_from(f">{count}Q", self._target)
        if sum(sizes) > self._max_blob_bytes:
            raise ProtocolViolation(f"blobs of {sum(sizes)} bytes, limit {self._max_blob_bytes}")
        self._sizes, self._record = sizes, bytes(self._target[8 * count :])

    def _start_blob(self) -> bool:
        """Make room for the next one. False when it is empty, and so complete."""
        assert self._sizes is not None
        blob = self._aim(self._sizes[len(self._blobs)])
        self._blobs.append(blob)
        return len(blob) > 0
