"""Hosts without sockets: trio memory streams between peers of one process, as far as membership needs them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio
from trio.testing import memory_stream_pair

from celluler.errors import CellulerError, InvalidSpec, PeerViolation, Unavailable
from celluler.identity import Identity, PeerId

Handler = Callable[[PeerId, trio.abc.Stream], Awaitable[None]]


class MemoryNetwork:
    """All hosts by peer id, and which of them do not hear each other."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.hosts: dict[PeerId, MemoryHost] = {}
        self.cut: set[frozenset[PeerId]] = set()
        self.streams_opened = 0

    def host(self, identity: Identity, *, listens: bool = True) -> MemoryHost:
        """A host that begins to live; one of the same identity is gone by that."""
        host = self.hosts[identity.peer_id] = MemoryHost(self, identity.peer_id, listens=listens)
        return host

    def kill(self, peer: PeerId) -> None:
        del self.hosts[peer]


class MemoryHost:
    """A host in memory; it must have learnt a peer's address before it can open a stream to it."""

    def __init__(self, network: MemoryNetwork, peer: PeerId, *, listens: bool) -> None:
        self._network = network
        self.peer_id = peer
        self.addresses: tuple[str, ...] = (f"/ip4/127.0.0.1/tcp/4001/p2p/{peer}",) if listens else ()
        self.learnt: dict[PeerId, tuple[str, ...]] = {}
        self.penalties: list[tuple[PeerId, Exception]] = []
        self.handlers: dict[str, Handler] = {}

    def connected(self) -> frozenset[PeerId]:
        return frozenset(self._network.hosts) & frozenset(self.learnt)

    async def connect(self, address: str) -> PeerId:
        _, named, name = address.rpartition("/p2p/")
        peer = PeerId(name)
        if not named:
            raise InvalidSpec("address", "names no peer")
        self.learn(peer, (address,))
        if peer not in self._network.hosts:
            raise Unavailable("nobody listens there", peer=peer)
        return peer

    def learn(self, peer: PeerId, addresses: Sequence[str]) -> None:
        self.learnt[peer] = tuple(addresses)

    async def open_stream(self, peer: PeerId, protocol: str) -> trio.abc.HalfCloseableStream:
        await trio.lowlevel.checkpoint()
        other = self._network.hosts.get(peer)
        if peer not in self.learnt or other is None or not self._hears(other):
            raise Unavailable("cannot reach", peer=peer)
        if protocol not in other.handlers:
            raise Unavailable("does not speak that", peer=peer)
        self._network.streams_opened += 1
        ours, theirs = memory_stream_pair()
        answering = Link(theirs, lambda: other._hears(self))
        self._network.nursery.start_soon(other._answer, self.peer_id, other.handlers[protocol], answering)
        return Link(ours, lambda: self._hears(other))

    def _hears(self, other: MemoryHost) -> bool:
        """Both live and no link is cut."""
        hosts = self._network.hosts
        alive = hosts.get(self.peer_id) is self and hosts.get(other.peer_id) is other
        return alive and frozenset((self.peer_id, other.peer_id)) not in self._network.cut

    def serve(self, protocol: str, handler: Handler) -> None:
        self.handlers[protocol] = handler

    def penalise(self, peer: PeerId, error: Exception) -> None:
        self.penalties.append((peer, error))

    async def _answer(self, peer: PeerId, handler: Handler, stream: trio.abc.Stream) -> None:
        async with stream:
            try:
                await handler(peer, stream)
            except PeerViolation as error:
                self.penalise(peer, error)
            except (CellulerError, trio.BrokenResourceError, trio.ClosedResourceError):
                pass


class Link(trio.abc.HalfCloseableStream):
    """One end of a stream on a link that may fall silent: then what is sent is lost, and nobody is told."""

    def __init__(self, stream: trio.abc.HalfCloseableStream, up: Callable[[], bool]) -> None:
        self._stream, self._up = stream, up

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data if self._up() else b"")

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()
