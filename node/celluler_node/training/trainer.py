"""The trainer port: one member's hands on the model during a run.

The node drives a run through this port and never sees a tensor. `worker_trainer.py` implements it by a sandboxed
worker process; `simulations/attacks` wraps it to build peers that lie.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from celluler.datasets.schema import USUAL, Selection


@dataclass(frozen=True, slots=True)
class RunSetup:
    """What a member trains: the same at all members but for `index`.

    run: 32 bytes. spec: the architecture's JSON. parts: pieces an update is cut into, one reducer each. selection: of
    what the data hold.
    """

    run: bytes
    spec: bytes
    weights: Path
    data: Path
    partition: str
    index: int
    members: int
    parts: int
    inner_steps: int
    batch: int
    learning_rate: float
    optimizer: str
    selection: Selection = USUAL


@dataclass(frozen=True, slots=True)
class Update:
    """A member's update of one round in its wire form.

    exponents: one for each part. mantissas: (dimension,) little-endian int16, parts in order.
    """

    exponents: tuple[int, ...]
    mantissas: bytes
    loss: float


class Trainer(Protocol):
    """Open for one run. Every method raises WorkerFailed when the process behind it ends."""

    dimension: int
    state_root: bytes
    isolation: str

    async def train(self, round_number: int, *, fresh: bool) -> Update:
        """Local steps from the public state; the state itself does not move.

        fresh: our update of the round before was not in the certified set, so carry no momentum over from it.
        """
        ...

    async def apply(self, round_number: int, exponents: tuple[int, ...], mantissas: bytes) -> bytes:
        """The outer step with a certified aggregate. Returns the new state root, 32 bytes."""
        ...

    async def export(self) -> Path:
        """The trained weights as a safetensors file in the run's scratch folder."""
        ...


TrainerFactory = Callable[[RunSetup], AbstractAsyncContextManager[Trainer]]
