"""A peer on the network: authenticated streams to other peers, gossip and the DHT, guarded against all of them.

`open_host` is ready on entry and gone on exit: no task, no socket, no port left. Peers are named by peer id; whoever
is at the other end of a stream holds that key. Addresses are hints that never decide who a peer is.
What libp2p gives and what is guarded here: docs/explanation/host.md.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from celluler.errors import (
    CellulerError,
    LocalError,
    PeerViolation,
    ProtocolViolation,
    TimedOut,
    Unavailable,
)
from celluler.identity import Identity, PeerId, short
from celluler_protocols.host.addresses import (
    libp2p_id,
    parse_address,
    parse_dialable,
    parse_foreign,
    peer_of,
    resolve,
)
from celluler_protocols.host.guard import Guard, Notifee
from celluler_protocols.host.kad import Dht, Validator
from celluler_protocols.host.ledger import Ledger, Meter
from celluler_protocols.host.limits import HostLimits, Traffic, Violation
from celluler_protocols.host.node import new_node
from celluler_protocols.host.pubsub import PubSub
from celluler_protocols.host.services import Runner
from celluler_protocols.host.streams import HostStream
from celluler_protocols.nursery import own_nursery

log = logging.getLogger(__name__)

Handler = Callable[[PeerId, trio.abc.Stream], Awaitable[None]]
_PEERSTORE_TTL_S = 3600
_PEERSTORE_SWEEP_S = 60
_LINGERING_STREAMS = 256


@asynccontextmanager
async def open_host(
    identity: Identity,
    *,
    listen: Sequence[str] = (),
    limits: HostLimits | None = None,
    validators: Mapping[str, Validator] | None = None,
    serve_dht: bool | None = None,
) -> AsyncIterator[Host]:
    """Run a host for the length of the block.

    listen: addresses such as `/ip4/127.0.0.1/tcp/0`; none for a client, which peers reach over its own connections.
    validators: the DHT's namespaces and who judges their values; keys of any other namespace are refused.
    serve_dht: whether to hold part of the DHT for others; by default a host does if it listens.
    Raises InvalidSpec for an address that is none, LocalError for one that cannot be listened on.
    """
    limits = limits or HostLimits()
    wanted = [parse_address(text)[0] for text in listen]
    for address in wanted:
        _refuse_taken_port(address)
    async with own_nursery() as nursery:
        host = Host(identity, limits, nursery)
        server = bool(wanted) if serve_dht is None else serve_dht
        host.pubsub = PubSub(host._node, limits, host.penalise)
        host.dht = Dht(host._node, limits, validators or {}, server=server, opener=host._negotiate, learn=host._hear)
        swarm = Runner(host._swarm, nursery)
        try:
            await host._listen(wanted)
            host.pubsub.start(nursery)
            host.dht.start(nursery)
            nursery.start_soon(host._node.get_peerstore().start_cleanup_task, _PEERSTORE_SWEEP_S)
            yield host
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + limits.close_s):
                host.pubsub.stop()
                await host._hang_up()
                await host._node.close()
                await swarm.wait_ended()


class Host:
    """Made by `open_host`."""

    pubsub: PubSub
    dht: Dht

    def __init__(self, identity: Identity, limits: HostLimits, nursery: trio.Nursery) -> None:
        self.peer_id = identity.peer_id
        self._limits, self._nursery = limits, nursery
        self._ledger, self._meter = Ledger(limits), Meter(limits.ledger_peers)
        self._addresses: OrderedDict[PeerId, tuple[Multiaddr, ...]] = OrderedDict()
        self._dialling: dict[PeerId, trio.Event] = {}
        self._lingering = 0
        self._changed = trio.Event()
        self._node = new_node(identity, limits, self._on_overrun)
        self._swarm: Any = self._node.get_network()
        self._guard = Guard(self._swarm, limits, self._admits)
        self._guard.install()
        self._swarm.register_notifee(Notifee(self._on_connected, self._on_disconnected))

    # --- who and where -----------------------------------------------------------------------------------------

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where others may dial us, our peer id in each; empty for a client."""
        return tuple(str(address) for address in self._node.get_addrs())

    def connected(self) -> frozenset[PeerId]:
        return frozenset(PeerId(peer.to_base58()) for peer in self._swarm.connections)

    async def wait_connections_changed(self) -> None:
        """Returns when the next peer connects or disconnects."""
        await self._changed.wait()

    async def connect(self, address: str) -> PeerId:
        """Connect to the peer that the address names, and remember the address.

        Raises InvalidSpec for an address that is none or names nobody, LocalError for our own, Unavailable.
        """
        transport, peer = parse_dialable(address)
        self._remember(peer, (transport,))
        await self._reach(peer)
        return peer

    def learn(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Remember where a peer said it is; the newest come first. Raises ProtocolViolation for what is no address."""
        libp2p_id(peer)
        self._remember(peer, tuple(parse_foreign(peer, text) for text in addresses[: self._limits.addresses_a_peer]))

    def remote_hosts(self, peer: PeerId) -> tuple[str, ...]:
        """IP addresses at which this peer has proven its key to us: those its open connections come from or go to."""
        found = (
            conn.muxed_conn.get_remote_address()
            for conn in self._swarm.get_connections(libp2p_id(peer))
            if not conn.is_closed
        )
        return tuple(dict.fromkeys(address[0] for address in found if address))

    async def disconnect(self, peer: PeerId) -> None:
        """Close every connection to a peer, its streams with them."""
        with trio.move_on_after(self._limits.close_s):
            await self._swarm.close_peer(libp2p_id(peer))

    # --- streams -----------------------------------------------------------------------------------------------

    async def open_stream(self, peer: PeerId, protocol: str) -> HostStream:
        """A stream to a peer, dialled at its learnt addresses if it is not connected.

        Raises Unavailable when it cannot be reached, does not speak the protocol or has no room; TimedOut;
        ProtocolViolation for a peer id that is none. Every wait is bounded.
        """
        identifier = libp2p_id(peer)
        await self._reach(peer)
        net = await self._negotiate(identifier, protocol)
        return HostStream(net, peer, protocol, limits=self._limits, meter=self._meter, on_closed=self._on_closed)

    def serve(self, protocol: str, handler: Handler) -> None:
        """Let `handler` answer each stream that peers open with this protocol. The stream is closed when it returns.

        What a handler raises ends its stream only: a PeerViolation also counts against the peer.
        """

        async def answer(net: Any) -> None:
            peer = peer_of(net.muxed_conn.peer_id)
            stream = HostStream(net, peer, protocol, limits=self._limits, meter=self._meter)
            try:
                await handler(peer, stream)
                await stream.aclose()
                await stream.linger()
            except BaseException as error:
                await stream.abort()
                if (rest := self._judge(peer, protocol, error)) is not None:
                    raise rest from None

        self._node.set_stream_handler(protocol, answer)

    @property
    def protocols(self) -> tuple[str, ...]:
        """Every protocol answered here, libp2p's own included."""
        return tuple(str(name) for name in self._node.get_mux().handlers if name)

    @property
    def inbound_streams(self) -> int:
        """Streams of peers being answered at this moment."""
        return self._guard.streams

    # --- judgement ---------------------------------------------------------------------------------------------

    def penalise(self, peer: PeerId, error: Exception) -> None:
        """Write a violation into the ledger and disconnect; after some of them the peer is banned for a time."""
        if peer == self.peer_id:
            return
        banned = self._ledger.record(peer, f"{type(error).__name__}: {error}", trio.current_time())
        log.info("peer_violation peer=%s banned=%s reason=%s", short(peer), banned, str(error)[:120])
        self._nursery.start_soon(self._drop, peer)

    @property
    def violations(self) -> tuple[Violation, ...]:
        return self._ledger.violations

    @property
    def traffic(self) -> Mapping[PeerId, Traffic]:
        return self._meter.traffic

    # --- inside ------------------------------------------------------------------------------------------------

    async def _listen(self, wanted: Sequence[Multiaddr]) -> None:
        if not wanted:
            return
        with trio.move_on_after(self._limits.close_s):
            await self._swarm.listen(*wanted)
        missing = [str(address) for address in wanted if str(address) not in self._swarm.listeners]
        if missing:
            raise LocalError(f"cannot listen on {', '.join(missing)}")

    async def _hang_up(self) -> None:
        """Ports first, then all connections at once: libp2p closes one after the other, a quarter second each."""
        for listener in tuple(self._swarm.listeners.values()):
            await listener.close()
        async with trio.open_nursery() as nursery:
            for peer in self.connected():
                nursery.start_soon(self._drop, peer)

    def _admits(self, peer: PeerId) -> bool:
        return not self._ledger.banned(peer, trio.current_time())

    def _remember(self, peer: PeerId, addresses: tuple[Multiaddr, ...]) -> None:
        if peer == self.peer_id or not addresses:
            return
        known = self._addresses.pop(peer, ())
        kept = tuple(dict.fromkeys(addresses + known))[: self._limits.addresses_a_peer]
        self._addresses[peer] = kept
        if len(self._addresses) > self._limits.learnt_peers:
            self._addresses.popitem(last=False)
        self._node.get_peerstore().add_addrs(libp2p_id(peer), list(kept), _PEERSTORE_TTL_S)

    def _hear(self, identifier: ID, addresses: Sequence[Multiaddr]) -> PeerId | None:
        """Addresses heard in the DHT: the same, but what is malformed is passed over."""
        try:
            peer = peer_of(identifier)
            self.learn(peer, [str(address) for address in addresses])
        except ProtocolViolation:
            return None
        return peer

    async def _reach(self, peer: PeerId) -> None:
        """Returns when the peer is connected. One dial at a time for each peer, at all its addresses in turn."""
        if peer == self.peer_id:
            raise LocalError("that is this host itself")
        if not self._admits(peer):
            raise Unavailable(f"peer {short(peer)} is banned", peer=peer)
        while not self._is_connected(peer):
            if (other := self._dialling.get(peer)) is None:
                await self._dial(peer)
                return
            await other.wait()
            if not self._is_connected(peer) and peer not in self._dialling:
                raise Unavailable(f"cannot reach peer {short(peer)}", peer=peer)

    async def _dial(self, peer: PeerId) -> None:
        identifier = libp2p_id(peer)
        self._dialling[peer] = trio.Event()
        try:
            for address in await self._candidates(peer, identifier):
                with trio.move_on_after(self._limits.dial_s):
                    try:
                        await self._swarm.dial_addr(address, identifier)
                    except Exception as error:
                        log.debug("dial_failed peer=%s address=%s error=%r", short(peer), address, error)
                if self._is_connected(peer):
                    self._swarm.unblock_peer(identifier)
                    return
        finally:
            self._dialling.pop(peer).set()
        raise Unavailable(f"cannot reach peer {short(peer)}", peer=peer)

    async def _candidates(self, peer: PeerId, identifier: ID) -> tuple[Multiaddr, ...]:
        try:
            heard = tuple(self._node.get_peerstore().addrs(identifier))
        except Exception:
            heard = ()
        known = tuple(dict.fromkeys(self._addresses.get(peer, ()) + heard))[: self._limits.addresses_a_peer]
        with trio.move_on_after(self._limits.dial_s):
            known = tuple(dict.fromkeys([found for address in known for found in await resolve(address)]))
        return known[: self._limits.addresses_a_peer]

    def _is_connected(self, peer: PeerId) -> bool:
        return any(not conn.is_closed for conn in self._swarm.get_connections(libp2p_id(peer)))

    async def _negotiate(self, identifier: ID, protocol: str) -> Any:
        """A libp2p stream. Runs apart from the caller, so that a caller who gives up leaves no half-made stream."""
        send, receive = trio.open_memory_channel[Any](0)
        self._nursery.start_soon(self._negotiate_apart, identifier, protocol, send)
        with receive:
            outcome = await receive.receive()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _negotiate_apart(self, identifier: ID, protocol: str, answer: trio.MemorySendChannel[Any]) -> None:
        peer = identifier.to_base58()
        outcome: Any = TimedOut(f"peer {short(peer)} did not open {protocol} in time", peer=peer)
        with trio.move_on_after(self._limits.open_stream_s):
            try:
                outcome = await self._node.new_stream(identifier, [protocol])
            except Exception as error:
                outcome = Unavailable(f"peer {short(peer)} does not open {protocol}: {error}", peer=peer)
        try:
            with answer:
                await answer.send(outcome)
        except trio.BrokenResourceError:
            if not isinstance(outcome, Exception):
                await outcome.reset()

    def _judge(self, peer: PeerId, protocol: str, error: BaseException) -> BaseException | None:
        """What of a handler's exception must go on up: only what is no ordinary exception (a cancellation)."""
        if isinstance(error, BaseExceptionGroup):
            for part in error.exceptions:
                if isinstance(part, Exception):
                    self._judge(peer, protocol, part)
            return error.split(Exception)[1]
        if not isinstance(error, Exception):
            return error
        if isinstance(error, PeerViolation):
            self.penalise(peer, error)
        elif isinstance(error, CellulerError | trio.BrokenResourceError | trio.ClosedResourceError | trio.TooSlowError):
            log.info("handler_ended peer=%s protocol=%s error=%r", short(peer), protocol, error)
        else:
            log.error("handler_failed peer=%s protocol=%s", short(peer), protocol, exc_info=error)
        return None

    async def _drop(self, peer: PeerId) -> None:
        try:
            await self.disconnect(peer)
        except Exception as error:
            log.debug("disconnect_failed peer=%s error=%r", short(peer), error)

    def _on_overrun(self, identifier: ID, error: Exception) -> None:
        peer = PeerId(identifier.to_base58())
        if isinstance(error, PeerViolation):
            self.penalise(peer, error)
        else:
            log.warning("connection_overrun peer=%s error=%s", short(peer), error)
            self._nursery.start_soon(self._drop, peer)

    def _on_closed(self, stream: HostStream) -> None:
        if self._lingering >= _LINGERING_STREAMS:
            self._nursery.start_soon(stream.abort)
        else:
            self._nursery.start_soon(self._linger, stream)

    async def _linger(self, stream: HostStream) -> None:
        self._lingering += 1
        try:
            await stream.linger()
        finally:
            self._lingering -= 1

    def _on_connected(self, identifier: ID) -> None:
        self._announce_change()
        try:
            admitted = self._admits(peer_of(identifier))
        except ProtocolViolation:
            admitted = False
        if admitted:
            self._nursery.start_soon(self._meet, identifier)
        else:
            self._nursery.start_soon(self._drop, PeerId(identifier.to_base58()))

    async def _meet(self, identifier: ID) -> None:
        try:
            await self.dht.meet(identifier)
        except Exception as error:
            log.debug("meet_failed peer=%s error=%r", short(identifier.to_base58()), error)

    def _on_disconnected(self, identifier: ID) -> None:
        self._announce_change()
        log.debug("peer_disconnected peer=%s", short(identifier.to_base58()))

    def _announce_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _refuse_taken_port(address: Multiaddr) -> None:
    """libp2p listens with SO_REUSEPORT: a second host on the port would silently share its connections."""
    port = int(address.value_for_protocol("tcp"))
    family, name = next(
        (
            (kind, address.value_for_protocol(word))
            for kind, word in ((socket.AF_INET, "ip4"), (socket.AF_INET6, "ip6"))
            if word in {protocol.name for protocol in address.protocols()}
        ),
        (None, ""),
    )
    if family is None:
        raise LocalError(f"cannot listen on a name: {address}", hint="use /ip4/… or /ip6/…")
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((name, port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            raise LocalError(f"cannot listen on {address}: {'port in use' if taken else error}") from error
