"""The DHT: values under names judged by validators, and who provides what. Kademlia over `/celluler/kad/1.0.0`.

Nobody is believed: a value counts when its namespace's validator accepts it, a provider record is a hint to dial.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import trio
from libp2p.kad_dht.common import PROTOCOL_ID as THEIR_PROTOCOL_ID
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Record
from libp2p.kad_dht.peer_routing import PeerRouting
from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.kad_dht.value_store import ValueStore
from libp2p.peer.id import ID
from libp2p.records.validator import NamespacedValidator
from libp2p.records.validator import Validator as TheirValidator

from celluler.errors import LocalError, PeerViolation, TimedOut
from celluler.identity import PeerId
from celluler_protocols.host.limits import MAX_VALUE_BYTES, HostLimits
from celluler_protocols.host.services import Runner

log = logging.getLogger(__name__)

PROTOCOL_ID = "/celluler/kad/1.0.0"
MAX_KEY_BYTES = 128
_STORED_VALUES = 8192
_STORED_KEYS = 32768
_PROVIDERS = 20
_QUESTIONS_AT_ONCE = 8
_QUESTION_S = 3.0
_SHA256_MULTIHASH = bytes((0x12, 0x20))
_PROVIDER_RECORDS_A_WINDOW = 256
_IDENTIFY_PAUSES_S = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)

Opener = Callable[[ID, str], Awaitable[Any]]
Learner = Callable[[ID, Sequence[Any]], PeerId | None]


class Validator(Protocol):
    """Judges the values of one namespace: keys `/<namespace>/…`."""

    def validate(self, key: str, value: bytes) -> None:
        """Raises PeerViolation unless `value` may stand under `key`."""

    def select(self, key: str, values: Sequence[bytes]) -> int:
        """The index of the best of some valid values."""


class Dht:
    def __init__(
        self,
        node: Any,
        limits: HostLimits,
        validators: Mapping[str, Validator],
        *,
        server: bool,
        opener: Opener,
        learn: Learner,
    ) -> None:
        self._node, self._limits, self._learn = node, limits, learn
        adapted = {name: _Adapter(validator) for name, validator in validators.items()}
        host = _KadHost(node, opener)
        self._kad = KadDHT(
            host,  # type: ignore[arg-type]
            DHTMode.SERVER if server else DHTMode.CLIENT,
            validator=NamespacedValidator(adapted, strict_validation=True),  # type: ignore[arg-type]
            validator_changed=True,
            strict_validation=True,
            protocol_prefix="/celluler",  # type: ignore[arg-type]
        )
        self._kad._provider_rate_max = _PROVIDER_RECORDS_A_WINDOW
        self._kad.peer_routing = _Routing(host, self._kad.routing_table)  # type: ignore[arg-type]
        self._kad.value_store = _Values(host, self._kad.local_peer_id)  # type: ignore[arg-type]
        self._kad.provider_store = _Providers(host, self._kad.peer_routing)  # type: ignore[arg-type]

    def start(self, nursery: trio.Nursery) -> None:
        Runner(self._kad, nursery)

    async def meet(self, peer: ID) -> None:
        """A peer connected: it joins the routing table once it has told that it holds part of the DHT."""
        for pause_s in _IDENTIFY_PAUSES_S:
            await trio.sleep(pause_s)
            if protocols := self._spoken_by(peer):
                if PROTOCOL_ID in protocols:
                    await self._kad.add_peer(peer)
                return

    def _spoken_by(self, peer: ID) -> Sequence[str]:
        try:
            return tuple(self._node.get_peerstore().get_protocols(peer))
        except Exception:
            return ()

    async def put(self, key: str, value: bytes) -> None:
        """Store a value here and at the peers nearest to its key.

        Raises LocalError for a value its validator refuses or that is older than the one held here; TimedOut.
        """
        _check(key, value)
        with self._deadline("put"):
            try:
                await self._kad.put_value(key, value)
            except Exception as error:
                raise LocalError(f"DHT refuses {key}: {error}") from error

    async def get(self, key: str) -> bytes | None:
        """The best value that we or the peers nearest to the key hold; None when nobody has one.

        Every peer that held an older one is told the best. Raises LocalError for a key of no namespace of ours.
        """
        _check(key, b"")
        raw = key.encode()
        held: dict[ID | None, bytes] = {}
        if (own := self._kad.value_store.get(raw)) is not None:
            held[None] = own.value
        await self._ask_around(raw, lambda peer: self._ask_value(peer, key, raw, held))
        if not held:
            return None
        values = list(dict.fromkeys(held.values()))
        best = values[self._validator.select(key, values)]
        if held.get(None) != best:
            self._kad.value_store.put_record(raw, Record(key=raw, value=best))
        stale = [peer for peer, value in held.items() if peer is not None and value != best]
        await self._tell(stale, raw, best)
        return best

    async def provide(self, digest: bytes) -> None:
        """Tell the peers nearest to a digest, once, that we hold it; they remember it for 48 h.

        Raises LocalError for a host that listens on nothing; TimedOut.
        """
        if not self._kad.host.get_addrs():
            raise LocalError("a host that listens on nothing cannot provide content")
        with self._deadline("provide"):
            await self._kad.provider_store.provide(digest)

    def withdraw(self, digest: bytes) -> None:
        """Say no more that we hold it to those who ask us. What others were told expires with them."""
        store = self._kad.provider_store
        store.providing_keys.discard(digest)
        store.providers.get(digest, {}).pop(str(self._kad.local_peer_id), None)

    async def providers(self, digest: bytes) -> tuple[PeerId, ...]:
        """Peers said to hold a digest, ourselves left out, at most 20. Where they are is learnt on the way."""
        found: dict[PeerId, None] = {}

        def hear(infos: Sequence[Any]) -> None:
            for info in infos[:_PROVIDERS]:
                if info.peer_id != self._kad.local_peer_id and (peer := self._learn(info.peer_id, info.addrs)):
                    found[peer] = None

        async def ask(peer: ID) -> None:
            infos, _ = await self._kad.provider_store._get_providers_from_peer_with_closers(peer, digest)
            hear(infos)

        hear(self._kad.provider_store.get_providers(digest))
        await self._ask_around(digest, ask)
        return tuple(found)[:_PROVIDERS]

    @property
    def routing_peers(self) -> int:
        """Peers in the routing table."""
        return self._kad.routing_table.size()

    @property
    def stored_values(self) -> int:
        """Values held here, our own among them."""
        return len(self._kad.value_store.store)

    @property
    def _validator(self) -> NamespacedValidator:
        assert self._kad.validator is not None
        return self._kad.validator

    async def _ask_value(self, peer: ID, key: str, raw: bytes, held: dict[ID | None, bytes]) -> None:
        answer = await self._kad.value_store._get_from_peer(peer, raw)
        if not isinstance(answer, bytes) or len(answer) > MAX_VALUE_BYTES:
            return
        self._validator.validate(key, answer)
        held[peer] = answer

    async def _ask_around(self, raw: bytes, ask: Callable[[ID], Awaitable[None]]) -> None:
        """Ask the peers nearest to a key, some at a time; who fails or lags is passed over."""
        room = trio.CapacityLimiter(_QUESTIONS_AT_ONCE)

        async def question(peer: ID) -> None:
            async with room:
                with trio.move_on_after(_QUESTION_S):
                    try:
                        await ask(peer)
                    except Exception as error:
                        log.debug("dht_question_failed error=%r", error)

        with trio.move_on_after(self._limits.lookup_s):
            nearest = await self._kad.peer_routing.find_closest_peers_network(raw)
            async with trio.open_nursery() as nursery:
                for peer in nearest:
                    if peer != self._kad.local_peer_id:
                        nursery.start_soon(question, peer)

    async def _tell(self, peers: Sequence[ID], raw: bytes, value: bytes) -> None:
        async def tell(peer: ID) -> None:
            with trio.move_on_after(_QUESTION_S):
                await self._kad.value_store._store_at_peer(peer, raw, value)

        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(tell, peer)

    @contextmanager
    def _deadline(self, what: str) -> Iterator[None]:
        with trio.move_on_after(self._limits.lookup_s) as scope:
            yield
        if scope.cancelled_caught:
            raise TimedOut(f"DHT {what} took more than {self._limits.lookup_s:g} s")


def _check(key: str, value: bytes) -> None:
    if len(key.encode()) > MAX_KEY_BYTES:
        raise LocalError(f"DHT key of more than {MAX_KEY_BYTES} bytes")
    if len(value) > MAX_VALUE_BYTES:
        raise LocalError(f"DHT value of {len(value)} bytes, limit {MAX_VALUE_BYTES}")


class _KadHost:
    """The libp2p host as the DHT sees it: our protocol id instead of theirs, and bounded stream opening.

    libp2p's `protocol_prefix` does not reach the wire: without this our nodes would answer as public IPFS nodes.
    """

    def __init__(self, node: Any, opener: Opener) -> None:
        self._node, self._opener = node, opener

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)

    def get_peerstore(self) -> Any:
        return _KadPeerstore(self._node.get_peerstore())

    def set_stream_handler(self, protocol: str, handler: Any) -> None:
        self._node.set_stream_handler(_ours(protocol), handler)

    def remove_stream_handler(self, protocol: str) -> None:
        self._node.remove_stream_handler(_ours(protocol))

    async def new_stream(self, peer: ID, protocols: Sequence[str]) -> Any:
        return await self._opener(peer, _ours(protocols[0]))


class _KadPeerstore:
    """The peerstore as the DHT sees it: who speaks our protocol speaks theirs."""

    def __init__(self, peerstore: Any) -> None:
        self._peerstore = peerstore

    def __getattr__(self, name: str) -> Any:
        return getattr(self._peerstore, name)

    def get_protocols(self, peer: ID) -> list[str]:
        spoken = self._peerstore.get_protocols(peer)
        return [THEIR_PROTOCOL_ID if protocol == PROTOCOL_ID else protocol for protocol in spoken]


def _ours(protocol: str) -> str:
    return PROTOCOL_ID if protocol == THEIR_PROTOCOL_ID else protocol


class _Adapter(TheirValidator):
    """Our validator under libp2p's roof, where a refusal is a ValueError."""

    def __init__(self, validator: Validator) -> None:
        self._validator = validator

    def validate(self, key: str, value: bytes) -> None:
        if len(value) > MAX_VALUE_BYTES or len(key) > MAX_KEY_BYTES:
            raise ValueError("key or value too long")
        try:
            self._validator.validate(key, value)
        except PeerViolation as error:
            raise ValueError(str(error)) from error

    def select(self, key: str, values: list[bytes]) -> int:
        return self._validator.select(key, values)


class _Routing(PeerRouting):
    """Looks keys up by their hash: peers refuse to be asked for a key of more than 50 bytes, which ends the search."""

    async def find_closest_peers_network(self, target_key: bytes, count: int = 20) -> list[ID]:
        hashed = _SHA256_MULTIHASH + hashlib.sha256(target_key).digest()
        return await super().find_closest_peers_network(hashed, count)


class _Values(ValueStore):
    """The values we hold for others, bounded in number; our own are never pushed out.

    libp2p puts all of our own again whenever its hour has come, one upon the other: whoever put them does that better.
    """

    async def _republish_records(self, peer_routing: Any = None) -> None:
        pass

    def put_record(self, key: bytes, record: Record) -> None:
        if key not in self.store and len(self.store) >= _STORED_VALUES:
            foreign = next((held for held in self.store if held not in self.local_keys), None)
            if foreign is None:
                return
            del self.store[foreign]
        super().put_record(key, record)


class _Providers(ProviderStore):
    """Provider records we hold for others, bounded in keys and in addresses a record.

    libp2p puts all of our own again whenever its hour has come, one upon the other: whoever put them does that better.
    """

    async def _republish_provider_records(self) -> None:
        pass

    def add_provider(self, key: bytes, provider: Any) -> None:
        provider.addrs[:] = provider.addrs[:8]
        if key not in self.providers and len(self.providers) >= _STORED_KEYS:
            foreign = next((held for held in self.providers if held not in self.providing_keys), None)
            if foreign is None:
                return
            del self.providers[foreign]
        super().add_provider(key, provider)
