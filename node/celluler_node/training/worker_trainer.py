"""The honest trainer: the port of `trainer.py` by a worker process of its own, confined before it sees the data."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from celluler_node.processes import worker_mix_words as mix_words
from celluler_node.processes import worker_words as words
from celluler_node.processes.supervisor import Child, open_process
from celluler_node.processes.words import Limits, Program
from celluler_node.processes.worker_words import RunReady
from celluler_node.processes.written import written
from celluler_node.training.neighbours_trainer import NeighbourMixture, NeighbourRow
from celluler_node.training.trainer import Replayed, RunSetup, Trainer, TrainerFactory, Update

OUTER_LEARNING_RATE = 0.7
OUTER_MOMENTUM = 0.4
"""Measured: 0.9, the usual choice, drifts upwards. See docs/explanation/verified-rounds.md."""

EXPORT_NAME = "weights.safetensors"
COMPARED_NAME = "compared.safetensors"
TURN_MS = 200
"""Of a replay at a time, and one local step at least: so long may training have to wait for an audit."""


class WorkerTrainer:
    """Made by `worker_trainer`."""

    def __init__(self, child: Child, ready: RunReady, scratch: Path) -> None:
        self._child, self._scratch = child, scratch
        self.dimension, self.state_root, self.audit_class = ready.dimension, ready.state_root, ready.audit_class
        self._replaying, self._urgent, self._calm = trio.Lock(), 0, trio.Event()
        self.isolation = "full" if child.isolation.full else "reduced: " + "; ".join(child.isolation.missing)

    async def train(self, round_number: int, *, fresh: bool) -> Update:
        async with self._first():
            reply = await self._child.call(words.TrainRound(round_number, fresh))
        told = reply.record
        return Update(told.exponents, bytes(reply.blobs[0]), told.loss, told.metric, told.value)

    async def apply(self, round_number: int, exponents: tuple[int, ...], mantissas: bytes) -> bytes:
        async with self._first():
            reply = await self._child.call(words.ApplyRound(round_number, exponents), mantissas)
        self.state_root = reply.record.state_root
        return self.state_root

    async def replay(
        self,
        round_number: int,
        index: int,
        parts: tuple[int, ...],
        exponents: tuple[int, ...],
        mantissas: bytes,
        before_exponents: tuple[int, ...] = (),
        before_mantissas: bytes = b"",
    ) -> Replayed:
        request = words.Replay(round_number, index, parts, exponents, before_exponents, TURN_MS)
        blobs = (mantissas, before_mantissas) if before_exponents else (mantissas,)
        async with self._replaying:  # a worker has one replay under way
            answer = await self._turn(request, *blobs)
            while isinstance(answer, words.Replaying):
                answer = await self._turn(words.GoOn(TURN_MS))
        return Replayed(answer.same, answer.deviations)

    async def state(self, round_number: int | None = None) -> tuple[int, bytes]:
        async with self._first():
            reply = await self._child.call(words.GetState(round_number))
        return reply.record.next_round, bytes(reply.blobs[0])

    async def restore(self, next_round: int, state: bytes) -> bytes:
        async with self._first():
            reply = await self._child.call(words.SetState(next_round), state)
        self.state_root = reply.record.state_root
        return self.state_root

    async def step(self, round_number: int, *, train: bool) -> Update:
        async with self._first():
            reply = await self._child.call(mix_words.StepOwn(round_number, train))
        return Update(reply.record.exponents, bytes(reply.blobs[0]), reply.record.loss)

    async def mix(
        self, round_number: int, rows: Sequence[NeighbourRow], *, trusted: int | None, clip: bool
    ) -> NeighbourMixture:
        asked = tuple(mix_words.MixRow(row.weight, row.exponents) for row in rows)
        request = mix_words.MixOwn(round_number, asked, trusted, clip)
        async with self._first():
            told = (await self._child.call(request, *(row.mantissas for row in rows))).record
        self.state_root = told.state_root
        return NeighbourMixture(told.deviations, told.pulls)

    async def deviation(self, weights: Path) -> float:
        copy = self._scratch / COMPARED_NAME
        await trio.to_thread.run_sync(shutil.copyfile, weights, copy)
        try:
            async with self._first():
                told = (await self._child.call(mix_words.CompareOwn(COMPARED_NAME))).record
        finally:
            copy.unlink()
        return float(told.deviation)

    async def export(self) -> tuple[int, Path]:
        async with self._first():
            reply = await self._child.call(words.Export(EXPORT_NAME))
        return reply.record.next_round, written(self._scratch, EXPORT_NAME)

    async def _turn(self, request: Any, *blobs: bytes) -> Any:
        """Some steps of a replay, once the run itself has nothing to ask."""
        while self._urgent:
            await self._calm.wait()
        return (await self._child.call(request, *blobs)).record

    @asynccontextmanager
    async def _first(self) -> AsyncIterator[None]:
        """A call of the run itself: replays wait. It waits for one turn of theirs at most."""
        if not self._urgent:
            self._calm = trio.Event()
        self._urgent += 1
        try:
            yield
        finally:
            self._urgent -= 1
            if not self._urgent:
                self._calm.set()


def worker_trainer(program: Program, limits: Limits, scratch: Path) -> TrainerFactory:
    """A factory of trainers whose workers keep to these limits and write below `scratch` only.

    program: the worker, confined or not.
    """

    def open_trainer(setup: RunSetup) -> AbstractAsyncContextManager[Trainer]:
        return _open(setup, program, limits, scratch)

    return open_trainer


@asynccontextmanager
async def _open(setup: RunSetup, program: Program, limits: Limits, scratch: Path) -> AsyncIterator[Trainer]:
    readable = (setup.weights, setup.data)
    async with open_process(program, limits=limits, readable=readable, scratch=scratch) as child:
        reply = await child.call(
            words.StartRun(
                run=setup.run,
                body=setup.body,
                spec=setup.spec,
                weights=str(setup.weights),
                data=str(setup.data),
                partition=setup.partition,
                index=setup.index,
                members=setup.members,
                parts=setup.parts,
                inner_steps=setup.inner_steps,
                batch=setup.batch,
                learning_rate=setup.learning_rate,
                optimizer=setup.optimizer,
                outer_learning_rate=OUTER_LEARNING_RATE,
                outer_momentum=OUTER_MOMENTUM,
                selection=setup.selection,
                kept_states=setup.kept_states,
                precision=setup.precision,
                wire=setup.wire,
            )
        )
        yield WorkerTrainer(child, reply.record, scratch)
