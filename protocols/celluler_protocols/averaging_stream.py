"""One stream of /celluler/averaging/1 over a pair that asyncio gives us: frames, and raw bytes to where they belong.

Raw bytes do not pass through the StreamReader, which would copy each of them three times: for their duration the
transport writes into the memory that they are for. Knows nothing of hivemind or of what the bytes mean.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from celluler.errors import ProtocolViolation
from celluler.wire import LENGTH_PREFIX_BYTES
from celluler_protocols.averaging_messages import FRAME_LIMIT, Refused, frames

STALL_S = 20.0
"""Without a byte on a stream that should be flowing."""

_CHUNK_BYTES = 1 << 18


@dataclass(slots=True)
class Meter:
    """Bytes that streams have moved, frames among them; what libp2p adds to them is not seen from here."""

    sent_bytes: int = 0
    received_bytes: int = 0


class Stream:
    """Frames of the protocol and raw bytes. meter: counts them, for as many streams as share it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, meter: Meter | None = None) -> None:
        self._reader, self._writer = reader, writer
        self._meter = meter or Meter()
        self._frames = frames()

    async def say(self, message: Any) -> None:
        frame = self._frames.encode(message)
        self._meter.sent_bytes += len(frame)
        self._writer.write(frame)
        await self._drain()

    async def hear(self) -> Any:
        """One message, and not a byte beyond it."""
        prefix = await self._reader.readexactly(LENGTH_PREFIX_BYTES)
        size = int.from_bytes(prefix, "big")
        if not 0 < size <= FRAME_LIMIT:
            raise ProtocolViolation(f"frame of {size} bytes, limit {FRAME_LIMIT}")
        self._meter.received_bytes += LENGTH_PREFIX_BYTES + size
        (message,) = self._frames.feed(prefix + await self._reader.readexactly(size))
        return message

    async def refuse(self, reason: str, *, final: bool) -> None:
        await self.say(Refused(reason.encode()[:180].decode("utf-8", "ignore"), final))

    async def send_bytes(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _CHUNK_BYTES):
            self._writer.write(view[start : start + _CHUNK_BYTES])
            await self._drain()
            self._meter.sent_bytes += min(_CHUNK_BYTES, len(view) - start)

    async def receive_into(self, target: memoryview) -> None:
        """Raises EOFError when the stream ends before `target` is full, TimeoutError when nothing flows."""
        early = self._take_early(target)
        if early < len(target):
            await _receive(self._writer.transport, target[early:])
        self._meter.received_bytes += len(target)

    def close(self) -> None:
        self._writer.close()

    def _take_early(self, target: memoryview) -> int:
        """What came together with the last frame lies in the reader already."""
        buffered: bytearray = self._reader._buffer  # type: ignore[attr-defined]
        early = min(len(buffered), len(target))
        target[:early] = buffered[:early]
        del buffered[:early]
        if not buffered and self._reader.at_eof() and early < len(target):
            raise EOFError("the stream ended within the bytes")
        return early

    async def _drain(self) -> None:
        async with asyncio.timeout(STALL_S):
            await self._writer.drain()


async def _receive(transport: Any, target: memoryview) -> None:
    """Let the transport, an `asyncio.Transport` in all but name, write into `target` until it is full."""
    filling = _Filling(transport, target)
    try:
        await filling.full()
    finally:
        filling.end()


class _Filling(asyncio.BufferedProtocol):
    """Stands in for a transport's protocol while raw bytes come, and passes on to it all that is no byte."""

    def __init__(self, transport: Any, target: memoryview) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport, self._target, self._filled = transport, target, 0
        self._before = transport.get_protocol()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._gone = False
        self._flowed_at = self._loop.time()
        self._switch(self)

    async def full(self) -> None:
        while not self._done.done():
            left_s = self._flowed_at + STALL_S - self._loop.time()
            if left_s <= 0:
                raise TimeoutError("nothing flows")
            await asyncio.wait((self._done,), timeout=left_s)
        self._done.result()

    def end(self) -> None:
        self._done.cancel()
        self._target = memoryview(b"")
        self._switch(self._before)

    def _switch(self, protocol: asyncio.BaseProtocol) -> None:
        """Who is told of incoming bytes is asked only when reading begins, so it must end before."""
        if self._gone or self._transport.is_closing():
            return
        if self._transport.is_reading():
            self._transport.pause_reading()
        self._transport.set_protocol(protocol)
        self._transport.resume_reading()

    # --- what the transport says ---

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._target[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        self._flowed_at = self._loop.time()
        if self._filled == len(self._target):
            self._transport.pause_reading()  # not a byte beyond
            self._finish(None)

    def eof_received(self) -> bool | None:
        self._finish(EOFError("the stream ended within the bytes"))
        told: bool | None = self._before.eof_received()
        return told

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        self._finish(exc or EOFError("the stream ended within the bytes"))
        self._before.connection_lost(exc)

    def pause_writing(self) -> None:
        self._before.pause_writing()

    def resume_writing(self) -> None:
        self._before.resume_writing()

    def _finish(self, error: Exception | None) -> None:
        if self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)
            self._done.exception()  # it may be that nobody waits any more
