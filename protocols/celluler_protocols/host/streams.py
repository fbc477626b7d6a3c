"""A libp2p stream as a trio stream, with libp2p's zoo of endings reduced to trio's three."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import trio
from libp2p.abc import INetStream
from libp2p.network.stream.exceptions import StreamEOF

from celluler.identity import PeerId
from celluler_protocols.host.ledger import Meter
from celluler_protocols.host.limits import HostLimits

_PIECE_BYTES = 60 * 1024
_POLL_S = (0.001, 0.002, 0.005, 0.01, 0.02)
_LINGER_BYTES = 1 << 20


class HostStream(trio.abc.HalfCloseableStream):
    """Reliable bytes to and from one authenticated peer.

    `receive_some` returns b"" when the peer closed its side, and raises BrokenResourceError when the stream was
    reset or its connection lost. `send_all` raises BrokenResourceError too when the peer has read nothing for
    `stalled_write_s`. `aclose` says goodbye in order; under cancellation, or after `abort`, the peer sees a reset.
    """

    def __init__(
        self,
        net: INetStream,
        peer: PeerId,
        protocol: str,
        *,
        limits: HostLimits,
        meter: Meter,
        on_closed: Callable[[HostStream], None] | None = None,
    ) -> None:
        self.peer, self.protocol = peer, protocol
        self._net: Any = net
        self._limits, self._meter, self._on_closed = limits, meter, on_closed
        self._closed = self._sending = self._receiving = False
        self._ended = self._sent_eof = False
        self._reading = trio.CancelScope()

    def __repr__(self) -> str:
        return f"HostStream({self.protocol}, {self.peer[-8:]})"

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True
        try:
            with memoryview(data).cast("B") as view:
                await self._send(view)
        finally:
            self._sending = False

    async def wait_send_all_might_not_block(self) -> None:
        await self._window()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        self._refuse_closed()
        if self._ended:
            await trio.lowlevel.checkpoint()
            return b""
        self._receiving = True
        try:
            with trio.CancelScope() as self._reading:
                return await self._receive(min(max_bytes or _PIECE_BYTES, _PIECE_BYTES))
            raise trio.ClosedResourceError("this stream was closed here, while reading")
        finally:
            self._receiving = False

    async def send_eof(self) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._refuse_closed()
        if not self._sent_eof:
            self._sent_eof = True
            try:
                await self._net.close_write()
            except Exception as error:
                raise trio.BrokenResourceError(str(error)) from error
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._reading.cancel()
            cancelled = trio.current_effective_deadline() == float("-inf")
            with trio.CancelScope(shield=True, deadline=trio.current_time() + self._limits.close_s):
                await self._quietly(self._net.reset if cancelled else self._net.close)
            if self._on_closed is not None and not cancelled:
                self._on_closed(self)
        await trio.lowlevel.checkpoint()

    async def abort(self) -> None:
        """Reset: the peer's next read or write fails. Safe to call at any time, also after `aclose`."""
        self._closed = self._ended = True
        self._reading.cancel()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self._limits.close_s):
            await self._quietly(self._net.reset)

    async def linger(self) -> None:
        """After `aclose`: wait a little for the peer to close its side too, then reset what is left of the stream."""
        drained = 0
        with trio.move_on_after(self._limits.linger_s):
            while not self._ended and drained < _LINGER_BYTES:
                try:
                    drained += len(await self._net.muxed_stream.read(_PIECE_BYTES))
                except Exception:
                    self._ended = True
        if not self._ended:
            await self.abort()

    async def _send(self, view: memoryview) -> None:
        self._refuse_closed()
        if self._sent_eof:
            raise trio.ClosedResourceError("end of stream was already sent")
        sent = 0
        while sent < len(view):
            window = await self._window()
            piece = bytes(view[sent : sent + min(window, _PIECE_BYTES)])
            try:
                await self._net.write(piece)
            except Exception as error:
                raise trio.BrokenResourceError(f"stream to {self.peer[-8:]}: {error}") from error
            sent += len(piece)
            self._meter.add(self.peer, sent=len(piece))
        if not sent:
            await trio.lowlevel.checkpoint()

    async def _window(self) -> int:
        """How much the peer is willing to take, once it is anything. libp2p itself gives up after 5 s."""
        muxed = self._net.muxed_stream
        deadline = trio.current_time() + self._limits.stalled_write_s
        waits = 0
        while not muxed.send_window:
            self._refuse_closed()
            if muxed.closed or muxed.send_closed:
                raise trio.BrokenResourceError("the stream was reset")
            if trio.current_time() > deadline:
                raise trio.BrokenResourceError(f"peer {self.peer[-8:]} reads nothing")
            await trio.sleep(_POLL_S[min(waits, len(_POLL_S) - 1)])
            waits += 1
        return int(muxed.send_window)

    async def _receive(self, size: int) -> bytes:
        try:
            data = bytes(await self._net.read(size))
        except StreamEOF as error:
            data = self._leftover(size)
            if not data:
                self._ended = True
                muxed = self._net.muxed_stream
                if muxed.reset_received or muxed.torn:
                    raise trio.BrokenResourceError(f"stream from {self.peer[-8:]} was reset or lost") from error
        except Exception as error:
            raise trio.BrokenResourceError(f"stream from {self.peer[-8:]}: {error!r}") from error
        self._refuse_closed()
        if data:
            self._meter.add(self.peer, received=len(data))
        return data

    def _leftover(self, size: int) -> bytes:
        """What had arrived before the connection ended."""
        muxed = self._net.muxed_stream
        kept: bytes = muxed.leftover
        muxed.leftover = kept[size:]
        return kept[:size]

    def _refuse_closed(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed here")

    @staticmethod
    async def _quietly(ending: Callable[[], Any]) -> None:
        with suppress(Exception):  # the connection may be gone: closed is what was asked for
            await ending()
