"""Drives one member's `Neighbours`: carries out what the machine asks for and tells it what came of it.

streams ── receive ─▶ ┌────────────┐ ─ Send ──▶ streams to the members
worker ─── stepped ─▶ │ Neighbours │ ─ Step ──▶ worker, then averager: it serves what came of it
averager ─ gathered ▶ │            │ ─ Gather ▶ averager of that neighbour
worker ───── mixed ─▶ └────────────┘ ─ Mix ───▶ worker

Models pass through here as bytes; nothing looks at them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import structlog
import trio

from celluler.identity import short
from celluler.learning.effects import Fault, Send
from celluler.learning.neighbours import Neighbours
from celluler.learning.neighbours_effects import Done, Effect, Gather, Mix, Mixed, Step
from celluler_node.training.averaging import Averaging
from celluler_node.training.figures import Progress
from celluler_node.training.machine import Drive
from celluler_node.training.neighbours_trainer import NeighbourRow, NeighboursTrainer
from celluler_node.training.trainer import hashes_of
from celluler_protocols.rounds import Rounds

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Ended:
    """How a member's run ended. distance: see `Done`. met: whether any neighbour's model was ever mixed in."""

    distance: float
    met: bool


class NeighboursDriver:
    """One run at one member.

    `run` it once, until the caller cancels; `finished` is set when the last round is over. Raises WorkerFailed.
    """

    def __init__(
        self,
        run: Neighbours,
        streams: Rounds,
        trainer: NeighboursTrainer,
        averaging: Averaging,
        *,
        clip: bool,
        on_progress: Callable[[Progress, float], None],
    ) -> None:
        """clip: False mixes by the plain mean. on_progress: told of every training round, with the distance."""
        self._run, self._streams, self._trainer, self._averaging = run, streams, trainer, averaging
        self._clip, self._on_progress = clip, on_progress
        self._rows: dict[tuple[int, int], bytes] = {}
        self._losses: dict[int, float] = {}
        self.ended = Ended(0.0, met=False)
        self._drive = Drive[Effect](run, streams, self._carry_out)
        self.run, self.finished, self.settled = self._drive.run, self._drive.finished, self._drive.settled

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Send(None, data, skip):
                self._streams.broadcast(data, skip=skip)
            case Send(to, data, _) if to is not None:
                self._streams.send(to, data)
            case Step():
                self._drive.nursery.start_soon(self._step, effect)
            case Gather():
                self._drive.nursery.start_soon(self._gather, effect)
            case Mix():
                self._drive.nursery.start_soon(self._mix, effect)
            case Mixed(report, distance):
                if report.round < self._run.roster.rules.rounds:
                    self._on_progress(Progress(report, self._losses.pop(report.round, None)), distance)
            case Fault(peer, reason):
                log.info("neighbour_fault", peer=short(peer), reason=reason)
            case Done(_, distance):
                self.ended = Ended(distance, met=bool(self._run.met))
                self.finished.set()

    async def _step(self, effect: Step) -> None:
        roster, update = self._run.roster, await self._trainer.step(effect.round, train=effect.train)
        if effect.train and math.isfinite(update.loss):
            self._losses[effect.round] = update.loss
        hashes = await trio.to_thread.run_sync(hashes_of, update, roster, self._run.me, effect.round)
        await self._averaging.offer(roster.run, effect.round, roster.rules.parts, update.mantissas)
        self._drive.perform(self._run.stepped(effect.round, hashes, update.exponents, trio.current_time()))

    async def _gather(self, effect: Gather) -> None:
        roster, model = self._run.roster, effect.model
        parts = range(roster.rules.parts)
        data = await self._averaging.inputs(
            roster, effect.place, model.round, model, parts, self._trainer.dimension, effect.within_s
        )
        if data is not None:
            self._rows[effect.place, model.round] = data
        self._drive.perform(self._run.gathered(effect.place, model.round, data is not None, trio.current_time()))

    async def _mix(self, effect: Mix) -> None:
        rows = [
            NeighbourRow(row.weight, row.model.exponents, self._rows[row.place, row.model.round]) for row in effect.rows
        ]
        mixture = await self._trainer.mix(effect.round, rows, trusted=effect.trusted, clip=self._clip)
        self._rows = {key: data for key, data in self._rows.items() if key[1] > effect.round}
        self._drive.perform(self._run.mixed(effect.round, mixture.deviations, mixture.pulls, trio.current_time()))
