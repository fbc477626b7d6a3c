"""The provider's half of /celluler/content/1: answer from a store. Knows nothing of who asks, or why."""

from __future__ import annotations

from collections import deque
from contextlib import suppress

import trio

from celluler.content.digest import Digest
from celluler.content.movers import Meter
from celluler.content.store import Store
from celluler.errors import BlockAbsent, IntegrityError, PeerViolation, ProtocolViolation
from celluler_protocols.content.messages import (
    END_OF_STREAM,
    MAX_OUTSTANDING,
    RECEIVE_BYTES,
    Absent,
    Busy,
    Found,
    Want,
    frames,
    requests,
)

IDLE_S = 60.0
"""A provider closes a stream on which nothing is asked for so long."""
SEND_S = 30.0
"""A provider gives up on a requester that does not take a batch of answers in so long."""

_BATCH_BYTES = 1 << 18  # read, hashed and framed by one visit to a thread; a large chunk makes a batch by itself


async def serve_content(store: Store, stream: trio.abc.Stream, *, meter: Meter | None = None) -> None:
    """Answer one requester until it ends the stream or falls silent; the stream is closed on return.

    What is here of an incomplete content is served as well. How many are served at a time is the caller's to bound:
    see `turn_away`. meter: what bytes wait for before they go out.
    Raises ProtocolViolation when the requester breaks the protocol.
    """
    async with stream:
        await _Provider(store, stream, meter).run()


async def turn_away(stream: trio.abc.Stream) -> None:
    """Tell a requester that there is no room for it, and close the stream."""
    async with stream:
        with suppress(*END_OF_STREAM), trio.move_on_after(SEND_S):
            await stream.send_all(frames().encode(Busy()))


class _Provider:
    """Three stages, so that reading the disk and writing the network overlap: requests, batches, bytes."""

    def __init__(self, store: Store, stream: trio.abc.Stream, meter: Meter | None) -> None:
        self._store, self._stream, self._meter = store, stream, meter
        self._asked: deque[Digest] = deque()
        self._news = trio.Event()
        self._ended = False
        self._outstanding = 0
        self._violation: PeerViolation | None = None

    async def run(self) -> None:
        batches, sending = trio.open_memory_channel[tuple[bytes, int]](1)  # full: the disk waits for the network
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive, nursery.cancel_scope)
            nursery.start_soon(self._load, batches)
            await self._send(sending)
            nursery.cancel_scope.cancel()
        if self._violation is not None:
            raise self._violation

    async def _receive(self, scope: trio.CancelScope) -> None:
        incoming = requests()
        try:
            while data := await self._stream.receive_some(RECEIVE_BYTES):
                for message in incoming.feed(data):
                    self._take(message)
            if not incoming.idle:
                raise ProtocolViolation("stream ended inside a message")
        except PeerViolation as error:
            self._violation = error
            scope.cancel()
        except END_OF_STREAM:
            pass
        self._ended = True
        self._news.set()

    def _take(self, message: object) -> None:
        if not isinstance(message, Want):
            raise ProtocolViolation(f"{type(message).__name__} from a requester")
        self._outstanding += len(message.digests)
        if self._outstanding > MAX_OUTSTANDING:
            raise ProtocolViolation(f"more than {MAX_OUTSTANDING} digests outstanding")
        self._asked.extend(Digest(digest) for digest in message.digests)
        self._news.set()

    async def _load(self, batches: trio.MemorySendChannel[tuple[bytes, int]]) -> None:
        async with batches:
            while await self._is_asked():
                await batches.send(await trio.to_thread.run_sync(self._batch))

    async def _is_asked(self) -> bool:
        with trio.move_on_after(IDLE_S):
            while not self._asked and not self._ended:
                self._news = trio.Event()
                await self._news.wait()
        return bool(self._asked)

    def _batch(self) -> tuple[bytes, int]:
        """Frames of some answers, and how many. Runs in a thread: a deque may be filled at its other end meanwhile."""
        outgoing, answers, size = frames(), [], 0
        while self._asked and size < _BATCH_BYTES:
            answers.append(outgoing.encode(self._answer(self._asked.popleft())))
            size += len(answers[-1])
        return b"".join(answers) if len(answers) > 1 else answers[0], len(answers)

    def _answer(self, digest: Digest) -> Found | Absent:
        try:
            return Found(digest, self._store.get(digest))
        except (BlockAbsent, IntegrityError):  # a damaged copy is no copy; the store has forgotten it
            return Absent(digest)

    async def _send(self, batches: trio.MemoryReceiveChannel[tuple[bytes, int]]) -> None:
        with suppress(*END_OF_STREAM):
            async for data, answers in batches:
                if self._meter is not None:
                    await self._meter.send(len(data))
                self._outstanding -= answers  # before the send: a requester may ask again as soon as it has them
                with trio.move_on_after(SEND_S) as scope:
                    await self._stream.send_all(data)
                if scope.cancelled_caught:
                    return
