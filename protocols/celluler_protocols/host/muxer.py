"""Yamux with what py-libp2p's leaves out: bounded memory, writes that cannot be torn, truncation that shows.

- A frame is written whole or the connection ends. libp2p encrypts a frame and then awaits the socket; a task
  cancelled there would leave the cipher's counter ahead of the wire and every later frame unreadable.
- What a peer sends to streams nobody reads is bounded for the connection, and so is the number of streams it
  leaves open: libp2p warns about an overrun window and goes on buffering.
- A peer that does not answer a ping is gone: libp2p would keep its connection until TCP gives up.
- A stream that ends because its connection ended is marked `torn`: libp2p reports a clean end of stream.
  What had arrived before stays readable as `leftover`.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from typing import Any

import trio
from libp2p.abc import IMuxedConn, ISecureConn
from libp2p.peer.id import ID
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.stream_muxer.yamux.yamux import (
    FLAG_SYN,
    GO_AWAY_NORMAL,
    PROTOCOL_ID,
    TYPE_PING,
    YAMUX_HEADER_FORMAT,
    Yamux,
    YamuxStream,
)

from celluler.errors import ProtocolViolation, Unavailable
from celluler_protocols.host.limits import HostLimits

log = logging.getLogger(__name__)

_WINDOW_BYTES = 1 << 20
_MAX_OPEN_STREAMS = 2048
Overrun = Callable[[ID, Exception], None]
"""Told once when a connection broke its bounds, with whose fault it was; the hearer must close the connection."""


class _Stream(YamuxStream):
    """A stream whose window grows to 1 MiB at most, not to 16, and is opened anew half a window at a time."""

    torn: bool | None = None
    leftover: bytes = b""

    async def _auto_tune_and_send_window_update(self, *, bytes_read: int = 0) -> None:
        """libp2p writes a frame after each small read; a sender lacks nothing while half of the window is open."""
        buffered = len(self.conn.stream_buffers.get(self.stream_id, b""))
        closed = self.target_recv_window - self.recv_window - buffered
        if max(closed, self._pending_recv_release + bytes_read) < self._grow_threshold():
            self._pending_recv_release += bytes_read
        else:
            await super()._auto_tune_and_send_window_update(bytes_read=bytes_read)

    def _apply_autotune_epoch(self, buffered: int) -> int:
        return super()._apply_autotune_epoch(buffered) if self.target_recv_window < _WINDOW_BYTES else 0


class _Buffer(bytearray):
    """One stream's unread bytes, counted against its connection."""

    __slots__ = ("_connection",)

    def __init__(self, connection: BoundedYamux) -> None:
        super().__init__()
        self._connection = connection

    def extend(self, data: Any) -> None:
        self._connection.admit(len(self), len(data))
        super().extend(data)


class _Buffers(dict[int, bytearray]):
    """libp2p makes a buffer for each new stream here, just after the stream: ours take the place of both."""

    def __init__(self, connection: BoundedYamux) -> None:
        super().__init__()
        self._connection = connection

    def __setitem__(self, number: int, buffer: bytearray) -> None:
        self._connection.streams[number].__class__ = _Stream
        super().__setitem__(number, _Buffer(self._connection))
        if len(self) > _MAX_OPEN_STREAMS:
            self._connection.overrun(ProtocolViolation(f"more than {_MAX_OPEN_STREAMS} open streams"))


class BoundedYamux(Yamux):
    def __init__(self, secured: ISecureConn, peer: ID, limits: HostLimits, on_overrun: Overrun) -> None:
        super().__init__(secured, peer, is_initiator=secured.is_initiator, on_close=_nothing)
        self._limits, self._on_overrun = limits, on_overrun
        self.stream_buffers = _Buffers(self)
        self._overrun = False

    def admit(self, unread_bytes: int, more_bytes: int) -> None:
        """Raises when a stream, or the connection as a whole, may not hold that much unread."""
        if unread_bytes + more_bytes > 2 * _WINDOW_BYTES:
            self.overrun(ProtocolViolation(f"sent {unread_bytes + more_bytes} bytes into a window of {_WINDOW_BYTES}"))
        total = sum(map(len, self.stream_buffers.values())) + more_bytes
        if self._overrun or total > self._limits.unread_bytes_a_connection:
            self.overrun(Unavailable(f"{total} bytes unread on one connection"))

    def overrun(self, error: Exception) -> None:
        """Has the connection ended, once. Raises, so that the frame at hand and all later ones are dropped."""
        if not self._overrun:
            self._overrun = True
            self._on_overrun(self.peer_id, error)
        raise ConnectionResetError(str(error))

    async def _read_data_body(self, length: int) -> bytes:
        if length > _WINDOW_BYTES:  # refused when announced: libp2p would first collect up to 16 MiB
            self.overrun(ProtocolViolation(f"frame of {length} bytes, window {_WINDOW_BYTES}"))
        return await super()._read_data_body(length)

    async def _write_frame(self, data: bytes) -> None:
        deadline = trio.current_time() + self._limits.frame_write_s
        with trio.CancelScope(shield=True, deadline=deadline) as scope:
            async with self._write_lock:
                await self.secured_conn.write(data)
        if scope.cancelled_caught:
            await self.secured_conn.close()  # the reading side notices and cleans up
            raise ConnectionResetError("the peer's socket takes nothing")

    async def start(self) -> None:
        """However its tasks end, the connection ends with them: none is left that looks open and answers nothing."""
        try:
            await super().start()
        finally:
            if not self.event_closed.is_set():
                with trio.CancelScope(shield=True, deadline=trio.current_time() + self._limits.close_s):
                    await self._cleanup_on_error()

    async def _measure_rtt_loop(self) -> None:
        """libp2p measures and shrugs when no answer comes; here that ends the connection."""
        try:
            while await self._answers():
                with trio.move_on_after(self._limits.keepalive_s):
                    await self.event_shutting_down.wait()
        except Exception as error:
            log.debug("ping_failed peer=%s error=%r", self.peer_id.to_base58()[-8:], error)
        await self.secured_conn.close()  # the reading side notices and cleans up

    async def _answers(self) -> bool:
        if self.event_shutting_down.is_set():
            return False
        self._ping_id += 1
        self._ping_event = trio.Event()
        await self._write_frame(struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_PING, FLAG_SYN, 0, self._ping_id))
        self._ping_sent_time = trio.current_time()
        with trio.move_on_after(self._limits.silence_s):
            await self._ping_event.wait()
            return True
        log.info("peer_silent peer=%s", self.peer_id.to_base58()[-8:])
        return False

    async def _cleanup_on_error(self) -> None:
        self._mark_torn()
        await super()._cleanup_on_error()

    async def close(self, error_code: int = GO_AWAY_NORMAL) -> None:
        self._mark_torn()
        await super().close(error_code)

    def _mark_torn(self) -> None:
        for number, stream in self.streams.items():
            if isinstance(stream, _Stream) and stream.torn is None and not stream.closed:
                stream.leftover = bytes(self.stream_buffers.get(number, b""))
                stream.torn = not stream.recv_closed


class BoundedMuxer(MuxerMultistream):
    """Negotiates the muxer of a new connection; the only one on offer is ours."""

    def __init__(self, limits: HostLimits, on_overrun: Overrun) -> None:
        super().__init__({PROTOCOL_ID: BoundedYamux})  # type: ignore[dict-item]
        self._limits, self._on_overrun = limits, on_overrun

    async def new_conn(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        protocol, _ = await self._selector.select(conn, conn.is_initiator, self.negotiate_timeout)
        muxed = BoundedYamux(conn, peer_id, self._limits, self._on_overrun)
        return self._annotate_connection(muxed, conn, protocol)


async def _nothing() -> None:
    """Yamux wants a callback; the swarm sets its own when it takes the connection over."""
