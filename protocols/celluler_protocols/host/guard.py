"""Between libp2p's network and everything above it: nothing a peer does may end the host.

py-libp2p 0.8.1 lets an exception of one stream's handler end the swarm, keeps the slot of every inbound connection
until the swarm ends (after some hundred connections it accepts none), and dials on its own whom it has heard of.
This module takes those places over, on the instance; it knows nothing of celluler's protocols.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import trio
from libp2p.abc import INetStream, INotifee
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID

from celluler.errors import ProtocolViolation
from celluler.identity import PeerId, short
from celluler_protocols.host.addresses import peer_of
from celluler_protocols.host.ledger import Slots
from celluler_protocols.host.limits import HostLimits

FORGOTTEN_S = 1.0
"""How often a connection looks whether libp2p still knows of it."""

log = logging.getLogger(__name__)


class Guard:
    """Admits connections and streams, and contains what their handlers raise."""

    def __init__(self, swarm: Any, limits: HostLimits, admits: Callable[[PeerId], bool]) -> None:
        """admits: says whether a peer may be connected at all (it is not banned)."""
        self._swarm, self._limits, self._admits = swarm, limits, admits
        self._slots = Slots(limits.streams, limits.streams_a_peer)

    def install(self) -> None:
        """Before the swarm runs."""
        self._inner = self._swarm.common_stream_handler
        self._swarm.common_stream_handler = self._handle_stream
        self._swarm._handle_inbound_connection = self._handle_connection
        self._swarm.auto_connector = _NoConnector()

    @property
    def streams(self) -> int:
        """Inbound streams being served."""
        return self._slots.total

    async def _handle_stream(self, stream: INetStream) -> None:
        try:
            peer = peer_of(stream.muxed_conn.peer_id)
        except ProtocolViolation:
            return await _reset(stream)
        if not self._admits(peer) or not self._slots.take(peer):
            log.debug("stream_refused peer=%s", short(peer))
            return await _reset(stream)
        try:
            await self._inner(stream)
        except BaseExceptionGroup as group:
            await _reset(stream)
            if (rest := group.split(Exception)[1]) is not None:
                raise rest from None
        except Exception as error:
            log.info("stream_failed peer=%s protocol=%s error=%r", short(peer), stream.get_protocol(), error)
            await _reset(stream)
        finally:
            self._slots.give_back(peer)

    async def _handle_connection(self, socket: Any, address: Any) -> None:
        """Serves one inbound connection from handshake to end; returning closes the socket."""
        swarm = self._swarm
        if len(swarm.get_connections()) >= self._limits.connections:
            log.info("connection_refused reason=full")
            return
        try:
            muxed = await swarm.upgrade_inbound_raw_conn(RawConnection(socket, False), address)
            if self._welcome(muxed.peer_id):
                await self._until_closed(muxed)
            else:
                await swarm.close_peer(muxed.peer_id)
        except Exception as error:
            log.debug("connection_failed error=%r", error)

    async def _until_closed(self, muxed: Any) -> None:
        """libp2p, while it closes its connections to a peer, forgets one that comes meanwhile, and leaves it open."""
        while not muxed.event_closed.is_set():
            with trio.move_on_after(FORGOTTEN_S):
                await muxed.event_closed.wait()
            if not any(one.muxed_conn is muxed for one in self._swarm.get_connections(muxed.peer_id)):
                await muxed.close()
                return

    def _welcome(self, identifier: ID) -> bool:
        try:
            peer = peer_of(identifier)
        except ProtocolViolation:
            return False
        return self._admits(peer) and len(self._swarm.get_connections(identifier)) <= self._limits.connections_a_peer


class Notifee(INotifee):
    """Tells the host who came and who left."""

    def __init__(self, connected: Callable[[ID], None], disconnected: Callable[[ID], None]) -> None:
        self._connected, self._disconnected = connected, disconnected

    async def connected(self, network: Any, conn: Any) -> None:
        self._connected(conn.muxed_conn.peer_id)

    async def disconnected(self, network: Any, conn: Any) -> None:
        self._disconnected(conn.muxed_conn.peer_id)

    async def opened_stream(self, network: Any, stream: Any) -> None: ...

    async def closed_stream(self, network: Any, stream: Any) -> None: ...

    async def listen(self, network: Any, multiaddr: Any) -> None: ...

    async def listen_close(self, network: Any, multiaddr: Any) -> None: ...


class _NoConnector:
    """Instead of libp2p's auto-connector, which dials every peer it has heard of: whom to connect is ours to say."""

    _is_connecting = False

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def run_background_task(self, nursery: trio.Nursery) -> None: ...

    async def maybe_connect(self) -> None: ...

    def record_disconnect(self, peer: ID) -> None: ...


async def _reset(stream: INetStream) -> None:
    with trio.CancelScope(shield=True, deadline=trio.current_time() + 1), suppress(Exception):
        await stream.reset()  # it may be gone already
