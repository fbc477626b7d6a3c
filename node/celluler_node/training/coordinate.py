"""The coordinator's half of a job: tell the swarm, gather offers, sign the roster. Then it is a member like the others.

It chooses who is in and nothing else: every entry carries its member's own signature, and once the roster is out the
run goes on without the coordinator.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import structlog
import trio

from celluler.errors import Denied, LocalError, PeerViolation, Unavailable
from celluler.identity import PeerId, open_envelope, short
from celluler.jobs.states import JobState
from celluler.learning.roster import (
    MAX_ENTRY_BYTES,
    Role,
    RosterEntry,
    open_entry,
    open_roster,
    seal_roster,
)
from celluler_node.bounded import bounded
from celluler_node.training.member import run_id
from celluler_node.training.record import JobRecord
from celluler_node.training.rules import rules_of
from celluler_node.training.site import Site
from celluler_protocols import jobs
from celluler_protocols.gossip import JobAnnouncement

GATHER_S = 3.0
"""How long to wait for more once there are enough."""
MAX_ADDRESSES = 4
SEND_ROSTER_S = 15.0
SEND_ATTEMPTS = 3

log = structlog.get_logger()


@dataclass(slots=True)
class Gathering:
    """Offers of one job, by peer. closed: the roster is signed, or the job has ended."""

    offers: dict[PeerId, bytes] = field(default_factory=dict)
    closed: bool = False
    changed: trio.Event = field(default_factory=trio.Event)

    def add(self, record: JobRecord, peer: PeerId, entry: bytes) -> None:
        """Raises PeerViolation for an entry that is not the peer's own, Unavailable when there is no place left."""
        opened = open_envelope(RosterEntry, entry, limit=MAX_ENTRY_BYTES, signer=peer)
        if opened.record.run != run_id(record):
            raise PeerViolation("an offer for another run", peer=peer)
        if not record.order.spec.admission.admits(peer):
            raise Denied("this peer is not among those whom the job lists")
        if self.closed or (len(self.offers) >= record.max_peers and peer not in self.offers):
            raise Unavailable("the roster is closed")
        self.offers[peer] = entry
        self.changed.set()
        self.changed = trio.Event()


async def gather(site: Site, record: JobRecord, gathering: Gathering) -> None:
    """Until the roster is signed and sent, or the job fails for want of members."""
    peers = record.order.spec.resources.peers
    try:
        await _announce(site, record)
        await _enough(site, record, gathering)
    finally:
        gathering.closed = True
    if len(gathering.offers) < peers.min:
        raise Unavailable(f"{len(gathering.offers)} peers offered to take part, {peers.min} are needed")
    await _send_roster(site, record, tuple(gathering.offers.values()))


async def _enough(site: Site, record: JobRecord, gathering: Gathering) -> None:
    peers = record.order.spec.resources.peers
    with record.within_deadline(site.clock()):
        while len(gathering.offers) < peers.min:
            record.move(JobState.QUEUED, site.clock(), f"{len(gathering.offers)} of {peers.min} peers have offered")
            await gathering.changed.wait()
        with trio.move_on_after(GATHER_S):
            while len(gathering.offers) < record.max_peers:
                await gathering.changed.wait()


async def _announce(site: Site, record: JobRecord) -> None:
    """Once: who is busy or not yet here finds it in the catalogue later."""
    peers, order = record.order.spec.resources.peers, record.order.signed.record
    await site.gossip.announce(
        JobAnnouncement(
            job=record.job,
            kind=record.order.spec.kind,
            addresses=site.host.addresses[:MAX_ADDRESSES],
            peers_min=peers.min,
            peers_max=peers.max,
            **site.gossip.stamp(order.expires_s - site.clock()),
        )
    )


async def _send_roster(site: Site, record: JobRecord, entries: tuple[bytes, ...]) -> None:
    voters = sum(Role.VALIDATOR in open_entry(entry, run_id(record), 0).roles for entry in entries)
    rules = rules_of(record.order, len(entries), voters)
    raw = seal_roster(site.identity, run=run_id(record), job=record.job, entries=entries, rules=rules)
    roster = open_roster(raw, site.peer_id)
    async with trio.open_nursery() as nursery:
        for member in roster.members:
            if member.peer != site.peer_id:
                nursery.start_soon(_send, site, record, member.peer, raw)
        record.take_roster(roster)


async def _send(site: Site, record: JobRecord, peer: PeerId, raw: bytes) -> None:
    """A member that does not get it is absent from the run, which goes on while a quorum is there."""
    for attempt in range(SEND_ATTEMPTS):
        try:
            with bounded(SEND_ROSTER_S, "sending the roster", peer=peer):
                stream = await site.host.open_stream(peer, jobs.PROTOCOL_ID)
                await jobs.send_roster(stream, record.job, raw)
            return
        except (Unavailable, LocalError) as error:
            log.info("roster_not_sent", peer=short(peer), attempt=attempt, error=str(error))
            await trio.sleep(1.0)
        except PeerViolation as error:
            site.host.penalise(peer, error)
            return
