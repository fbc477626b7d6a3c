"""What a host bounds, and the small values it reports. No libp2p here."""

from __future__ import annotations

from dataclasses import dataclass

from celluler.identity import PeerId

MAX_MESSAGE_BYTES = 64 * 1024
"""Largest gossip message: a body belongs in content, its digest in gossip."""

MAX_VALUE_BYTES = 4096
"""Largest value of the DHT."""


@dataclass(frozen=True, slots=True)
class HostLimits:
    """Bounds and deadlines of one host. The defaults suit a node of some hundred peers."""

    connections: int = 300
    connections_a_peer: int = 4
    streams: int = 1024
    """Inbound streams served at once, of all peers together."""
    streams_a_peer: int = 64
    """Inbound streams served at once for one peer; libp2p's own (gossip, identify) count too."""
    unread_bytes_a_connection: int = 64 << 20
    """What a connection may have sent that nobody has read yet."""
    learnt_peers: int = 4096
    addresses_a_peer: int = 8

    dial_s: float = 5.0
    """One attempt at one address, handshake included."""
    open_stream_s: float = 10.0
    stalled_write_s: float = 30.0
    """How long a peer may leave our bytes unread before the stream breaks."""
    frame_write_s: float = 10.0
    """How long the socket may take no byte before the connection is given up."""
    keepalive_s: float = 15.0
    """How often a connection is asked whether its peer is still there."""
    silence_s: float = 20.0
    """How long it may leave that unanswered before it is closed: a machine that vanished says nothing."""
    linger_s: float = 5.0
    """How long a stream we closed is kept for its peer to close it too."""
    close_s: float = 5.0
    lookup_s: float = 10.0
    """One DHT call, all its questions together."""

    violations_before_ban: int = 5
    ban_s: float = 600.0
    ledger_peers: int = 1024


@dataclass(frozen=True, slots=True)
class Traffic:
    """Payload moved on our streams with one peer, both ways, since the host opened."""

    sent_bytes: int = 0
    received_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Violation:
    """What a peer is held to have done. at_s: the host's clock, of the last time. count: times so far."""

    peer: PeerId
    reason: str
    at_s: float
    count: int
