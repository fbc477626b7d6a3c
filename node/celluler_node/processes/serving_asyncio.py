"""A process's side of the channel, for a process that does many things at once in asyncio (the averager)."""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from celluler.errors import ProtocolViolation
from celluler_node.processes.frames import Frame, FrameReader, Outbox, encode, record_of
from celluler_node.processes.serving import Link, failure_pieces, reply_pieces
from celluler_node.processes.words import Kind, Ready

AsyncHandler = Callable[[Any, tuple[bytearray, ...]], Awaitable[Any]]
"""As `serving.Handler`, awaited. It is cancelled when its caller gave up or the node has gone."""

_READS_A_TURN = 16


async def serve_async(
    link: Link,
    requests: tuple[type, ...],
    replies: tuple[type, ...],
    handlers: Mapping[type, AsyncHandler],
    events: tuple[type, ...] = (),
) -> None:
    """Answer requests as they come, each in its own task, until the node ends the channel; cancel the rest then."""
    serving = _Serving(link, requests, replies, handlers)
    link.events = events
    link.transmit = serving.transmit
    link.sock.setblocking(False)
    serving.transmit(encode(Kind.READY, Ready(link.isolation)))
    try:
        await serving.until_end()
    finally:
        await serving.close()


class _Serving:
    def __init__(
        self,
        link: Link,
        requests: tuple[type, ...],
        replies: tuple[type, ...],
        handlers: Mapping[type, AsyncHandler],
    ) -> None:
        self._link, self._requests, self._replies, self._handlers = link, requests, replies, handlers
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._reader = FrameReader(link.boot.max_blob_bytes)
        self._outbox = Outbox(link.sock)
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def until_end(self) -> None:
        self._loop.add_reader(self._link.sock, self._readable)
        await self._ended

    async def close(self) -> None:
        self._loop.remove_reader(self._link.sock)
        self._loop.remove_writer(self._link.sock)
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def transmit(self, pieces: list[memoryview]) -> None:
        try:
            if not self._outbox.push(pieces):
                self._loop.add_writer(self._link.sock, self._writable)
        except OSError:
            self._end()

    def _writable(self) -> None:
        try:
            if self._outbox.flush():
                self._loop.remove_writer(self._link.sock)
        except OSError:
            self._end()

    def _readable(self) -> None:
        try:
            for _ in range(_READS_A_TURN):
                count = self._link.sock.recv_into(self._reader.space())
                if not count:
                    return self._end()
                for frame in self._reader.filled(count):
                    self._take(frame)
        except BlockingIOError:
            return None
        except (OSError, ProtocolViolation):
            return self._end()
        return None

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    def _take(self, frame: Frame) -> None:
        call = frame.call
        if frame.kind == Kind.CANCEL and call in self._tasks:
            self._tasks[call].cancel()
        elif frame.kind == Kind.REQUEST:
            task = self._loop.create_task(self._answer(frame))
            self._tasks[call] = task
            task.add_done_callback(lambda done: self._settled(call, done))

    def _settled(self, call: int, done: asyncio.Task[None]) -> None:
        """A task cancelled before its first step runs none of its own code: its caller's answer is given here."""
        del self._tasks[call]
        if done.cancelled():
            self.transmit(failure_pieces(self._link, asyncio.CancelledError(), call))

    async def _answer(self, frame: Frame) -> None:
        call = frame.call
        try:
            request = record_of(self._requests, frame)
            answer = await self._handlers[type(request)](request, frame.blobs)
            pieces = reply_pieces(self._link, self._replies, answer, call)
        except Exception as error:  # the boundary of a handler
            traceback.print_exc(file=sys.stderr)
            pieces = failure_pieces(self._link, error, call)
        self.transmit(pieces)
