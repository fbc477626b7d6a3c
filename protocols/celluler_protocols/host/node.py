"""Builds the libp2p host celluler uses: TCP, Noise, Yamux and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import libp2p
from libp2p.crypto.ed25519 import create_new_key_pair as ed25519_pair
from libp2p.crypto.x25519 import create_new_key_pair as x25519_pair
from libp2p.custom_types import TProtocol
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.connection import swarm_connection
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.rcmgr.manager import ResourceLimits, ResourceManager
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.tcp.tcp import TCP
from multiaddr import Multiaddr

from celluler.identity import Identity
from celluler_protocols.host.addresses import expand
from celluler_protocols.host.limits import HostLimits
from celluler_protocols.host.muxer import BoundedMuxer, Overrun

_ADDRESSES_A_PEER = 16
_PROTOCOLS_A_PEER = 128
_NAME_CHARACTERS = 140


class _Peerstore(PeerStore):
    """What peers say of themselves and others, bounded for each; libp2p bounds only the number of peers."""

    def add_addrs(self, peer_id: ID, addrs: Sequence[Multiaddr], ttl: int = 0) -> None:
        newest = list(addrs)[:_ADDRESSES_A_PEER]
        super().add_addrs(peer_id, newest, ttl)
        if (held := self.peer_data_map.get(peer_id)) is not None:
            held.addrs = list(dict.fromkeys([*newest, *held.addrs]))[:_ADDRESSES_A_PEER]

    def add_protocols(self, peer_id: ID, protocols: Sequence[str]) -> None:
        self.set_protocols(peer_id, list(dict.fromkeys([*self._spoken(peer_id), *protocols])))

    def set_protocols(self, peer_id: ID, protocols: Sequence[str]) -> None:
        super().set_protocols(peer_id, [name[:_NAME_CHARACTERS] for name in protocols[:_PROTOCOLS_A_PEER]])

    def _spoken(self, peer_id: ID) -> list[str]:
        held = self.peer_data_map.get(peer_id)
        return held.get_protocols() if held else []


def new_node(identity: Identity, limits: HostLimits, on_overrun: Overrun) -> Any:
    """A libp2p BasicHost that is not running yet."""
    _quieten()
    keys = ed25519_pair(identity.seed)
    node = libp2p.new_host(
        key_pair=keys,
        sec_opt={NOISE: Noise(keys, noise_privkey=x25519_pair().private_key)},
        muxer_opt={TProtocol(YAMUX): Yamux},
        peerstore_opt=_Peerstore(),
        transports=[TCP()],
        connection_config=ConnectionConfig(
            max_connections=limits.connections,
            min_connections=0,
            low_watermark=0,
            high_watermark=limits.connections,
            max_connections_per_peer=limits.connections_a_peer,
            dial_timeout=limits.dial_s,
            inbound_upgrade_timeout=limits.dial_s,
            outbound_upgrade_timeout=limits.dial_s,
        ),
        resource_manager=_resources(limits),
        addrs_factory=expand,
        disable_identify_address_discovery=True,
    )
    swarm: Any = node.get_network()
    swarm.retry_config = RetryConfig(max_retries=0)
    swarm.upgrader.muxer_multistream = BoundedMuxer(limits, on_overrun)
    return node


def _resources(limits: HostLimits) -> ResourceManager:
    """Counts only. libp2p's breaker, degradation and rate limit let one peer's failures refuse all the others."""
    return ResourceManager(
        limits=ResourceLimits(
            max_connections=4 * limits.connections,  # each is counted twice during its handshake
            max_streams=1 << 20,  # bounded by the guard, for each peer too
        ),
        enable_metrics=False,
        enable_connection_tracking=False,
        enable_memory_limits=False,
        enable_circuit_breaker=False,
        enable_graceful_degradation=False,
        enable_rate_limiting=False,
    )


def _quieten() -> None:
    """libp2p logs a peer's every stumble as warning or error, some of it on the root logger."""
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    logging.getLogger("multiaddr").setLevel(logging.CRITICAL)
    vars(swarm_connection)["logging"] = logging.getLogger(
        "libp2p.swarm_connection"
    )  # else it configures the root logger
