"""A trainer that trains honestly and sends something else: what the shipped node's trainer port lets us swap in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from celluler.aggregation.digests import mantissas_of, wire_bytes
from celluler_node.training.trainer import RunSetup, Trainer, TrainerFactory, Update
from simulations.attacks.updates import UpdateAttack, attacked


class LyingTrainer:
    """Everything as the honest trainer, but for what `train` hands over."""

    def __init__(self, honest: Trainer, attack: UpdateAttack) -> None:
        self._honest, self._attack = honest, attack

    def __getattr__(self, name: str) -> Any:
        return getattr(self._honest, name)

    async def train(self, round_number: int, *, fresh: bool) -> Update:
        update = await self._honest.train(round_number, fresh=fresh)
        exponents, mantissas = attacked(self._attack, update.exponents, mantissas_of(update.mantissas))
        return replace(update, exponents=exponents, mantissas=bytes(wire_bytes(mantissas)))


def lying(honest: TrainerFactory, attack: UpdateAttack) -> TrainerFactory:
    """A factory of lying trainers around one of honest ones."""

    @asynccontextmanager
    async def open_lying(setup: RunSetup) -> AsyncIterator[Any]:
        async with honest(setup) as trainer:
            yield LyingTrainer(trainer, attack)

    return open_lying
