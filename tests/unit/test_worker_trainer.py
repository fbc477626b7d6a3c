"""The trainer port over a worker: whose turn it is when an audit and the run itself want the worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import trio

from celluler_node.processes import worker_words as words
from celluler_node.processes.supervisor import Child
from celluler_node.processes.words import Isolation, Reply
from celluler_node.training.trainer import Replayed
from celluler_node.training.worker_trainer import WorkerTrainer

TRAIN_S, TURN_S = 10.0, 1.0


@dataclass
class SlowWorker:
    """Serves one call at a time, as a worker does. left: turns that a replay takes."""

    left: int = 4
    served: list[str] = field(default_factory=list)
    isolation: Isolation = field(default_factory=lambda: Isolation(True, True, True, 4, True, ()))
    one: trio.Lock = field(default_factory=trio.Lock)

    async def call(self, request: Any, *blobs: bytes) -> Reply:
        async with self.one:
            await trio.sleep(TRAIN_S if isinstance(request, words.TrainRound) else TURN_S)
            self.served.append(type(request).__name__)
            match request:
                case words.TrainRound():
                    return Reply(words.Trained(0.5, (0,)), (b"",))
                case words.Replay():
                    self.left = 4
            self.left -= 1
            return Reply(words.Replaying(self.left) if self.left else words.Replayed(True, (0.0,)))


def open_trainer() -> tuple[WorkerTrainer, SlowWorker]:
    worker = SlowWorker()
    return WorkerTrainer(cast(Child, worker), words.RunReady(1, bytes(32)), Path()), worker


async def replay(trainer: WorkerTrainer) -> Replayed:
    return await trainer.replay(0, 1, (0,), (0,), b"\0\0")


async def test_training_waits_for_one_turn_of_a_replay_and_the_replay_for_all_of_the_training(
    autojump_clock: trio.abc.Clock,
) -> None:
    trainer, worker = open_trainer()
    took: list[float] = []

    async def train() -> None:
        await trio.sleep(1.5 * TURN_S)
        began = trio.current_time()
        await trainer.train(1, fresh=False)
        await trainer.train(2, fresh=False)
        took.append(trio.current_time() - began)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(train)
        assert await replay(trainer) == Replayed(True, (0.0,))
    assert took[0] <= 2 * (TRAIN_S + TURN_S)
    assert worker.served[:3] == ["Replay", "GoOn", "TrainRound"]
    assert sorted(worker.served) == ["GoOn"] * 3 + ["Replay"] + ["TrainRound"] * 2


async def test_replays_go_one_after_the_other_and_one_given_up_is_in_nobodys_way(
    autojump_clock: trio.abc.Clock,
) -> None:
    trainer, worker = open_trainer()
    with trio.move_on_after(1.5 * TURN_S):
        await replay(trainer)
    found = []

    async def one() -> None:
        found.append(await replay(trainer))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one)
        nursery.start_soon(one)
    assert found == [Replayed(True, (0.0,))] * 2
    assert worker.served[-8:] == ["Replay", "GoOn", "GoOn", "GoOn"] * 2
