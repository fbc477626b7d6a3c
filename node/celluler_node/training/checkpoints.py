"""What a run that goes on has come to so far, published: when its submitter asks, and by turns where the job says so.

A checkpoint costs the run nothing but the writing of a file by a worker that has handed over its update and waits for
the others. Nobody is believed for having published one: it names the job, and the transcript so far with which
`celluler verify` holds it against what was certified.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import structlog
import trio

from celluler.content.digest import Digest
from celluler.errors import CellulerError, Unavailable
from celluler.identity import PeerId
from celluler.jobs.checkpoints import publisher
from celluler.learning.report import RunReport
from celluler.learning.run import Run
from celluler.models.manifest import OpenedManifest
from celluler_node.training.chronicle import Chronicle
from celluler_node.training.exports import Exports
from celluler_node.training.publish import publish_checkpoint, replicated
from celluler_node.training.record import JobRecord
from celluler_node.training.site import Site
from celluler_protocols.jobs_messages import Checkpointed

PUBLISH_S = 300.0
WRITTEN_S = 10.0
"""How long to wait until the rounds of a checkpoint stand in the transcript."""

log = structlog.get_logger()


class Checkpoints:
    """One run's, as one member publishes them."""

    def __init__(
        self,
        site: Site,
        record: JobRecord,
        base: OpenedManifest,
        exports: Exports,
        chronicle: Chronicle | None,
        folder: Path,
    ) -> None:
        """base: of the model that the training began from. folder: an existing one, for what is on its way."""
        self._site, self._record, self._base = site, record, base
        self._exports, self._chronicle, self._folder = exports, chronicle, folder
        self._one = trio.Lock()
        self._newest: Checkpointed | None = None
        self._by_turn: Digest | None = None
        self._rounds, self._told = 0, trio.Event()

    async def publish(self, run: Run) -> Checkpointed:
        """The newest state, and wait, bounded, until somebody else has it too.

        Raises Unavailable before the first round is over, LocalError, WorkerFailed.
        """
        published = await self._publish(run)
        if published.outcome.weights == self._by_turn:
            self._by_turn = None  # somebody wants this one: it stays
        await replicated(self._site, Digest(published.outcome.weights), 2)
        return published

    def handed_over(self, rounds: int) -> None:
        """The state has so many rounds behind it, and the trainer is idle."""
        self._rounds = rounds
        self._told.set()

    async def take_turns(self, run: Run) -> None:
        """Publish whenever the job wants it of us, until the caller cancels. Turns that come meanwhile are left out."""
        while True:
            await self._told.wait()
            self._told = trio.Event()
            await self.take_turn(run, self._rounds)

    async def take_turn(self, run: Run, rounds: int) -> None:
        """Publish the newest state if after so many rounds it is our turn; that nothing comes of it ends nothing.

        The one that we published so before may be evicted from then on.
        """
        train = self._record.order.spec.train
        whose = turn(run.report, rounds, every=train.checkpoint_every, total=run.roster.rules.rounds)
        if whose != self._site.peer_id:
            return
        with trio.move_on_after(PUBLISH_S):
            try:
                published = await self._publish(run)
                before, self._by_turn = self._by_turn, Digest(published.outcome.weights)
                if before is not None and before != self._by_turn:
                    await trio.to_thread.run_sync(self._site.store.unpin, before)
            except (CellulerError, OSError) as error:
                log.info("checkpoint_not_published", job=self._record.order.id[-8:], reason=str(error))

    async def _publish(self, run: Run) -> Checkpointed:
        async with self._one:
            if run.round == 0:
                raise Unavailable("no round is over yet")
            if self._newest is None or self._newest.rounds < run.round:
                async with self._exports.weights() as (rounds, weights):
                    transcript = await self._transcript(rounds)
                    self._newest = await publish_checkpoint(
                        self._site, self._record, self._base, weights, rounds, transcript
                    )
            return self._newest

    async def _transcript(self, rounds: int) -> Digest | None:
        """What is written down so far, as content; not pinned. None when there is none, or no room for it."""
        chronicle = self._chronicle
        if chronicle is None:
            return None
        with trio.move_on_after(WRITTEN_S):
            await chronicle.reached(rounds)
        path, store = self._folder / "transcript-so-far", self._site.store
        try:
            await trio.to_thread.run_sync(chronicle.copy, path)
            root = await trio.to_thread.run_sync(partial(store.add, path, "blob", pin=False, move=True))
        except (CellulerError, OSError) as error:
            log.info("transcript_not_kept", job=self._record.order.id[-8:], reason=str(error))
            return None
        finally:
            path.unlink(missing_ok=True)
        self._site.fetcher.announce(root)
        return root


def turn(report: RunReport, rounds: int, *, every: int, total: int) -> PeerId | None:
    """The peer that publishes after so many rounds, read from the certified ones alone, so that all agree on it."""
    if not 0 < rounds <= len(report.rounds):
        return None
    last = report.rounds[rounds - 1]
    there = [peer for peer in last.contributed if peer not in last.expelled]
    return publisher(rounds, every=every, total=total, there=there)
