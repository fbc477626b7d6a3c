"""The network, and the only place that imports libp2p: authenticated streams, gossip, DHT. See host.py."""

# ruff: noqa: E402 - libp2p must first be imported by `lean`
from celluler_protocols.host.lean import import_libp2p

import_libp2p()

from celluler_protocols.host.host import Handler, Host, open_host
from celluler_protocols.host.kad import Dht, Validator
from celluler_protocols.host.ledger import Slots
from celluler_protocols.host.limits import MAX_MESSAGE_BYTES, MAX_VALUE_BYTES, HostLimits, Traffic, Violation
from celluler_protocols.host.pubsub import Accept, PubSub
from celluler_protocols.host.streams import HostStream

__all__ = [
    "MAX_MESSAGE_BYTES",
    "MAX_VALUE_BYTES",
    "Accept",
    "Dht",
    "Handler",
    "Host",
    "HostLimits",
    "HostStream",
    "PubSub",
    "Slots",
    "Traffic",
    "Validator",
    "Violation",
    "open_host",
]
