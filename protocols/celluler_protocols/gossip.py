"""Gossip of rare signed announcements: models, datasets, jobs, heads, notes. Spec: docs/reference/protocols/gossip.md

An announcement spreads through the mesh once. Who missed it (it was away, or had no neighbour) gets it from a
neighbour's catalogue: on meeting one, and every minute or so from one at random. Nobody ever repeats an announcement
into the mesh, so a swarm that grows or heals causes no storm: a small exchange between two, mostly of fingerprints.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import trio

from celluler.errors import CellulerError, LocalError, PeerViolation, TimedOut
from celluler.identity import Identity, PeerId, Signed, open_envelope, seal, short
from celluler_protocols import catalogue
from celluler_protocols.bulletin import (
    MAX_ENVELOPE_BYTES,
    MAX_LIFETIME_S,
    MAX_NOTE_LIFETIME_S,
    Announcement,
    Bulletin,
    BulletinLimits,
    HeadAnnouncement,
    JobAnnouncement,
    ModelAnnouncement,
    NoteAnnouncement,
    Verdict,
    check_own,
    open_announcement,
)
from celluler_protocols.nursery import own_nursery

__all__ = [
    "MAX_LIFETIME_S",
    "TOPIC",
    "Announcement",
    "Gossip",
    "GossipTiming",
    "HeadAnnouncement",
    "JobAnnouncement",
    "ModelAnnouncement",
    "NoteAnnouncement",
    "open_gossip",
]

log = logging.getLogger(__name__)

TOPIC = "/celluler/announcements/1"
_QUEUE = 256


class _PubSub(Protocol):
    async def publish(self, topic: str, data: bytes) -> None: ...

    async def subscribe(
        self, topic: str, accept: Callable[[PeerId, bytes], bool]
    ) -> trio.MemoryReceiveChannel[tuple[PeerId, bytes]]: ...


class Network(Protocol):
    """What gossip needs of a host."""

    @property
    def pubsub(self) -> _PubSub: ...

    def connected(self) -> frozenset[PeerId]: ...

    async def wait_connections_changed(self) -> None: ...

    async def open_stream(self, peer: PeerId, protocol: str) -> trio.abc.Stream: ...

    def serve(self, protocol: str, handler: Callable[[PeerId, trio.abc.Stream], Awaitable[None]]) -> None: ...

    def penalise(self, peer: PeerId, error: Exception) -> None: ...


@dataclass(frozen=True, slots=True)
class GossipTiming:
    """How often catalogues are compared. again_s: not sooner with the same peer. every_s: with one at random."""

    again_s: float = 30.0
    every_s: float = 60.0
    at_once: int = 2


@asynccontextmanager
async def open_gossip(
    host: Network,
    identity: Identity,
    *,
    limits: BulletinLimits | None = None,
    timing: GossipTiming | None = None,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Gossip]:
    """Take part in the gossip for the length of the block. clock: Unix seconds."""
    gossip = Gossip(host, identity, Bulletin(limits), timing or GossipTiming(), clock)
    host.serve(catalogue.PROTOCOL_ID, gossip._answer)
    arrivals = await host.pubsub.subscribe(TOPIC, gossip._accept)
    async with own_nursery() as nursery:
        nursery.start_soon(_discard, arrivals)
        nursery.start_soon(gossip._meet_neighbours)
        nursery.start_soon(gossip._compare_now_and_then)
        try:
            yield gossip
        finally:
            gossip._end()


class Gossip:
    """Made by `open_gossip`."""

    def __init__(
        self,
        host: Network,
        identity: Identity,
        bulletin: Bulletin,
        timing: GossipTiming,
        clock: Callable[[], float],
    ) -> None:
        self._host, self._identity, self._bulletin = host, identity, bulletin
        self._timing, self._clock = timing, clock
        self._sequence = 0
        self._subscribers: list[trio.MemorySendChannel[Signed[Announcement]]] = []
        self._asked_s: dict[PeerId, float] = {}
        self._room = trio.CapacityLimiter(timing.at_once)
        self.conflicts: tuple[Signed[Announcement], ...] = ()

    def stamp(self, lifetime_s: float) -> Mapping[str, int]:
        """`sequence`, `issued_s` and `expires_s` for a new announcement of ours.

        Sequences grow for as long as this identity's clock does not go back, restarts included.
        """
        now = self._clock()
        self._sequence = max(self._sequence + 1, int(now * 1000))
        return {"sequence": self._sequence, "issued_s": int(now), "expires_s": int(now + max(1.0, lifetime_s))}

    async def announce(self, record: Announcement) -> Signed[Announcement]:
        """Sign a record and hand it to the mesh.

        Raises LocalError for one that others would refuse or that is older than what we announced of its subject.
        """
        check_own(record)
        raw = seal(self._identity, record)
        if len(raw) > MAX_ENVELOPE_BYTES:
            raise LocalError(f"announcement of {len(raw)} bytes, limit {MAX_ENVELOPE_BYTES}")
        signed: Signed[Announcement] = open_envelope(type(record), raw)
        verdict = self._bulletin.take(signed, self._clock(), metered=False)
        if verdict is not Verdict.NEW:
            raise LocalError(f"not announced: {verdict.name.lower()}")
        await self._host.pubsub.publish(TOPIC, raw)
        return signed

    async def note(self, accused: PeerId, root: bytes, digest: bytes, reason: str) -> None:
        """Tell the swarm, once a day and content, that a peer gave us false bytes. reason: cut to 64 bytes."""
        stamp = self.stamp(MAX_NOTE_LIFETIME_S)
        brief = reason.encode()[:64].decode(errors="ignore") or "false bytes"
        record = NoteAnnouncement(accused, root, digest, brief, **stamp)
        told = {(signed.signer, signed.record.subject) for signed in self.catalogue()}
        if (self._identity.peer_id, record.subject) not in told:
            await self.announce(record)

    def doubts(self, peer: PeerId) -> int:
        """How many peers say that this one gave them false bytes: a reason to ask it last, and no more than that."""
        return self._bulletin.doubts(peer, self._clock())

    def subscribe(self) -> trio.MemoryReceiveChannel[Signed[Announcement]]:
        """What others announce from now on. Holds 256; drops what comes to a full channel (the catalogue has it)."""
        send, receive = trio.open_memory_channel[Signed[Announcement]](_QUEUE)
        self._subscribers.append(send)
        return receive

    def catalogue(self) -> tuple[Signed[Announcement], ...]:
        """All that is announced and not expired, ours included, in the order of arrival."""
        return self._bulletin.current(self._clock())

    def dump(self) -> tuple[bytes, ...]:
        """The catalogue as envelopes, for `load` after a restart."""
        return tuple(signed.raw for signed in self.catalogue())

    def load(self, envelopes: Iterable[bytes]) -> int:
        """Take back what `dump` gave; what is damaged, expired or unknown is passed over. How many were taken."""
        taken = 0
        for raw in envelopes:
            try:
                taken += self._take(raw, metered=False) is Verdict.NEW
            except PeerViolation as error:
                log.warning("stored_announcement_damaged error=%s", error)
        return taken

    async def compare_with(self, peer: PeerId) -> int:
        """Ask one peer for what we miss. How much of it was new. Raises Unavailable, TimedOut, PeerViolation."""
        self._asked_s[peer] = self._clock()
        taken = 0
        with trio.move_on_after(catalogue.SESSION_S) as session:
            stream = await self._host.open_stream(peer, catalogue.PROTOCOL_ID)
            envelopes = catalogue.ask_catalogue(stream, self._bulletin.fingerprint(self._clock()))
            async with aclosing(envelopes) as incoming:
                async for raw in incoming:
                    taken += self._take(raw, metered=False) is Verdict.NEW
        if session.cancelled_caught:
            raise TimedOut(f"the catalogue of {short(peer)} took too long", peer=peer)
        return taken

    # --- inside ------------------------------------------------------------------------------------------------

    def _accept(self, _author: PeerId, data: bytes) -> bool:
        """Whether a message of the mesh spreads further: only what was new to us does."""
        return self._take(data, metered=True) is Verdict.NEW

    def _take(self, raw: bytes, *, metered: bool) -> Verdict | None:
        signed = open_announcement(raw)
        if signed is None:
            return None
        own = signed.signer == self._identity.peer_id
        verdict = self._bulletin.take(signed, self._clock(), metered=metered and not own)
        if verdict is Verdict.NEW and own:
            self._sequence = max(self._sequence, signed.record.sequence)
        elif verdict is Verdict.NEW:
            self._deliver(signed)
        elif verdict is Verdict.CONFLICT:
            log.info("announcement_conflict signer=%s subject=%s", short(signed.signer), signed.record.subject[:40])
            self.conflicts = (*self.conflicts[-63:], signed)
        return verdict

    def _deliver(self, signed: Signed[Announcement]) -> None:
        for channel in tuple(self._subscribers):
            try:
                channel.send_nowait(signed)
            except trio.WouldBlock:
                log.warning("announcement_dropped subject=%s reason=full", signed.record.subject[:40])
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._subscribers.remove(channel)

    async def _answer(self, _peer: PeerId, stream: trio.abc.Stream) -> None:
        now = self._clock()
        held = tuple(signed.raw for signed in self._bulletin.current(now))
        await catalogue.answer_catalogue(stream, held, self._bulletin.fingerprint(now))

    async def _meet_neighbours(self) -> None:
        """Compare with each peer that connects."""
        met: frozenset[PeerId] = frozenset()
        async with trio.open_nursery() as nursery:
            while True:
                connected = self._host.connected()
                for peer in connected - met:
                    nursery.start_soon(self._compare_if_due, peer)
                met = connected
                self._forget_absent(connected)
                await self._host.wait_connections_changed()

    async def _compare_now_and_then(self) -> None:
        while True:
            await trio.sleep(self._timing.every_s * random.uniform(0.5, 1.5))  # noqa: S311 - spreads load, no secret
            if neighbours := sorted(self._host.connected()):
                await self._compare_if_due(random.choice(neighbours))  # noqa: S311

    async def _compare_if_due(self, peer: PeerId) -> None:
        if self._clock() - self._asked_s.get(peer, float("-inf")) < self._timing.again_s:
            return
        async with self._room:
            try:
                await self.compare_with(peer)
            except PeerViolation as error:
                self._host.penalise(peer, error)
            except (CellulerError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                log.debug("catalogue_unavailable peer=%s error=%r", short(peer), error)

    def _forget_absent(self, connected: frozenset[PeerId]) -> None:
        horizon = self._clock() - self._timing.again_s
        self._asked_s = {peer: at for peer, at in self._asked_s.items() if peer in connected or at > horizon}

    def _end(self) -> None:
        for channel in self._subscribers:
            channel.close()


async def _discard(channel: trio.MemoryReceiveChannel[Any]) -> None:
    """Everything is done when a message is judged; nothing is left to receive."""
    async for _ in channel:
        pass
