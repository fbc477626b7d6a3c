"""The trainer port of a run without certificates: what a member does with a model of its own.

`worker_trainer.WorkerTrainer` is both this and the port of `trainer.py`; one run uses one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from celluler_node.training.trainer import Update


@dataclass(frozen=True, slots=True)
class NeighbourRow:
    """A neighbour's model as it came, and its weight. mantissas: (dimension,) little-endian int16, parts in order."""

    weight: float
    exponents: tuple[int, ...]
    mantissas: bytes


@dataclass(frozen=True, slots=True)
class NeighbourMixture:
    """One figure a row. deviations: how far it lay from our model, relative to how far ours has come. pulls: how much
    of the difference was let in, 0…1."""

    deviations: tuple[float, ...]
    pulls: tuple[float, ...]


@runtime_checkable
class NeighboursTrainer(Protocol):
    """Open for one run. Every method raises WorkerFailed when the process behind it ends, or for what it cannot do."""

    dimension: int

    async def step(self, round_number: int, *, train: bool) -> Update:
        """Our model after the local steps of a round, or after none, as a difference to what the run began with."""
        ...

    async def mix(
        self, round_number: int, rows: Sequence[NeighbourRow], *, trusted: int | None, clip: bool
    ) -> NeighbourMixture:
        """Move it towards our neighbours'. See `celluler.engines.mixing`."""
        ...

    async def deviation(self, weights: Path) -> float:
        """How far a weights file lies from our model. Raises WorkerFailed for a file that is no such model."""
        ...

    async def export(self) -> tuple[int, Path]:
        """As a `Trainer`'s, of our own model."""
        ...
