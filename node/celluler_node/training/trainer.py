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

from celluler.aggregation.digests import mantissas_of, part_hash
from celluler.aggregation.q16 import part_slices
from celluler.datasets.schema import USUAL, Selection
from celluler.identity import public_key_of
from celluler.learning.roster import RosterView


@dataclass(frozen=True, slots=True)
class RunSetup:
    """What a member trains: the same at all members but for `index`.

    run: 32 bytes. body: the kind of what is computed, spec: its document. parts: pieces an update is cut into,
    one reducer each. selection: of what the data hold. kept_states: of the last how many rounds the state before each
    stays at hand, for `replay` and `state`. precision: of the local steps, fp32, bf16 or fp16. wire: the form in which
    updates travel.
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
    kept_states: int = 0
    precision: str = "fp32"
    wire: str = "q16"
    body: str = "spec"


@dataclass(frozen=True, slots=True)
class Update:
    """A member's update of one round in its wire form.

    exponents: one for each part. mantissas: (dimension,) little-endian int16, parts in order. metric, value: what the
    objective is judged by, of the state that it was trained from; empty and None where nobody judged.
    """

    exponents: tuple[int, ...]
    mantissas: bytes
    loss: float
    metric: str = ""
    value: float | None = None


def hashes_of(update: Update, roster: RosterView, me: int, round_number: int) -> tuple[bytes, ...]:
    """What member `me` commits to: the hash of each part. Seconds for a large update: not for the loop."""
    author, whole = public_key_of(roster.members[me].peer), mantissas_of(update.mantissas)
    return tuple(
        part_hash(roster.run, round_number, author, part=part, exponent=update.exponents[part], mantissas=whole[piece])
        for part, piece in enumerate(part_slices(len(whole), roster.rules.parts))
    )


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of doing a member's round again. same: every bit, in all parts that were compared. deviations: of each
    of them, as `celluler.engines.replay` measures."""

    same: bool
    deviations: tuple[float, ...]


class Trainer(Protocol):
    """Open for one run. Every method raises WorkerFailed when the process behind it ends, or for what it cannot do.

    state_root: of the public state as it is now. audit_class: two trainers that name the same one get the same bits
    out of the same work.
    """

    dimension: int
    state_root: bytes
    isolation: str
    audit_class: str

    async def train(self, round_number: int, *, fresh: bool) -> Update:
        """Local steps from the public state; the state itself does not move.

        fresh: our update of the round before was not in the certified set, so carry no momentum over from it.
        """
        ...

    async def apply(self, round_number: int, exponents: tuple[int, ...], mantissas: bytes) -> bytes:
        """The outer step with a certified aggregate. Returns the new state root, 32 bytes."""
        ...

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
        """Do the round of member `index` again, from the public state before it, and compare with what it sent.

        Of the round that comes next, or of the last `kept_states`. parts: ascending, those to compare. exponents: of
        each; mantissas: of these parts, one after another. before_*: the same of its wire of the round before; nothing
        when it carried no momentum. Takes turns with `train` and `apply`, which go first; cancelling it is safe.
        """
        ...

    async def state(self, round_number: int | None = None) -> tuple[int, bytes]:
        """(number of the round that comes next, weights and velocity): the state as it is now, or that before
        `round_number`, of the last `kept_states`. 8·dimension bytes."""
        ...

    async def restore(self, next_round: int, state: bytes) -> bytes:
        """Take over a state. Returns its root, 32 bytes, which the caller compares with what was certified."""
        ...

    async def export(self) -> tuple[int, Path]:
        """(number of the round that comes next, the weights as they are now): a safetensors file in the run's scratch
        folder, which the next export overwrites."""
        ...


TrainerFactory = Callable[[RunSetup], AbstractAsyncContextManager[Trainer]]
