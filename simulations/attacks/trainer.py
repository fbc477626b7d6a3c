"""A trainer that trains honestly and sends something else: what the shipped node's trainer port lets us swap in.

What colluders need to know of others it finds out as any member can: model, data and batches are public, so it trains
in the place of some of them too, each in an honest worker of its own.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import trio
from safetensors.numpy import load_file, save_file

from celluler.aggregation.digests import mantissas_of, wire_bytes
from celluler.aggregation.q16 import Values, decode_parts
from celluler.learning.roster import bad_updates
from celluler_node.training.trainer import RunSetup, Trainer, TrainerFactory, Update
from simulations.attacks.updates import PAST_ROUNDS, Scene, UpdateAttack, Wire, forged

WATCHED = 2
"""In the place of how many others a colluder trains, unless told otherwise."""


class LyingTrainer:
    """Everything as the honest trainer, but for what `train` hands over."""

    def __init__(
        self, honest: Trainer, watched: Sequence[Trainer], attack: UpdateAttack, setup: RunSetup, *, liars: int
    ) -> None:
        self._honest, self._watched, self._attack, self._setup, self._liars = honest, watched, attack, setup, liars
        self._past: deque[Values] = deque(maxlen=PAST_ROUNDS)
        self._aggregate: Values | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._honest, name)

    async def train(self, round_number: int, *, fresh: bool) -> Update:
        sent = dict[int, Update]()

        async def train(place: int, trainer: Trainer) -> None:
            sent[place] = await trainer.train(round_number, fresh=fresh and place == 0)

        async with trio.open_nursery() as nursery:  # side by side: who is late is absent, and lies to nobody
            for place, trainer in enumerate((self._honest, *self._watched)):
                nursery.start_soon(train, place, trainer)
        update, *others = (sent[place] for place in sorted(sent))
        lie = forged(self._attack, self._scene(round_number, update, others))
        self._past.append(_wire(update).values())
        return replace(update, exponents=lie.exponents, mantissas=bytes(wire_bytes(lie.mantissas)))

    async def apply(self, round_number: int, exponents: tuple[int, ...], mantissas: bytes) -> bytes:
        for trainer in self._watched:
            await trainer.apply(round_number, exponents, mantissas)
        self._aggregate = decode_parts(exponents, mantissas_of(mantissas))
        return await self._honest.apply(round_number, exponents, mantissas)

    def _scene(self, round_number: int, update: Update, others: Sequence[Update]) -> Scene:
        setup = self._setup
        return Scene(
            round=round_number,
            me=setup.index,
            members=setup.members,
            liars=self._liars,
            f=bad_updates(setup.members, iid=setup.partition == "iid"),
            own=_wire(update),
            honest=np.stack([_wire(each).values() for each in (update, *others)]),
            past=tuple(self._past),
            aggregate=self._aggregate,
        )


def lying(honest: TrainerFactory, attack: UpdateAttack, *, liars: int = 1, watched: int = WATCHED) -> TrainerFactory:
    """A factory of lying trainers around one of honest ones.

    liars: of how many alike the attack may think. watched: in the place of how many others it trains, if it must know.
    """

    @asynccontextmanager
    async def open_lying(setup: RunSetup) -> AsyncIterator[Any]:
        others = _others(setup, watched) if attack.knows_others else ()
        with tempfile.TemporaryDirectory(prefix="celluler-liar-") as folder:
            own = replace(setup, data=_flipped(setup, Path(folder))) if attack.flips_labels else setup
            own = replace(own, inner_steps=steps_of(attack, setup.inner_steps))
            async with _all_open(honest, (own, *(replace(setup, index=other) for other in others))) as trainers:
                yield LyingTrainer(trainers[0], trainers[1:], attack, setup, liars=liars)

    return open_lying


@asynccontextmanager
async def _all_open(honest: TrainerFactory, setups: Sequence[RunSetup]) -> AsyncIterator[list[Trainer]]:
    """Trainers of these setups, opened side by side: a worker takes seconds to start, and a round does not wait."""
    opened = dict[int, Trainer]()

    async def hold(
        place: int, setup: RunSetup, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with honest(setup) as trainer:
            opened[place] = trainer
            task_status.started()
            await trio.sleep_forever()

    async with trio.open_nursery() as holding:
        async with trio.open_nursery() as opening:
            for place, setup in enumerate(setups):
                opening.start_soon(holding.start, hold, place, setup)
        yield [opened[place] for place in sorted(opened)]
        holding.cancel_scope.cancel()


def steps_of(attack: UpdateAttack, steps: int) -> int:
    """How many of its steps it does."""
    return max(1, round(attack.share_of_steps * steps))


def _others(setup: RunSetup, count: int) -> tuple[int, ...]:
    """The places after ours."""
    return tuple((setup.index + 1 + each) % setup.members for each in range(min(count, setup.members - 1)))


def _flipped(setup: RunSetup, folder: Path) -> Path:
    """The training file with wrong labels. Only files of tensors with classes."""
    label = setup.selection.label or "y"
    tensors = load_file(setup.data)
    labels = tensors[label]
    if labels.dtype != np.int64:
        raise ValueError("only the labels of a classification can be flipped")
    path = folder / "flipped.safetensors"
    save_file({**tensors, label: labels.max() - labels}, path)
    return path


def _wire(update: Update) -> Wire:
    return Wire(update.exponents, mantissas_of(update.mantissas))
