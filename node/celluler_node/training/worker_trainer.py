"""The honest trainer: the port of `trainer.py` by a worker process of its own, confined before it sees the data."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from celluler_node.processes.supervisor import Child, open_process
from celluler_node.processes.words import Limits, Program
from celluler_node.processes.worker_words import (
    ApplyRound,
    Export,
    StartRun,
    TrainRound,
)
from celluler_node.training.trainer import RunSetup, Trainer, TrainerFactory, Update

OUTER_LEARNING_RATE = 0.7
OUTER_MOMENTUM = 0.4
"""Measured: 0.9, the usual choice, drifts upwards. See docs/explanation/verified-rounds.md."""

EXPORT_NAME = "weights.safetensors"


class WorkerTrainer:
    """Made by `worker_trainer`."""

    def __init__(self, child: Child, dimension: int, state_root: bytes) -> None:
        self._child = child
        self.dimension, self.state_root = dimension, state_root
        self.isolation = "full" if child.isolation.full else "reduced: " + "; ".join(child.isolation.missing)

    async def train(self, round_number: int, *, fresh: bool) -> Update:
        reply = await self._child.call(TrainRound(round_number, fresh))
        return Update(reply.record.exponents, bytes(reply.blobs[0]), reply.record.loss)

    async def apply(self, round_number: int, exponents: tuple[int, ...], mantissas: bytes) -> bytes:
        reply = await self._child.call(ApplyRound(round_number, exponents), mantissas)
        self.state_root = reply.record.state_root
        return self.state_root

    async def export(self) -> Path:
        reply = await self._child.call(Export(EXPORT_NAME))
        return Path(reply.record.path)


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
            StartRun(
                run=setup.run,
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
            )
        )
        yield WorkerTrainer(child, reply.record.dimension, reply.record.state_root)
