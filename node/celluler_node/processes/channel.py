"""The node's side of a channel to one of its processes: calls matched by their number, over one socket, in trio.

The process may have been taken over by what it runs. Everything it sends is parsed strictly; what is out of order is
a ProtocolViolation of `receive`, upon which the supervisor kills the process. Knows nothing of processes.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from dataclasses import dataclass
from typing import Any

import trio

from celluler.errors import LocalError, ProtocolViolation, WorkerFailed
from celluler.wire import unpack
from celluler_node.processes.frames import Blob, Frame, FrameReader, Outbox, encode, record_of, tag_of
from celluler_node.processes.watching import Work
from celluler_node.processes.words import (
    LIMITS,
    MAX_CALLS_IN_FLIGHT,
    MAX_EVENTS,
    MAX_RECORD_BYTES,
    Failure,
    Isolation,
    Kind,
    Program,
    Ready,
    Reply,
)

_READS_A_TURN = 32
"""Reads before other tasks of the node get their turn: a process that floods must not hold the loop."""


@dataclass(slots=True)
class _Pending:
    request: type
    answered: trio.Event
    outcome: Reply | WorkerFailed | None = None
    abandoned: bool = False


class Channel:
    """`send` and `receive` must run, one task each. `events` holds what the process says unasked."""

    def __init__(self, sock: socket.socket, program: Program) -> None:
        sock.setblocking(False)
        self._sock, self._program = sock, program
        self._outbox, self._reader = Outbox(sock), FrameReader(program.max_blob_bytes)
        self._numbers = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._asked = 0
        self._places = trio.Semaphore(MAX_CALLS_IN_FLIGHT)
        self._unsent = trio.lowlevel.ParkingLot()
        self._failed: WorkerFailed | None = None
        self.isolation: Isolation | None = None
        self._ready = trio.Event()
        self._send_event, self.events = trio.open_memory_channel[Any](MAX_EVENTS)
        self.events_dropped = 0

    def open(self, boot: list[memoryview]) -> None:
        """Send the first frame."""
        self._transmit(boot)

    async def ready(self) -> Isolation:
        """Wait until the process has set itself up. Raises WorkerFailed when it ended instead."""
        await self._ready.wait()
        if self.isolation is None:
            raise self._failed or WorkerFailed("ended before it was ready")
        return self.isolation

    async def call(self, request: Any, *blobs: Blob) -> Reply:
        """Ask, and wait for the answer. The blobs must not change until this returns.

        Raises WorkerFailed when the process answers with an error or ends. A call that is cancelled is cancelled
        over there too where the process can do that; its answer is dropped.
        """
        size = sum(memoryview(blob).nbytes for blob in blobs)
        if size > self._program.max_blob_bytes:
            raise LocalError(f"a request of {size} bytes, limit {self._program.max_blob_bytes}")
        tag = tag_of(self._program.requests, request)
        try:
            self._places.acquire_nowait()  # the waiting form costs a turn of the loop even when there is room
        except trio.WouldBlock:
            await self._places.acquire()
        pending, number = _Pending(type(request), trio.Event()), next(self._numbers)
        try:
            pieces = encode(Kind.REQUEST, request, blobs, call=number, tag=tag)
            if self._failed is not None:
                raise self._failure()
        except BaseException:
            self._places.release()
            raise
        self._pending[number] = pending
        self._asked += 1
        self._transmit(pieces)
        try:
            await pending.answered.wait()
        except trio.Cancelled:
            if pending.outcome is None:  # its place becomes free when the process has answered
                pending.abandoned = True
                self._transmit(encode(Kind.CANCEL, None, call=number))
            raise
        if isinstance(pending.outcome, Reply):
            return pending.outcome
        raise pending.outcome or WorkerFailed("no answer")

    async def send(self) -> None:
        """Send, for ever, what the socket did not take at once; returns when the other end is gone."""
        while True:
            try:
                while not self._outbox.flush():
                    await trio.lowlevel.wait_writable(self._sock.fileno())
            except OSError:
                return
            await self._unsent.park()

    async def receive(self) -> None:
        """Take in all that comes until the process ends its side. Raises ProtocolViolation for what it may not send."""
        for turn in itertools.count(1):
            space = self._reader.space()
            try:
                count = self._sock.recv_into(space)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock.fileno())
                continue
            except ConnectionError:
                return
            if not count:
                return
            for frame in self._reader.filled(count):
                self._take(frame)
            if count < len(space):  # drained, most likely: a read that fails costs more than it can win
                await trio.lowlevel.wait_readable(self._sock.fileno())
            elif turn % _READS_A_TURN == 0:
                await trio.lowlevel.checkpoint()

    @property
    def work(self) -> Work:
        """What the process was asked, and whether it owes an answer."""
        return Work(self._asked, bool(self._pending))

    def fail(self, reason: str, limit: str | None = None) -> None:
        """Nothing more will come: every call in flight and every later one raises WorkerFailed with this reason."""
        if self._failed is None:
            self._failed = WorkerFailed(reason, limit=limit)
        self._ready.set()
        self._send_event.close()
        for number in list(self._pending):
            self._settle(number, self._failure())

    def finish(self) -> None:
        """Tell the process that no request will follow."""
        with contextlib.suppress(OSError):  # it has gone already
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._sock.close()

    def _transmit(self, pieces: list[memoryview]) -> None:
        try:
            if not self._outbox.push(pieces):
                self._unsent.unpark()
        except OSError:
            pass  # the other end is gone; the reading half finds out and says why

    def _take(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.READY if not self._ready.is_set():
                self.isolation = unpack(Ready, frame.record, limit=MAX_RECORD_BYTES).isolation
                self._ready.set()
            case Kind.REPLY if frame.call in self._pending:
                self._settle(frame.call, self._answer(frame))
            case Kind.FAILURE if frame.call in self._pending:
                failure = unpack(Failure, frame.record, limit=MAX_RECORD_BYTES)
                text = printable(f"{failure.error}: {failure.reason}" if failure.reason else failure.error)
                reason, limit = f"{self._program.name}: {text}", failure.limit if failure.limit in LIMITS else None
                self._settle(frame.call, WorkerFailed(reason, limit=limit))
            case Kind.EVENT if self._ready.is_set():
                self._announce(record_of(self._program.events, frame))
            case _:
                raise ProtocolViolation(f"frame of kind {frame.kind} for call {frame.call} out of order")

    def _answer(self, frame: Frame) -> Reply:
        """Raises ProtocolViolation for a record or a number of blobs that does not answer what was asked."""
        record, asked = record_of(self._program.replies, frame), self._pending[frame.call].request
        due = self._program.answers.get(asked)
        if due is not None and (type(record) not in due.records or len(frame.blobs) != due.blobs):
            raise ProtocolViolation(
                f"{type(record).__name__} with {len(frame.blobs)} blobs is no answer to {asked.__name__}"
            )
        return Reply(record, frame.blobs)

    def _failure(self) -> WorkerFailed:
        assert self._failed is not None
        return WorkerFailed(self._failed.reason, limit=self._failed.limit)

    def _settle(self, number: int, outcome: Reply | WorkerFailed) -> None:
        pending = self._pending.pop(number)
        self._places.release()
        if not pending.abandoned:
            pending.outcome = outcome
            pending.answered.set()

    def _announce(self, record: Any) -> None:
        try:
            self._send_event.send_nowait(record)
        except (trio.WouldBlock, trio.BrokenResourceError):
            self.events_dropped += 1


def printable(text: str, limit: int = 300) -> str:
    """What a process said, fit for a terminal and a log: no control characters, bounded."""
    return "".join(character if character.isprintable() else "?" for character in text[:limit])
