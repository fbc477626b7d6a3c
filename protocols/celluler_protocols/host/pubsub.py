"""GossipSub v1.1 behind two calls: publish and subscribe.

For rare small announcements only: a message costs each node some 5 ms. Every message is signed by its author.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import trio
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pubsub import Pubsub

from celluler.errors import LocalError, PeerViolation, ProtocolViolation
from celluler.identity import PeerId, short
from celluler_protocols.host.addresses import peer_of
from celluler_protocols.host.limits import MAX_MESSAGE_BYTES, HostLimits
from celluler_protocols.host.services import Runner

log = logging.getLogger(__name__)

Accept = Callable[[PeerId, bytes], bool]
_QUEUE_MESSAGES = 256
_TOPICS_A_PEER = 64
_ENVELOPE_BYTES = 4096


class PubSub:
    def __init__(self, node: Any, limits: HostLimits, penalise: Callable[[PeerId, Exception], None]) -> None:
        self._limits, self._penalise = limits, penalise
        self._router = _Router(
            [PROTOCOL_ID_V11],
            degree=6,
            degree_low=4,
            degree_high=12,
            heartbeat_interval=1,
            adaptive_gossip_enabled=False,
            spam_protection_enabled=False,
            eclipse_protection_enabled=False,
        )
        self._pubsub = _Pubsub(
            node,
            self._router,
            strict_signing=True,
            max_subscriptions_per_rpc=_TOPICS_A_PEER,
            max_subscriptions_per_peer=_TOPICS_A_PEER,
            max_inbound_rpc_size=16 * MAX_MESSAGE_BYTES,
        )
        self._channels: dict[str, trio.MemorySendChannel[tuple[PeerId, bytes]]] = {}

    def start(self, nursery: trio.Nursery) -> None:
        Runner(self._router, nursery)
        Runner(self._pubsub, nursery)

    def stop(self) -> None:
        """Ends the channels of the subscriptions."""
        for channel in self._channels.values():
            channel.close()

    async def publish(self, topic: str, data: bytes) -> None:
        """Hand a message to the mesh. Delivery is likely, not certain. Raises LocalError over 64 KiB."""
        if len(data) > MAX_MESSAGE_BYTES:
            raise LocalError(f"gossip message of {len(data)} bytes, limit {MAX_MESSAGE_BYTES}")
        await self._pubsub.publish(topic, data)

    async def subscribe(self, topic: str, accept: Accept) -> trio.MemoryReceiveChannel[tuple[PeerId, bytes]]:
        """Messages of a topic by author, our own left out. One subscription a topic.

        accept(author, data) is asked once for each new message and must be quick: False drops it and stops its spread
        through us; a PeerViolation does so too and counts against the peer that forwarded it. When the receiver lags,
        the channel holds 256 messages and drops what comes then.
        """
        if topic in self._channels:
            raise LocalError(f"already subscribed to {topic}")
        send, receive = trio.open_memory_channel[tuple[PeerId, bytes]](_QUEUE_MESSAGES)
        self._channels[topic] = send
        self._pubsub.set_topic_validator(topic, self._validator(topic, accept), is_async_validator=False)
        subscription: Any = await self._pubsub.subscribe(topic)
        subscription.receive_channel.close()  # the validator delivers: libp2p's own queue would only fill up
        return receive

    def peers(self, topic: str) -> frozenset[PeerId]:
        """Direct neighbours known to listen to a topic."""
        return frozenset(PeerId(peer.to_base58()) for peer in self._pubsub.peer_topics.get(topic, ()))

    def _validator(self, topic: str, accept: Accept) -> Callable[[ID, Any], bool]:
        def validate(forwarder: ID, message: Any) -> bool:
            if forwarder == self._pubsub.my_id:
                return True
            try:
                author = peer_of(ID(message.from_id))
                if len(message.data) > MAX_MESSAGE_BYTES or list(message.topicIDs) != [topic]:
                    raise ProtocolViolation("gossip message too large or of several topics")
                if not accept(author, message.data):
                    return False
            except PeerViolation as error:
                self._penalise(PeerId(forwarder.to_base58()), error)
                return False
            except Exception as error:
                log.error("accept_failed topic=%s error=%r", topic, error)
                return False
            self._deliver(topic, author, message.data)
            return True

        return validate

    def _deliver(self, topic: str, author: PeerId, data: bytes) -> None:
        try:
            self._channels[topic].send_nowait((author, data))
        except trio.WouldBlock:
            log.warning("gossip_dropped topic=%s author=%s reason=full", topic, short(author))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


class _Pubsub(Pubsub):
    """Pubsub whose bookkeeping survives peers that come and go in any order."""

    def notify_subscriptions(self, publish_message: Any) -> None:
        """Messages are delivered by the validator."""

    def _handle_dead_peer(self, peer_id: ID) -> None:
        try:
            super()._handle_dead_peer(peer_id)
        except Exception as error:
            log.debug("dead_peer peer=%s error=%r", short(peer_id.to_base58()), error)


class _Router(GossipSub):
    """A heartbeat that goes on after a peer's state made one of its steps fail."""

    async def heartbeat(self) -> None:
        while True:
            try:
                await super().heartbeat()
            except Exception as error:
                log.info("gossip_heartbeat_failed error=%r", error)
                await trio.sleep(self.heartbeat_interval)
