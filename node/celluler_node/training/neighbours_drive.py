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

from celluler.aggregation.digests import mantissas_of, part_hash
from celluler.aggregation.q16 import part_slices
from celluler.identity import public_key_of, short
from celluler.learning.effects import Fault, Send
from celluler.learning.neighbours import Neighbours
from celluler.learning.neighbours_effects import Done, Effect, Gather, Mix, Mixed, Step
from celluler_node.bounded import plain
from celluler_node.training.averaging import Averaging
from celluler_node.training.figures import Progress
from celluler_node.training.neighbours_trainer import NeighbourRow, NeighboursTrainer
from celluler_node.training.trainer import Update
from celluler_protocols.rounds import Rounds

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Ended:
    """How a member's run ended. distance: see `Done`. met: whether any neighbour's model was ever mixed in."""

    distance: float
    met: bool


class NeighboursDriver:
    """One run at one member. `run` it once."""

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
        self._changed, self._done = trio.Event(), trio.Event()
        self.ended = Ended(0.0, met=False)
        self.settled = trio.Event()
        """Set when every member heard of says that it has finished: nobody needs us any more."""

    async def run(self, *, finished: trio.Event) -> None:
        """Until the caller cancels; sets `finished` when the last round is over. Raises WorkerFailed."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._listen)
                nursery.start_soon(self._watch_done, finished)
                self._perform(self._run.start(trio.current_time()))
                await self._keep_time()
        except BaseExceptionGroup as group:
            raise plain(group) from None

    # --- in -----------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        async for peer, data in self._streams:
            self._perform(self._run.receive(peer, data, trio.current_time()))

    async def _keep_time(self) -> None:
        while True:
            self._changed = trio.Event()
            with trio.move_on_at(self._run.next_deadline()):
                await self._changed.wait()
                continue
            self._perform(self._run.tick(trio.current_time()))

    async def _watch_done(self, finished: trio.Event) -> None:
        await self._done.wait()
        finished.set()

    # --- out ----------------------------------------------------------------------------------------------------

    def _perform(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            self._carry_out(effect)
        if self._run.settled:
            self.settled.set()
        self._changed.set()

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Send(None, data, skip):
                self._streams.broadcast(data, skip=skip)
            case Send(to, data, _) if to is not None:
                self._streams.send(to, data)
            case Step():
                self._nursery.start_soon(self._step, effect)
            case Gather():
                self._nursery.start_soon(self._gather, effect)
            case Mix():
                self._nursery.start_soon(self._mix, effect)
            case Mixed(report, distance):
                if report.round < self._run.roster.rules.rounds:
                    self._on_progress(Progress(report, self._losses.pop(report.round, None)), distance)
            case Fault(peer, reason):
                log.info("neighbour_fault", peer=short(peer), reason=reason)
            case Done(_, distance):
                self.ended = Ended(distance, met=bool(self._run.met))
                self._done.set()

    async def _step(self, effect: Step) -> None:
        update = await self._trainer.step(effect.round, train=effect.train)
        if effect.train and math.isfinite(update.loss):
            self._losses[effect.round] = update.loss
        roster = self._run.roster
        hashes = await trio.to_thread.run_sync(self._hashes, effect.round, update)
        await self._averaging.offer(roster.run, effect.round, roster.rules.parts, update.mantissas)
        self._perform(self._run.stepped(effect.round, hashes, update.exponents, trio.current_time()))

    def _hashes(self, number: int, update: Update) -> tuple[bytes, ...]:
        roster, whole = self._run.roster, mantissas_of(update.mantissas)
        author = public_key_of(roster.members[self._run.me].peer)
        pieces = part_slices(self._trainer.dimension, roster.rules.parts)
        return tuple(
            part_hash(roster.run, number, author, part=part, exponent=update.exponents[part], mantissas=whole[piece])
            for part, piece in enumerate(pieces)
        )

    async def _gather(self, effect: Gather) -> None:
        roster, model = self._run.roster, effect.model
        parts = range(roster.rules.parts)
        data = await self._averaging.inputs(
            roster, effect.place, model.round, model, parts, self._trainer.dimension, effect.within_s
        )
        if data is not None:
            self._rows[effect.place, model.round] = data
        self._perform(self._run.gathered(effect.place, model.round, data is not None, trio.current_time()))

    async def _mix(self, effect: Mix) -> None:
        rows = [
            NeighbourRow(row.weight, row.model.exponents, self._rows[row.place, row.model.round]) for row in effect.rows
        ]
        mixture = await self._trainer.mix(effect.round, rows, trusted=effect.trusted, clip=self._clip)
        self._rows = {key: data for key, data in self._rows.items() if key[1] > effect.round}
        self._perform(self._run.mixed(effect.round, mixture.deviations, mixture.pulls, trio.current_time()))
