"""A trainer that trains honestly and sends something else: what the shipped node's trainer port lets us swap in.

What colluders need to know of others it finds out as any member can: model, data and batches are public, so it trains
in the place of some of them too, each in an honest worker of its own.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from celluler.aggregation.digests import mantissas_of, wire_bytes
from celluler.aggregation.q16 import Values, decode_parts
from celluler.learning.roster import bad_updates
from celluler_node.training.trainer import RunSetup, Trainer, TrainerFactory, Update
from simulations.attacks.updates import PAST_ROUNDS, Scene, UpdateAttack, Wire, forged

WATCHED = 3
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
        update = await self._honest.train(round_number, fresh=fresh)
        others = [await trainer.train(round_number, fresh=False) for trainer in self._watched]
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
        async with AsyncExitStack() as stack:
            own = setup
            if attack.flips_labels:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="celluler-liar-"))
                own = replace(setup, data=_flipped(setup, Path(folder)))
            trainer = await stack.enter_async_context(honest(own))
            others = _others(setup, watched) if attack.knows_others else ()
            known = [await stack.enter_async_context(honest(replace(setup, index=other))) for other in others]
            yield LyingTrainer(trainer, known, attack, setup, liars=liars)

    return open_lying


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
