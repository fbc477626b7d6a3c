"""A member's way through a job: fetch, offer, wait for the roster, train, publish or fetch the result.

The same at the coordinator, which is a member like the others and only hands its offer to itself.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import trio

from celluler.content.digest import Codec, Digest, cid_of
from celluler.errors import CellulerError, ProtocolViolation, TimedOut, Unavailable
from celluler.identity import PeerId, seal
from celluler.jobs.states import JobState
from celluler.learning.checks import checks_for
from celluler.learning.roster import RosterEntry, RosterView
from celluler.learning.transcript import Opening
from celluler.models.manifest import Metric, OpenedManifest, open_manifest
from celluler_node.bounded import plain
from celluler_node.training.averaging import Averaging, open_averaging
from celluler_node.training.chronicle import MAX_BYTES, Chronicle, expected_bytes
from celluler_node.training.drive import Driver, Progress, Reductions
from celluler_node.training.publish import REPLICAS, replicated, settle
from celluler_node.training.record import JobRecord
from celluler_node.training.site import Site
from celluler_node.training.trainer import RunSetup, Trainer
from celluler_protocols.rounds import open_rounds

LINGER_S = 15.0
"""How long a member that has finished goes on answering those that lag."""

DRAIN_S = 3.0
ROSTER_S = 180.0
"""How long a volunteer keeps its offer up."""

Offer = Callable[[bytes], Awaitable[None]]
"""Hands a sealed RosterEntry to the coordinator. Raises Unavailable or LocalError when it does not want us."""

log = structlog.get_logger()


async def take_part(site: Site, record: JobRecord, offer: Offer) -> None:
    """The whole of it. The record's life ends as Succeeded, Failed or Cancelled; nothing but Cancelled is raised."""
    meter = _Meter(site)
    try:
        async with AsyncExitStack() as stack:
            scratch = await stack.enter_async_context(site.scratch("run"))
            _before_roster(site, record, JobState.FETCHING, "fetching the model and the data")
            material = await fetch_material(site, record, hints=(_coordinator(record),))
            _before_roster(site, record, JobState.QUEUED, "waiting for other members")
            averaging = await stack.enter_async_context(_averager(site, scratch))
            meter.averaging = averaging
            await offer(seal(site.identity, _entry(site, record, averaging)))
            roster = await _await_roster(site, record)
            await averaging.admit(roster)
            record.move(JobState.FETCHING, site.clock(), "starting the worker")
            trainer = await stack.enter_async_context(_trainer(site, record, roster, material, scratch))
            chronicle = await stack.enter_async_context(_chronicle(record, roster, material, trainer, scratch))
            await _train(site, record, roster, trainer, averaging, material, meter, chronicle)
    except Exception as raised:  # whatever a job does, the node stays up: this is where a job ends
        error = plain(raised)
        ours = isinstance(error, CellulerError)
        log.info("job_failed_here", job=record.order.id[-8:], reason=str(error), exc_info=None if ours else raised)
        record.move(JobState.FAILED, site.clock(), str(error) if ours else f"fault in this node: {error!r}")
    finally:
        record.moved[site.peer_id] = meter.moved()


class Material:
    """What a job needs, here and verified. Paths lead into the store."""

    def __init__(self, base: OpenedManifest, weights: Path, data: Path) -> None:
        self.base, self.weights, self.data = base, weights, data


async def fetch_material(site: Site, record: JobRecord, *, hints: tuple[PeerId, ...]) -> Material:
    """The model's manifest and weights, and the dataset, by digest. Raises Unavailable, PeerViolation, LocalError."""
    base = open_manifest(await site.fetcher.block(Digest(record.order.signed.record.model), hints=hints))
    weights = await site.fetcher.content(Digest(base.record.weights), hints=hints)
    data = await site.fetcher.content(record.order.spec.data.content, hints=hints)
    return Material(base, weights, data)


async def _train(
    site: Site,
    record: JobRecord,
    roster: RosterView,
    trainer: Trainer,
    averaging: Averaging,
    material: Material,
    meter: _Meter,
    chronicle: Chronicle | None,
) -> None:
    checks = checks_for(len(roster), roster.rules.parts)
    run = site.make_run(roster, site.identity, state_root=trainer.state_root, checks=checks)
    record.report = run.report
    finished = trio.Event()
    members = tuple(member.peer for member in roster.members)
    reduced = Reductions()
    async with open_rounds(site.rounds, roster.run, members, parts=reduced.find) as streams:
        driver = Driver(
            run,
            streams,
            reduced,
            trainer,
            averaging,
            chronicle=chronicle,
            on_progress=lambda progress: _measure(site, record, progress),
            on_violation=site.host.penalise,
        )
        record.move(JobState.RUNNING, site.clock(), f"{len(members)} members")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_drive, driver, finished)
            await finished.wait()
            await _finish(site, record, trainer, material, meter, chronicle)
            with trio.move_on_after(LINGER_S):
                await driver.settled.wait()
                await averaging.drain(DRAIN_S)
            nursery.cancel_scope.cancel()


async def _drive(driver: Driver, finished: trio.Event) -> None:
    await driver.run(finished=finished)


async def _finish(
    site: Site,
    record: JobRecord,
    trainer: Trainer,
    material: Material,
    meter: _Meter,
    chronicle: Chronicle | None,
) -> None:
    record.move(JobState.VERIFYING, site.clock(), "publishing the result")
    weights = await trainer.export()
    losses = record.life.metrics
    metrics = (Metric("loss", losses["loss"]),) if "loss" in losses else ()
    record.outcome = await settle(site, record, material.base, weights, metrics)
    assert record.roster is not None
    wanted = min(REPLICAS, len(record.roster))
    found = await replicated(site, Digest(record.outcome.weights), wanted)
    record.moved[site.peer_id] = meter.moved()
    reason = f"{record.outcome.model} is held by {found} peers"
    if chronicle is not None:
        reason += f"; transcript {await _hand_in(site, chronicle)}"
    record.move(JobState.SUCCEEDED, site.clock(), reason)


async def _hand_in(site: Site, chronicle: Chronicle) -> str:
    """The transcript as content, for whoever wants to verify the run; not pinned. Returns its CID."""
    add = partial(site.store.add, chronicle.path, "blob", pin=False, move=True)
    root = await trio.to_thread.run_sync(add)
    site.fetcher.announce(root)
    return cid_of(root, Codec.MANIFEST)


def _measure(site: Site, record: JobRecord, progress: Progress) -> None:
    assert record.roster is not None
    if progress.report.round == record.roster.rules.rounds:
        return  # the closing height: it certifies the final state and trains nothing
    figures = {"round": float(progress.report.round + 1), "views": float(progress.report.views)}
    if progress.loss is not None and math.isfinite(progress.loss):
        figures["loss"] = progress.loss
    record.measure(site.clock(), figures)


async def _await_roster(site: Site, record: JobRecord) -> RosterView:
    """The roster that the coordinator signed, with us in it.

    A volunteer does not wait for ever: its one place belongs to whoever starts a run.
    """
    left_s = record.order.signed.record.expires_s - site.clock()
    with trio.move_on_after(max(0.0, left_s if record.coordinated else min(left_s, ROSTER_S))):
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


def _entry(site: Site, record: JobRecord, averaging: Averaging) -> RosterEntry:
    return RosterEntry(run_id(record), averaging.peer, averaging.addresses, site.nickname)


def _coordinator(record: JobRecord) -> PeerId:
    return PeerId(record.order.signed.record.coordinator)


@asynccontextmanager
async def _averager(site: Site, scratch: Path) -> Any:
    folder = scratch / "averager"
    folder.mkdir()
    async with open_averaging(site.averager_listen, folder, site.averager) as averaging:
        yield averaging


@asynccontextmanager
async def _trainer(site: Site, record: JobRecord, roster: RosterView, material: Material, scratch: Path) -> Any:
    folder = scratch / "worker"
    folder.mkdir()
    train, index = record.order.spec.train, roster.index_of(site.peer_id)
    assert index is not None, "check_roster saw us in it"
    setup = RunSetup(
        run=roster.run,
        spec=material.base.record.spec,
        weights=material.weights,
        data=material.data,
        partition=record.order.spec.data.partition,
        selection=record.order.spec.data.selection,
        index=index,
        members=len(roster),
        parts=roster.rules.parts,
        inner_steps=train.inner_steps,
        batch=train.batch,
        learning_rate=train.learning_rate,
        optimizer=train.optimizer,
    )
    async with site.make_trainer(site.worker, site.worker_limits, folder)(setup) as trainer:
        yield trainer


@asynccontextmanager
async def _chronicle(
    record: JobRecord, roster: RosterView, material: Material, trainer: Trainer, scratch: Path
) -> AsyncIterator[Chronicle | None]:
    """Where this run is written down; None when that would take too much."""
    if expected_bytes(len(roster), trainer.dimension, roster.rules.rounds) > MAX_BYTES:
        log.info("no_transcript", job=record.order.id[-8:], dimension=trainer.dimension)
        yield None
        return
    path, parts = scratch / "transcript", roster.rules.parts
    opening = Opening(record.order.signed.raw, material.base.signed.raw, roster.raw, trainer.dimension)
    with path.open("wb") as file:
        yield Chronicle(file, path, opening, parts)


def _before_roster(site: Site, record: JobRecord, state: JobState, reason: str) -> None:
    """At the coordinator the gathering tells how far the job is, until there is a roster."""
    if not record.coordinated:
        record.move(state, site.clock(), reason)


class _Meter:
    """Bytes this node has moved since the job began here, averaging included."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.averaging: Averaging | None = None
        self._began = self._streams()

    def moved(self) -> tuple[int, int]:
        """(sent, received)."""
        sent, received = self._streams()
        averaged = (0, 0) if self.averaging is None else (self.averaging.sent_bytes, self.averaging.received_bytes)
        return sent - self._began[0] + averaged[0], received - self._began[1] + averaged[1]

    def _streams(self) -> tuple[int, int]:
        moved = self._site.host.traffic.values()
        return sum(one.sent_bytes for one in moved), sum(one.received_bytes for one in moved)
