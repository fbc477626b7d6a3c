"""A member's way through a job: fetch, become a member, train, publish or fetch the result.

There are three ways in: from the start, when the coordinator gathers its members; late, when the others vouch for us;
and back, when this node was away. After that all members do the same, the coordinator too, which only hands its offer
to itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
import trio

from celluler.content.digest import Codec, Digest, cid_of
from celluler.errors import CellulerError, Denied, ProtocolViolation, TimedOut, Unavailable
from celluler.identity import PeerId, seal
from celluler.jobs.states import JobState
from celluler.learning.checks import checks_for
from celluler.learning.roster import RosterEntry, RosterView, open_roster
from celluler.learning.run import Run
from celluler.models.manifest import Metric, OpenedManifest
from celluler.models.memory import micro_batch
from celluler_node.bounded import plain
from celluler_node.processes.worker_words import MAX_CLASS_BYTES
from celluler_node.training.averaging import Averaging
from celluler_node.training.checkpoints import Checkpoints
from celluler_node.training.chronicle import Chronicle
from celluler_node.training.drive import Driver, LeftBehind, Reductions
from celluler_node.training.equipment import averager_of, chronicle_of, trainer_of
from celluler_node.training.evidence import keep_evidence
from celluler_node.training.exports import Exports
from celluler_node.training.figures import Figures, Progress, figures_of
from celluler_node.training.late import RunOver, Start, be_admitted, catch_up, find_run
from celluler_node.training.live import LiveRun
from celluler_node.training.material import Material, fetch_material
from celluler_node.training.meter import Meter
from celluler_node.training.neighbours_member import run_neighbours
from celluler_node.training.publish import REPLICAS, replicated, settle
from celluler_node.training.record import JobRecord
from celluler_node.training.site import Site
from celluler_node.training.trainer import Trainer
from celluler_protocols.rounds import open_rounds

LINGER_S = 15.0
"""How long a member that has finished goes on answering those that lag."""
DRAIN_S = 3.0
ROSTER_S = 180.0
"""How long a volunteer keeps its offer up."""

Offer = Callable[[bytes], Awaitable[None]]
"""Hands a sealed RosterEntry to the coordinator. Raises Unavailable or LocalError when it does not want us."""

Enter = Callable[[Averaging, Material], Awaitable[tuple[RosterView, bool]]]
"""Become a member: the roster with us in it, and whether its run begins now."""

log = structlog.get_logger()


# --- ways in -----------------------------------------------------------------------------------------------------


async def take_part(site: Site, record: JobRecord, offer: Offer) -> None:
    """From the start, or late when the roster is closed already.

    The record's life ends as Succeeded, Failed or Cancelled; nothing but Cancelled is raised.
    """

    async def enter(averaging: Averaging, material: Material) -> tuple[RosterView, bool]:
        entry = seal(site.identity, await _entry(site, record, averaging, material))
        try:
            _before_roster(site, record, JobState.QUEUED, "waiting for other members")
            await offer(entry)
            return await _await_roster(site, record), True
        except (Unavailable, Denied) as refused:
            spec, unlisted = record.order.spec, isinstance(refused, Denied)
            if record.coordinated or not spec.admission.late or spec.train.consensus == "gossip":
                raise
            if unlisted and record.invite is None:
                raise
            return await _come_late(site, record, entry, refused), False

    await _participate(site, record, enter)


async def _come_late(site: Site, record: JobRecord, entry: bytes, refused: CellulerError) -> RosterView:
    """Raises `refused` when no run is found."""
    record.move(JobState.QUEUED, site.clock(), "the training has begun; asking its members to be admitted")
    try:
        chain = await be_admitted(site, record, entry)
    except RunOver:
        if record.invite is not None:
            raise
        raise refused from None
    check_roster(site, record, chain.standing.roster)
    record.take_roster(chain.standing.roster)
    return chain.standing.roster


async def come_back(site: Site, record: JobRecord) -> None:
    """Into a run of which we were a member before this node was restarted. Otherwise as `take_part`."""

    async def enter(averaging: Averaging, material: Material) -> tuple[RosterView, bool]:
        record.move(JobState.QUEUED, site.clock(), "came back; asking the others how far they are")
        chain = await find_run(site, record)
        check_roster(site, record, chain.standing.roster)
        record.roster = chain.standing.roster
        return record.roster, False

    record.move(JobState.QUEUED, site.clock(), "this node was away")
    await _participate(site, record, enter)


async def _participate(site: Site, record: JobRecord, enter: Enter) -> None:
    meter = Meter(site)
    try:
        with record.within_deadline(site.clock()) as limit:
            async with AsyncExitStack() as stack:
                scratch = await stack.enter_async_context(site.scratch("run"))
                _before_roster(site, record, JobState.FETCHING, "fetching the model and the data")
                site.nursery.start_soon(_audit_class, site, record)  # takes a worker's start, meanwhile
                material = await fetch_material(site, record, hints=(_coordinator(record),))
                site.fetcher.announce(record.job)  # so that whoever comes late finds a member
                averaging = await stack.enter_async_context(averager_of(site, record, scratch))
                meter.averaging = averaging
                roster, begins = await enter(averaging, material)
                await averaging.admit(roster)
                record.move(JobState.FETCHING, site.clock(), "starting the worker")
                trainer = await stack.enter_async_context(trainer_of(site, record, roster, material, scratch))
                if record.order.spec.train.consensus == "gossip":
                    await _train_among_neighbours(site, record, roster, trainer, averaging, material, meter)
                    return
                chronicle = await stack.enter_async_context(chronicle_of(record, roster, material, trainer, scratch))
                exports = Exports(trainer, scratch)
                member = _Member(
                    site=site,
                    record=record,
                    roster=roster,
                    trainer=trainer,
                    averaging=averaging,
                    meter=meter,
                    base=material.base,
                    chronicle=chronicle,
                    exports=exports,
                    checkpoints=Checkpoints(site, record, material.base, exports, chronicle, scratch),
                    scratch=scratch,
                    epoch_s=site.clock() - trio.current_time(),
                )
                await member.train(Start(trainer.state_root) if begins else None)
        if limit.cancelled_caught:
            record.move(JobState.FAILED, site.clock(), "its deadline has passed")
    except Exception as raised:  # whatever a job does, the node stays up: this is where a job ends
        error = plain(raised)
        ours = isinstance(error, CellulerError)
        log.info("job_failed_here", job=record.order.id[-8:], reason=str(error), exc_info=None if ours else raised)
        record.move(JobState.FAILED, site.clock(), str(error) if ours else f"fault in this node: {error!r}")
    finally:
        record.live = None
        record.moved[site.peer_id] = meter.moved()


async def _train_among_neighbours(
    site: Site,
    record: JobRecord,
    roster: RosterView,
    trainer: Trainer,
    averaging: Averaging,
    material: Material,
    meter: Meter,
) -> None:
    def tell(progress: Progress) -> None:
        record.measure(site.clock(), figures_of(progress))

    await run_neighbours(site, record, roster, trainer, averaging, material.base, on_progress=tell, moved=meter.moved)


# --- the run -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Member:
    """Everything that a member has at hand while the run goes on."""

    site: Site
    record: JobRecord
    roster: RosterView
    trainer: Trainer
    averaging: Averaging
    meter: Meter
    base: OpenedManifest
    chronicle: Chronicle | None
    exports: Exports
    checkpoints: Checkpoints
    scratch: Path
    epoch_s: float
    """Unix time when this machine's clock of events stood at 0."""

    async def train(self, start: Start | None) -> None:
        """start: where to begin; None to ask the others first, as whoever is left behind on the way does again."""
        reduced, signed = Reductions(), open_roster(self.roster.raw, self.roster.coordinator)
        async with open_rounds(self.site.rounds, signed.run, self._peers, parts=reduced.find) as streams:
            while True:
                if start is None:
                    start = await self._catch_up()
                    streams.add(self._peers)
                run = await trio.to_thread.run_sync(self._make_run, signed, start)
                self.record.report = run.report
                driver = Driver(
                    run,
                    streams,
                    reduced,
                    self.trainer,
                    self.averaging,
                    chronicle=self.chronicle,
                    figures=Figures(self.site.clock, self.meter.moved, self.record.measure),
                    on_violation=self.site.host.penalise,
                    on_roster=self._take_roster,
                    on_evidence=self._keep_evidence,
                    on_handed_over=self.checkpoints.handed_over,
                )
                self.record.live = LiveRun(
                    run,
                    self.trainer,
                    self.site.store,
                    self.scratch,
                    checkpoint=partial(self.checkpoints.publish, run),
                    admit=driver.admit,
                )
                try:
                    await self._until_finished(driver, run)
                except LeftBehind:
                    start = None
                else:
                    return

    def _make_run(self, signed: RosterView, start: Start) -> Run:
        """Verifies the chain that it begins with."""
        return self.site.make_run(
            signed,
            self.site.identity,
            state_root=start.state_root,
            incarnation=start.incarnation,
            checks=checks_for(len(self.roster), signed.rules.parts),
            chain=start.chain,
            audits=signed.rules.audits > 0,
            epoch_s=self.epoch_s,
        )

    async def _until_finished(self, driver: Driver, run: Run) -> None:
        self.record.move(JobState.RUNNING, self.site.clock(), f"{len(self.roster)} members")
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(driver.run)
                nursery.start_soon(self.checkpoints.take_turns, run)
                await driver.finished.wait()
                await self._finish()
                with trio.move_on_after(LINGER_S):
                    await driver.settled.wait()
                    await self.averaging.drain(DRAIN_S)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise plain(group) from None

    async def _catch_up(self) -> Start:
        site, record = self.site, self.record
        record.live = None
        record.move(JobState.QUEUED, site.clock(), "asking the others how far they are")
        record.move(JobState.FETCHING, site.clock(), "fetching the newest state")
        start, roster = await catch_up(site, record, self.trainer)
        self._take_roster(roster)
        await self.averaging.admit(roster)
        if self.chronicle is not None:
            await self.chronicle.missed(start.chain)
        return start

    @property
    def _peers(self) -> tuple[PeerId, ...]:
        return tuple(member.peer for member in self.roster.members)

    def _take_roster(self, roster: RosterView) -> None:
        self.roster = self.record.roster = roster

    def _keep_evidence(self, peer: PeerId, evidence: bytes) -> None:
        self.site.nursery.start_soon(keep_evidence, self.site, self.record, peer, evidence)

    async def _finish(self) -> None:
        site, record = self.site, self.record
        record.move(JobState.VERIFYING, site.clock(), "publishing the result")
        losses = record.life.metrics
        metrics = (Metric("loss", losses["loss"]),) if "loss" in losses else ()
        if self.chronicle is not None:
            assert record.live is not None
            record.transcript = await _hand_in(site, record, self.chronicle, record.live.run.standing.expelled)
        # Whoever is told that we are done can find the transcript too.
        async with self.exports.weights() as (_, weights), trio.open_nursery() as telling:
            if record.transcript is not None:
                telling.start_soon(site.transcripts.announce, record.job, record.transcript)
            record.outcome = await settle(site, record, self.base, weights, metrics)
            found = await replicated(site, Digest(record.outcome.weights), min(REPLICAS, len(self.roster)))
        record.moved[site.peer_id] = self.meter.moved()
        reason = f"{record.outcome.model} is held by {found} peers"
        if record.transcript is not None:
            reason += f"; transcript {cid_of(record.transcript, Codec.MANIFEST)}"
        record.move(JobState.SUCCEEDED, site.clock(), reason)


async def _hand_in(site: Site, record: JobRecord, chronicle: Chronicle, expelled: int) -> Digest | None:
    """The transcript as content, for whoever wants to verify the run; not pinned. None when there is no room for it.

    expelled: mask of roster places.
    """

    def add() -> Digest:
        chronicle.finish(expelled)
        return site.store.add(chronicle.path, "blob", pin=False, move=True)

    try:
        return await trio.to_thread.run_sync(add)
    except CellulerError as error:
        log.info("transcript_not_kept", job=record.order.id[-8:], reason=str(error))
        return None


# --- the roster ---------------------------------------------------------------------------------------------------


async def _await_roster(site: Site, record: JobRecord) -> RosterView:
    """The roster that the coordinator signed, with us in it.

    A volunteer does not wait for ever: its one place belongs to whoever starts a run.
    """
    with trio.move_on_after(float("inf") if record.coordinated else ROSTER_S):
        await record.roster_taken.wait()
    if record.roster is None:
        raise TimedOut("no roster came for our offer")
    return record.roster


def check_roster(site: Site, record: JobRecord, roster: RosterView) -> None:
    """Raises ProtocolViolation for a roster of another job, Unavailable for one that we are not in."""
    if roster.job != record.job or roster.run != run_id(record):
        raise ProtocolViolation("a roster of another job", peer=roster.coordinator)
    if roster.index_of(site.peer_id) is None:
        raise Unavailable("the roster was closed without us")


def run_id(record: JobRecord) -> bytes:
    """One run a job."""
    return bytes(record.job)


async def _entry(site: Site, record: JobRecord, averaging: Averaging, material: Material) -> RosterEntry:
    audit_class, batch = await _audit_class(site, record), record.order.spec.train.batch
    held = micro_batch(material.base.architecture, batch, site.worker_limits.memory_bytes)
    if audit_class and held < batch:  # cut otherwise, a batch comes to other bits
        audit_class = f"{audit_class}-m{held}"
    return RosterEntry(
        run_id(record),
        averaging.peer,
        averaging.addresses,
        site.nickname,
        roles=site.roles,
        audit_class=audit_class[:MAX_CLASS_BYTES],
        region=site.region,
    )


async def _audit_class(site: Site, record: JobRecord) -> str:
    train = record.order.spec.train
    return await site.describe(train.precision) if train.audits else ""


def _coordinator(record: JobRecord) -> PeerId:
    return PeerId(record.order.signed.record.coordinator)


def _before_roster(site: Site, record: JobRecord, state: JobState, reason: str) -> None:
    """At the coordinator the gathering tells how far the job is, until there is a roster."""
    if not record.coordinated or record.roster is not None:
        record.move(state, site.clock(), reason)
