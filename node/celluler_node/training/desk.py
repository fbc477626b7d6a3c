"""The node's job desk: takes orders, offers and rosters, volunteers for jobs of others, answers who watches.

It remembers its jobs over a restart, and goes on with those that had not ended.
"""

from __future__ import annotations

import structlog
import trio

from celluler.content.digest import Digest, cid_of
from celluler.errors import Busy, CellulerError, Denied, LocalError, NotFound, PeerViolation, Unavailable
from celluler.identity import PeerId, Signed, open_envelope, seal, short
from celluler.jobs.states import JobEvent, JobLife, JobState, match_job
from celluler.learning.invites import OpenedInvite, check_invite
from celluler.learning.messages import Vouch
from celluler.learning.roster import MAX_ENTRY_BYTES, RosterEntry, open_roster
from celluler_node.bounded import bounded
from celluler_node.training.archive import JobArchive
from celluler_node.training.coordinate import Gathering, gather
from celluler_node.training.live import LiveRun
from celluler_node.training.material import fetch_material
from celluler_node.training.member import Offer, check_roster, come_back, take_part
from celluler_node.training.record import JobRecord
from celluler_node.training.remembering import Remembering
from celluler_node.training.site import Site
from celluler_protocols import jobs
from celluler_protocols.gossip import JobAnnouncement
from celluler_protocols.jobs_messages import MAX_LISTED, ChainTold, Checkpointed, Facts, Listed, StateTold, to_listed
from celluler_protocols.jobs_orders import ChangeOrder, OpenedOrder, check_order, open_order

MAX_RECORDS = 256
OFFER_S = 20.0
VOLUNTEER_POLL_S = 0.5
ORDER_S = 30.0

log = structlog.get_logger()


class TrainingDesk:
    """Implements `celluler_protocols.jobs.JobDesk`. One training at a time: the next job waits in the catalogue."""

    def __init__(self, site: Site, archive: JobArchive, *, trains: bool) -> None:
        """archive: of this node's jobs. trains: whether this node takes part in training at all."""
        self._site, self._trains = site, trains
        self.records: dict[Digest, JobRecord] = {}
        self._remembering = Remembering(archive, self.records)
        self._gatherings: dict[Digest, Gathering] = {}
        self._by_client: dict[tuple[PeerId, str], Digest] = {}
        self._tried: set[Digest] = set()
        self._slot = trio.CapacityLimiter(1)  # held on behalf of the job this node trains for

    async def run(self) -> None:
        """Take up what was under way, then volunteer for announced jobs, for as long as the node lives."""
        for record in await self._remembering.restore():
            self._take_up(record)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._remembering.run)
            while self._trains:
                job = self._next_announced()
                if job is None:
                    await trio.sleep(VOLUNTEER_POLL_S)
                else:
                    await self._volunteer(*job)

    # --- JobDesk -----------------------------------------------------------------------------------------------

    async def submit(self, peer: PeerId, order: OpenedOrder) -> Digest:
        record_of = order.signed.record
        check_order(order, coordinator=self._site.peer_id, now=self._site.clock())
        known = self._by_client.get((order.submitter, record_of.client_id))
        if known is not None:
            return known
        if not self._trains:
            raise Denied("this node does not train", hint="submit to a node that does: celluler peer ls")
        self._make_room()
        record = JobRecord(order, JobLife(self._site.clock()), coordinated=True)
        self.records[order.job] = record
        self._by_client[order.submitter, record_of.client_id] = order.job
        try:
            await trio.to_thread.run_sync(self._site.store.put_block, order.signed.raw)
            record.move(JobState.FETCHING, self._site.clock(), "fetching the model and the data")
            await fetch_material(self._site, record, hints=(peer,))
        except CellulerError as error:
            self._forget(order)
            record.move(JobState.FAILED, self._site.clock(), str(error))
            raise
        except BaseException:
            self._forget(order)
            raise
        self._gatherings[order.job] = Gathering()
        self._site.nursery.start_soon(self._coordinate, record)
        return order.job

    async def offer(self, peer: PeerId, job: Digest, entry: bytes) -> None:
        gathering = self._gatherings.get(job)
        if gathering is None:
            raise NotFound(f"job {cid_of(job)} is not gathered here")
        gathering.add(self.records[job], peer, entry)

    async def roster(self, peer: PeerId, job: Digest, roster: bytes) -> None:
        record = self._record(job)
        opened = open_roster(roster, record.order.signed.record.coordinator)
        check_roster(self._site, record, opened)
        record.take_roster(opened)

    async def watch(self, peer: PeerId, job: Digest, cursor: int, wait_s: float) -> tuple[tuple[JobEvent, ...], Facts]:
        record = self._record(job)
        return await record.watch(cursor, wait_s), record.facts()

    async def cancel(self, peer: PeerId, job: Digest, signer: PeerId) -> JobState:
        record = self._record(job)
        if signer != record.order.submitter:
            raise Denied("only the submitter may cancel a job")
        record.move(JobState.CANCELLED, self._site.clock(), "cancelled by its submitter")
        record.scope.cancel()
        return record.life.state

    async def listing(self, peer: PeerId, before_ms: int) -> tuple[Listed, ...]:
        newest = sorted(self.records.values(), key=lambda record: record.life.created_s, reverse=True)
        chosen = [record for record in newest if record.life.created_s * 1000 < before_ms][:MAX_LISTED]
        return tuple(to_listed(record.order, record.life.events[-1], record.life.reason) for record in chosen)

    async def chain(self, peer: PeerId, job: Digest, start: int) -> ChainTold:
        return self._live(job).chain(start)

    async def vouch(self, peer: PeerId, job: Digest, entry: bytes) -> bytes:
        record, live = self._record(job), self._live(job)
        admission = record.order.spec.admission
        open_envelope(RosterEntry, entry, limit=MAX_ENTRY_BYTES, signer=peer)
        check_takes_late(record.order)
        if not admission.admits(peer):
            raise Denied("this peer is not listed")
        if live.run.standing.size >= record.max_peers:
            raise Unavailable(f"the job has its {record.max_peers} members")
        return seal(self._site.identity, Vouch(bytes(job), peer))

    async def apply(self, peer: PeerId, job: Digest, admission: bytes) -> None:
        record, live = self._record(job), self._live(job)
        check_takes_late(record.order)
        if live.run.standing.size >= record.max_peers:
            raise Unavailable(f"the job has its {record.max_peers} members")
        live.admit(admission)

    async def state(self, peer: PeerId, job: Digest) -> StateTold:
        return await self._live(job).state(peer)

    async def checkpoint(self, peer: PeerId, job: Digest, signer: PeerId) -> Checkpointed:
        if signer != self._record(job).order.submitter:
            raise Denied("only the submitter may have a checkpoint published")
        return await self._live(job).checkpoint()

    async def change(self, peer: PeerId, order: Signed[ChangeOrder]) -> None:
        record = self._record(Digest(order.record.job))
        if order.signer != record.order.submitter:
            raise Denied("only the submitter may change a job")
        record.change(order.record, self._site.clock())

    # --- for the node's own user ---------------------------------------------------------------------------------

    def find(self, text: str) -> JobRecord:
        """By id or an ending of it. Raises NotFound."""
        ids = {record.order.id: record for record in self.records.values()}
        found = match_job(ids, text)
        if found is None:
            raise NotFound(f"job {text}", hint="celluler job ls")
        return ids[found]

    async def join(self, invite: OpenedInvite) -> JobRecord:
        """Come late into the run to which we are invited, once this node has nothing else to train.

        The job as it is here by now; how it went on stands in its events. Raises Denied for an invite that is of no
        use here, NotFound for a job that nobody knows of, Unavailable.
        """
        check_invite(invite, peer=self._site.peer_id, now=self._site.clock())
        if not self._trains:
            raise Denied("this node does not train")
        job = Digest(invite.run)
        known = self.records.get(job)
        order = await self._fetch_order(job, invite.signer) if known is None else known.order
        coordinator = PeerId(order.signed.record.coordinator)
        check_invite(invite, peer=self._site.peer_id, now=self._site.clock(), inviters=(coordinator, order.submitter))
        if known is not None and not known.life.ended:
            known.invite = invite
            return known
        check_order(order, coordinator=coordinator, now=self._site.clock())
        check_takes_late(order)
        self._check_fit(order)
        if known is not None:
            self._forget(order)
        self._make_room()
        record = JobRecord(order, JobLife(self._site.clock()), invite=invite)
        self.records[job] = record
        self._tried.add(job)
        self._site.nursery.start_soon(self._come_invited, record, self._offer_to(coordinator, job))
        return record

    # --- inside --------------------------------------------------------------------------------------------------

    async def _come_invited(self, record: JobRecord, offer: Offer) -> None:
        with record.scope:
            await self._join_when_free(record, offer)
        self._end(record)

    async def _coordinate(self, record: JobRecord) -> None:
        gathering = self._gatherings[record.job]
        with record.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._join_when_free, record, self._own_offer(gathering, record))
                try:
                    await gather(self._site, record, gathering)
                except CellulerError as error:
                    record.move(JobState.FAILED, self._site.clock(), str(error))
                    nursery.cancel_scope.cancel()
        self._end(record)

    def _own_offer(self, gathering: Gathering, record: JobRecord) -> Offer:
        async def offer(entry: bytes) -> None:
            gathering.add(record, self._site.peer_id, entry)

        return offer

    async def _join_when_free(self, record: JobRecord, offer: Offer) -> None:
        """Once this node has nothing else to train. The coordinator is a member too."""
        if not self._slot.available_tokens:
            record.move(JobState.QUEUED, self._site.clock(), "this node is training for another job")
        await self._slot.acquire_on_behalf_of(record.job)
        await self._participate(record, offer)

    async def _take_part(self, record: JobRecord, offer: Offer) -> None:
        """Volunteered: the slot is held already. Where the roster is closed, we may still come late."""
        with record.scope:
            await self._participate(record, offer)
        self._end(record)

    async def _participate(self, record: JobRecord, offer: Offer) -> None:
        self._tried.add(record.job)
        try:
            await take_part(self._site, record, offer)
        finally:
            self._slot.release_on_behalf_of(record.job)

    def _end(self, record: JobRecord) -> None:
        """However it ended, whoever watches is told an end."""
        record.move(JobState.CANCELLED, self._site.clock(), "cancelled")

    def _next_announced(self) -> tuple[PeerId, Digest] | None:
        if not self._slot.available_tokens:
            return None
        for signed in self._site.gossip.catalogue():
            if isinstance(signed.record, JobAnnouncement):
                job = Digest(signed.record.job)
                if job not in self._tried and job not in self.records and signed.signer != self._site.peer_id:
                    return signed.signer, job
        return None

    async def _volunteer(self, coordinator: PeerId, job: Digest) -> None:
        """Offer to take part in another's job. What is wrong with it is logged, and it is not tried again."""
        self._tried.add(job)
        try:
            order = await self._fetch_order(job, coordinator)
            check_order(order, coordinator=coordinator, now=self._site.clock())
            self._check_fit(order)
            self._make_room()
        except PeerViolation as error:
            self._site.host.penalise(coordinator, error)
            return
        except (LocalError, Unavailable) as error:
            log.info("job_not_taken", job=cid_of(job)[-8:], reason=str(error))
            return
        record = JobRecord(order, JobLife(self._site.clock()))
        self.records[job] = record
        log.info("job_volunteered", job=order.id[-8:], coordinator=short(coordinator))
        self._slot.acquire_on_behalf_of_nowait(job)
        self._site.nursery.start_soon(self._take_part, record, self._offer_to(coordinator, job))

    async def _fetch_order(self, job: Digest, holder: PeerId) -> OpenedOrder:
        with bounded(ORDER_S, "fetching the order", peer=holder):
            return open_order(await self._site.fetcher.block(job, hints=(holder,)))

    def _offer_to(self, coordinator: PeerId, job: Digest) -> Offer:
        async def offer(entry: bytes) -> None:
            with bounded(OFFER_S, "offering to take part", peer=coordinator):
                stream = await self._site.host.open_stream(coordinator, jobs.PROTOCOL_ID)
                await jobs.offer(stream, job, entry)

        return offer

    def _check_fit(self, order: OpenedOrder) -> None:
        """Raises Unavailable with what this node lacks."""
        needed, memory = order.spec.resources.memory, self._site.worker_limits.memory_bytes
        if memory is not None and needed > memory:
            raise Unavailable(f"the job needs {needed} bytes of memory, a worker here has {memory}")
        if order.spec.resources.accelerator not in ("any", self._site.device):
            raise Unavailable(f"the job needs {order.spec.resources.accelerator}")

    def _take_up(self, record: JobRecord) -> None:
        """A job that was here when the node was last running."""
        job, now = record.job, self._site.clock()
        self.records[job] = record
        self._by_client[record.order.submitter, record.order.signed.record.client_id] = job
        self._tried.add(job)
        if record.life.ended:
            return
        over = self._why_over(record, now)
        if over:
            record.move(JobState.FAILED, now, over)
        elif record.roster is not None:
            self._site.nursery.start_soon(self._come_back, record)
        elif record.coordinated:
            self._gatherings[job] = Gathering()
            self._site.nursery.start_soon(self._coordinate, record)
        else:  # an offer that came to nothing: make it again, should the job still be announced
            self._forget(record.order)
            self._tried.discard(job)

    def _why_over(self, record: JobRecord, now: float) -> str:
        """Why a job that was under way cannot be taken up; empty when it can."""
        if not self._trains:
            return "this node trains no more"
        if record.expires_s <= now:
            return "its deadline has passed"
        if record.roster is not None and record.order.spec.train.consensus == "gossip":
            return "this node was away, and neighbours keep no state that it could come back to"
        return ""

    async def _come_back(self, record: JobRecord) -> None:
        with record.scope:
            await self._slot.acquire_on_behalf_of(record.job)
            try:
                await come_back(self._site, record)
            finally:
                self._slot.release_on_behalf_of(record.job)
        self._end(record)

    def _live(self, job: Digest) -> LiveRun:
        """Raises NotFound, Unavailable while its run is not followed here."""
        live = self._record(job).live
        if live is None:
            raise Unavailable("this node does not follow the run just now")
        return live

    def _record(self, job: Digest) -> JobRecord:
        if job not in self.records:
            raise NotFound(f"job {cid_of(job)}")
        return self.records[job]

    def _make_room(self) -> None:
        """Forget the oldest jobs that have ended. Raises Busy when all go on."""
        while len(self.records) >= MAX_RECORDS:
            ended = [record for record in self.records.values() if record.life.ended]
            if not ended:
                raise Busy(f"{MAX_RECORDS} jobs are under way here")
            self._forget(min(ended, key=lambda record: record.life.updated_s).order)

    def _forget(self, order: OpenedOrder) -> None:
        self.records.pop(order.job, None)
        self._gatherings.pop(order.job, None)
        self._by_client.pop((order.submitter, order.signed.record.client_id), None)


def check_takes_late(order: OpenedOrder) -> None:
    """Raises Denied for a job whose run nobody may join once it has begun."""
    if order.spec.train.consensus == "gossip":
        raise Denied("neighbours without certificates take nobody who comes late")
    if not order.spec.admission.late:
        raise Denied("this job takes nobody who comes late")
