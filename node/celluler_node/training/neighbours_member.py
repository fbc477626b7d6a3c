"""A member's training without certificates: the machine among its surroundings, from the roster to the result.

Members end with models of their own, near each other and not equal. The first in line publishes its own, and it stands
under its name alone; the others take it when it is no farther from theirs than MAX_DEVIATION, else wait for the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import structlog
import trio

from celluler.content.digest import Digest
from celluler.errors import LocalError, Unavailable, WorkerFailed
from celluler.identity import PeerId, short
from celluler.jobs.states import JobState
from celluler.learning.neighbours import SETTLING_ROUNDS, Neighbours
from celluler.learning.roster import RosterView
from celluler.learning.topology import Topology, told_regions
from celluler.models.manifest import Metric, OpenedManifest
from celluler_node.training.averaging import Averaging
from celluler_node.training.figures import Progress
from celluler_node.training.neighbours_drive import Ended, NeighboursDriver
from celluler_node.training.neighbours_trainer import NeighboursTrainer
from celluler_node.training.publish import REPLICAS, replicated, settle_in_line
from celluler_node.training.record import JobRecord
from celluler_node.training.site import Site
from celluler_node.training.trainer import Trainer
from celluler_protocols.rounds import open_rounds

LINGER_S = 15.0
"""How long a member that has finished goes on serving those that lag."""
DRAIN_S = 3.0
MAX_DEVIATION = 0.5
"""Of a result from our own model, relative to how far ours has come: the model that all began with is at 1."""
PLAIN_MEAN = "mean"
"""The rule by which neighbours are mixed in whole; every other one means self-centred clipping."""

log = structlog.get_logger()


async def run_neighbours(
    site: Site,
    record: JobRecord,
    roster: RosterView,
    trainer: Trainer,
    averaging: Averaging,
    base: OpenedManifest,
    *,
    on_progress: Callable[[Progress], None],
    moved: Callable[[], tuple[int, int]],
) -> None:
    """Train, publish or fetch the result, linger. The averager has admitted the roster.

    base: of the model that all began with. on_progress: told of each training round. moved: bytes sent and received
    so far. Raises WorkerFailed, Unavailable, LocalError.
    """
    if not isinstance(trainer, NeighboursTrainer):
        raise LocalError("this trainer keeps no model of its own")
    train = record.order.spec.train
    regions = told_regions([member.region for member in roster.members])
    run = Neighbours(
        roster, site.identity, topology=Topology(train.topology), regions=regions, settling=SETTLING_ROUNDS
    )
    record.report = run.report
    members = tuple(member.peer for member in roster.members)

    def told(progress: Progress, distance: float) -> None:
        on_progress(progress)
        record.measure(site.clock(), {"distance": distance})

    async with open_rounds(site.rounds, roster.run, members, parts=_no_parts) as streams:
        clip = train.aggregator != PLAIN_MEAN
        driver = NeighboursDriver(run, streams, trainer, averaging, clip=clip, on_progress=told)
        record.move(JobState.RUNNING, site.clock(), f"{len(members)} members, {train.topology} of neighbours")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(driver.run)
            await driver.finished.wait()
            await _finish(site, record, trainer, base, moved, members, driver.ended)
            with trio.move_on_after(LINGER_S):
                await driver.settled.wait()
                await averaging.drain(DRAIN_S)
            nursery.cancel_scope.cancel()


async def _finish(
    site: Site,
    record: JobRecord,
    trainer: NeighboursTrainer,
    base: OpenedManifest,
    moved: Callable[[], tuple[int, int]],
    members: tuple[PeerId, ...],
    ended: Ended,
) -> None:
    if len(members) > 1 and not ended.met:
        raise Unavailable("no neighbour's model ever came: this was no training together")
    record.move(JobState.VERIFYING, site.clock(), "publishing the result")
    _, weights = await trainer.export()
    losses = record.life.metrics
    named = {"loss": losses.get("loss", math.nan), "distance": ended.distance}
    metrics = tuple(Metric(name, value) for name, value in named.items() if math.isfinite(value))

    async def near_ours(opened: OpenedManifest, publisher: PeerId) -> bool:
        return await _near_ours(site, trainer, opened, publisher)

    absent = record.report.rounds[-1].absent if record.report is not None and record.report.rounds else ()
    line = tuple(sorted(members, key=lambda member: member in absent))  # a silent one must not be waited for
    record.outcome = await settle_in_line(site, record, base, weights, metrics, line=line, judge=near_ours)
    found = await replicated(site, Digest(record.outcome.weights), min(REPLICAS, len(members)))
    record.moved[site.peer_id] = moved()
    record.move(
        JobState.SUCCEEDED,
        site.clock(),
        f"{record.outcome.model} is its publisher's own model and held by {found} peers; "
        f"our neighbours' models lay {ended.distance:.3g} of the way learned from ours",
    )


async def _near_ours(site: Site, trainer: NeighboursTrainer, opened: OpenedManifest, publisher: PeerId) -> bool:
    """Whether a member's result may stand for ours. Another opinion is no lie: nothing is held against it."""
    path: Path = await site.fetcher.content(Digest(opened.record.weights), hints=(publisher,))
    try:
        deviation = await trainer.deviation(path)
    except WorkerFailed as error:
        log.info("result_unfit", peer=short(publisher), reason=str(error)[:200])
        return False
    log.info("result_compared", peer=short(publisher), deviation=round(deviation, 4))
    return deviation <= MAX_DEVIATION


def _no_parts(digest: bytes) -> None:
    """Models travel between averagers: nothing is served on the streams."""
