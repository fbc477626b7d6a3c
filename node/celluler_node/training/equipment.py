"""What a member opens for a run: an averager, a worker that trains, and the file in which the run is written down."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
from blake3 import blake3

from celluler.learning.court import KEPT_STATES
from celluler.learning.roster import RosterView, open_roster
from celluler.learning.transcript import Opening
from celluler_node.training.averaging import Averaging, open_averaging
from celluler_node.training.chronicle import MAX_BYTES, Chronicle, expected_bytes
from celluler_node.training.material import Material
from celluler_node.training.record import JobRecord
from celluler_node.training.site import Site
from celluler_node.training.trainer import RunSetup, Trainer

log = structlog.get_logger()


@asynccontextmanager
async def averager_of(site: Site, record: JobRecord, scratch: Path) -> AsyncIterator[Averaging]:
    """Its key is the same whenever this node comes back to the run."""
    folder = scratch / "averager"
    folder.mkdir()
    seed = blake3(site.identity.seed + bytes(record.job), derive_key_context="celluler averager of a run 1").digest()
    async with open_averaging(
        site.averager_listen, folder, site.averager, seed=seed, wire=record.order.spec.train.wire
    ) as averaging:
        yield averaging


@asynccontextmanager
async def trainer_of(
    site: Site, record: JobRecord, roster: RosterView, material: Material, scratch: Path
) -> AsyncIterator[Trainer]:
    """Raises Denied for a model of another peer that needs more walls than there are here."""
    base = material.base
    site.confinement.require(base.record.body, own=base.signed.signer == site.peer_id)
    folder = scratch / "worker"
    folder.mkdir()
    spec, index = record.order.spec, roster.index_of(site.peer_id)
    assert index is not None, "check_roster saw us in it"
    first = open_roster(roster.raw, roster.coordinator)  # shards are of those who were there at the start
    setup = RunSetup(
        run=roster.run,
        body=base.record.body,
        spec=base.record.spec,
        weights=material.weights,
        data=material.data,
        partition=spec.data.partition,
        selection=spec.data.selection,
        index=index,
        members=len(first),
        parts=roster.rules.parts,
        inner_steps=spec.train.inner_steps,
        batch=spec.train.batch,
        learning_rate=spec.train.learning_rate,
        optimizer=spec.train.optimizer,
        precision=spec.train.precision,
        wire=spec.train.wire,
        kept_states=KEPT_STATES if roster.rules.audits else 0,
    )
    async with site.make_trainer(site.worker, site.worker_limits, folder)(setup) as trainer:
        yield trainer


@asynccontextmanager
async def chronicle_of(
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
