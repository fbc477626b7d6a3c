"""One member's training in a run: local steps from the public state, and the outer step that moves that state.

Round t: every member starts from the same state w_t, takes `inner_steps` steps with a fresh inner optimizer on batches
that a PRF gives it, and has u = w_t − w_local. It sends m = 0.8·(its own wire of t−1) + 0.2·u, quantised by the caller;
m = u when that was not aggregated. Whatever aggregate the members agree on is then applied by
all of them, and all have the same state again, bit for bit. Running statistics of batch norms travel in the same
vector, but without momentum of either kind: their aggregate is an average, and momentum would carry variances below
zero (measured: a CNN's loss went from 2 to 10⁵ in three rounds).

Good for scikit-learn's digits (scaled to 0…1) on an MLP 64-128-64-10 and for an 8-16 CNN: 20 steps of plain SGD a
round, batch 32, learning rate 0.2 and 0.1. Momentum makes the first rounds slow; 15 rounds are enough.
Knows nothing of quantisation, of rules or of other members.
Source: Douillard et al. 2023 (DiLoCo), algorithm 1; Karimireddy et al. 2021, section 5, for momentum against liars.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from blake3 import blake3
from torch import Tensor

from celluler.engines.config import TrainConfig
from celluler.engines.data import Dataset
from celluler.engines.evaluate import Evaluation
from celluler.engines.optimise import Outer
from celluler.engines.predict import Predictor
from celluler.engines.steps import LocalSteps, own_rows
from celluler.errors import LocalError
from celluler.models.body import Body
from celluler.models.weights import NOTHING_STILL, Still, save_vector

Vector = npt.NDArray[np.float32]

KEPT = np.float32(0.8)
ADDED = np.float32(0.2)
MOST_JUDGED = 64
"""Samples on which a round's state is judged by what its objective is judged by."""
_LEAST_JUDGED, _OF_TRAINING = 8, 4
"""At least so many, and no more than a fourth of the samples that a round trains on."""
_LEAST_VARIANCE = np.float32(1e-5)
_LARGEST_UPDATE = np.float32(2.0**96)


@dataclass(frozen=True, slots=True)
class Work:
    """What a member's round comes to. update: m; added: the part of m that this round's steps gave; (dimension,) each,
    float32. loss: mean over the steps."""

    update: Vector
    added: Vector
    loss: float


class Trainer:
    """The public state, and this member's way from one to the next. The caller pins the threads."""

    def __init__(
        self, architecture: Body, vector: Vector, data: Dataset, config: TrainConfig, still: Still = NOTHING_STILL
    ) -> None:
        """vector: (dimension,) float32, the public state before round 0; copied. still: the rest of the weights."""
        self.architecture = architecture
        self._data, self._config, self._still = data, config, still
        self._statistics = _places(architecture, "mean", "variance")
        self._variances = _places(architecture, "variance")
        if self._statistics and config.batch < 2:
            raise LocalError("a batch norm needs at least 2 samples in a batch")
        self._outer = Outer(
            np.array(vector, dtype=np.float32), config.outer_learning_rate, config.outer_momentum, self._statistics
        )
        self._steps = LocalSteps(architecture, config, data, still)
        self._own: dict[int, Tensor | None] = {config.index: own_rows(data, config, config.index)}
        self._applied = -1
        self._sent: dict[int, Vector] = {}

    @property
    def dimension(self) -> int:
        return self.architecture.dimension

    @property
    def applied(self) -> int:
        """The last round that moved the state; −1 before any."""
        return self._applied

    @property
    def parameters(self) -> Vector:
        """The public weights; not a copy."""
        return self._outer.parameters

    def state_root(self) -> bytes:
        """BLAKE3 over little-endian float32: weights, then velocity. Equal at all members after equal rounds."""
        weights, velocity = self.state_pieces()
        return blake3(weights).update(velocity).digest()

    def state(self) -> bytes:
        """The whole public state, 8·dimension bytes: weights, then velocity."""
        return b"".join(self.state_pieces())

    def state_pieces(self) -> tuple[memoryview, memoryview]:
        """The same without a copy: weights and velocity as they are until the next round is applied."""
        outer = self._outer
        return _little_endian(outer.parameters), _little_endian(outer.velocity)

    def restore(self, round_number: int, state: bytes | bytearray | memoryview) -> None:
        """Take over the state after `round_number`. Raises LocalError for bytes that are no state of this model."""
        if len(state) != 8 * self.dimension:
            raise LocalError(f"a state of {len(state)} bytes, must be {8 * self.dimension}")
        both = np.frombuffer(state, dtype="<f4").astype(np.float32)
        if not np.isfinite(both).all():
            raise LocalError("a state with values that are not finite")
        self._outer.parameters[:], self._outer.velocity[:] = both[: self.dimension], both[self.dimension :]
        self._applied = round_number
        self._sent.clear()

    def train(self, round_number: int, *, fresh: bool = False) -> tuple[Vector, float]:
        """(m, mean loss over the steps). The public state does not move; the same round again gives the same.

        fresh: our wire of the round before was not among those that were aggregated: m = u.
        m: (dimension,) float32, always finite: local steps that diverged count as none. Raises LocalError for a round
        that was applied already.
        """
        if round_number <= self._applied:
            raise LocalError(f"round {round_number} was applied already; the state is after {self._applied}")
        before = self._sent.get(round_number - 1)
        carried = before is not None and self._applied == round_number - 1 and not fresh
        work = self.work(round_number, self._config.index, before if carried else None)
        return work.update, work.loss

    def work(self, round_number: int, index: int, before: Vector | None) -> Work:
        """What member `index` of the run sends in this round, starting from the public state as it is now.

        before: what its wire of the round before stands for, (dimension,) float32; None when it carries no momentum.
        """
        self._steps.begin(self._outer.parameters, round_number, index, self._rows_of(index))
        self._steps.take()
        return self.work_of(self._steps, before)

    def replaying(self, round_number: int, index: int, start: Vector) -> LocalSteps:
        """The same from other weights than the present ones, not a step of it taken yet; beside what else goes on.

        start: (dimension,) float32, the public weights before that round; not copied.
        """
        steps = LocalSteps(self.architecture, self._config, self._data, self._still)
        steps.begin(start, round_number, index, self._rows_of(index))
        return steps

    def work_of(self, steps: LocalSteps, before: Vector | None) -> Work:
        """What steps that are all taken come to. before: as in `work`."""
        update: Vector = steps.start - steps.vector
        if not np.isfinite(update).all():
            update = np.zeros_like(update)
        np.clip(update, -_LARGEST_UPDATE, _LARGEST_UPDATE, out=update)
        if before is None:
            return Work(update, update, steps.loss)
        added = update * ADDED
        blended = added + before * KEPT
        for place in self._statistics:
            added[place] = blended[place] = update[place]
        return Work(blended, added, steps.loss)

    def _rows_of(self, index: int) -> Tensor | None:
        if index not in self._own:
            self._own[index] = own_rows(self._data, self._config, index)
        return self._own[index]

    def sent(self, round_number: int, wire: Vector) -> None:
        """What this member's wire of that round stands for, dequantised: the momentum of the next round."""
        self._sent = {number: kept for number, kept in self._sent.items() if number == round_number - 1}
        self._sent[round_number] = wire

    def check(self, round_number: int, aggregate: Vector) -> None:
        """Raises LocalError for a round applied already, or an aggregate that no rule gives."""
        if round_number <= self._applied:
            raise LocalError(f"round {round_number} was applied already; the state is after {self._applied}")
        if aggregate.shape != (self.dimension,) or aggregate.dtype != np.float32 or not np.isfinite(aggregate).all():
            raise LocalError(f"an aggregate is {self.dimension} finite float32")

    def apply(self, round_number: int, aggregate: Vector) -> None:
        """The outer step. Raises LocalError as `check`."""
        self.check(round_number, aggregate)
        self._outer.step(aggregate)
        for place in self._variances:  # rounding, or a liar under the mean, may carry it to where no variance is
            np.maximum(self._outer.parameters[place], _LEAST_VARIANCE, out=self._outer.parameters[place])
        self._applied = round_number

    def evaluate(self, data: Dataset) -> Evaluation:
        """The public state on other data."""
        return Predictor(self.architecture, torch.from_numpy(self._outer.parameters), self._still).evaluate(data)

    def judged(self) -> Evaluation:
        """The public state on a few samples of the data that the run trains with, the same ones in every round."""
        steps = self._config.inner_steps * self._config.batch
        count = min(len(self._data), MOST_JUDGED, max(_LEAST_JUDGED, steps // _OF_TRAINING))
        places = torch.arange(count) * len(self._data) // count
        return self.evaluate(Dataset(self._data.x[places], self._data.y[places]))

    def export(self, path: Path) -> None:
        """Write the public weights as a weights file."""
        save_vector(self.architecture, self._outer.parameters, path, self._still)


def _places(architecture: Body, *roles: str) -> tuple[slice, ...]:
    """Where the tensors of these roles lie in the flat vector."""
    places, start = [], 0
    for tensor in architecture.tensors:
        if tensor.role in roles:
            places.append(slice(start, start + tensor.elements))
        start += tensor.elements
    return tuple(places)


def weights_of(state: bytes | bytearray | memoryview) -> Vector:
    """The weights of a public state: (dimension,) float32; a copy."""
    return np.frombuffer(state, dtype="<f4", count=len(state) // 8).astype(np.float32)


def _little_endian(values: Vector) -> memoryview:
    return values.astype("<f4", copy=False).data.cast("B")
