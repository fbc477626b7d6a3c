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

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from blake3 import blake3
from torch import Tensor

from celluler.datasets.sharding import shard
from celluler.engines.build import build
from celluler.engines.data import Dataset
from celluler.engines.optimise import INNER, OUTER_LEARNING_RATE, OUTER_MOMENTUM, Outer, inner_named
from celluler.engines.predict import Evaluation, Predictor, finite, loss_of
from celluler.errors import LocalError
from celluler.models.layers import Dropout, Layer, Repeat, Residual
from celluler.models.spec import Architecture
from celluler.models.weights import save_vector

Vector = npt.NDArray[np.float32]

KEPT = np.float32(0.8)
ADDED = np.float32(0.2)
PARTITIONS = ("iid", "shard", "by-label", "by-key")
_LEAST_VARIANCE = np.float32(1e-5)
_LARGEST_UPDATE = np.float32(2.0**96)


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """What a member does in each round; the same at all members but for `index`.

    run: 32 bytes. partition: `iid`, every member draws from all samples; else each from a shard of its own, dealt with
    the run as seed: `shard`, an equal part at random; `by-label`, whole classes; `by-key`, whole keys.
    """

    run: bytes
    index: int
    members: int
    inner_steps: int
    batch: int
    learning_rate: float
    optimizer: str = "adam"
    partition: str = "iid"
    outer_learning_rate: float = OUTER_LEARNING_RATE
    outer_momentum: float = OUTER_MOMENTUM

    def __post_init__(self) -> None:
        if len(self.run) != 32:
            raise LocalError("a run has an id of 32 bytes")
        if not 0 <= self.index < self.members:
            raise LocalError(f"member {self.index} of {self.members}")
        if self.inner_steps < 1 or self.batch < 1:
            raise LocalError("a round takes at least one step on at least one sample")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise LocalError("the learning rate must be positive")
        if not (0 < self.outer_learning_rate <= 10 and 0 <= self.outer_momentum < 1):
            raise LocalError("outer learning rate must be in (0, 10], momentum in [0, 1)")
        if self.optimizer not in INNER:
            raise LocalError(f"no optimizer is called {self.optimizer!r}; there are {', '.join(INNER)}")
        if self.partition not in PARTITIONS:
            raise LocalError(f"no partition is called {self.partition!r}; there are {', '.join(PARTITIONS)}")


@dataclass(frozen=True, slots=True)
class Work:
    """What a member's round comes to. update: m; added: the part of m that this round's steps gave; (dimension,) each,
    float32. loss: mean over the steps."""

    update: Vector
    added: Vector
    loss: float


class Trainer:
    """The public state, and this member's way from one to the next. The caller pins the threads."""

    def __init__(self, architecture: Architecture, vector: Vector, data: Dataset, config: TrainConfig) -> None:
        """vector: (dimension,) float32, the public state before round 0; copied."""
        self.architecture = architecture
        self._data, self._config = data, config
        self._statistics = _places(architecture, "mean", "variance")
        self._variances = _places(architecture, "variance")
        if self._statistics and config.batch < 2:
            raise LocalError("a batch norm needs at least 2 samples in a batch")
        self._outer = Outer(
            np.array(vector, dtype=np.float32), config.outer_learning_rate, config.outer_momentum, self._statistics
        )
        self._local = torch.empty(architecture.dimension)
        self._gradient = torch.zeros(architecture.dimension)
        self._module = build(architecture, self._local)
        self._parameters = list(self._module.parameters())
        self._alias_gradients()
        self._draws_noise = _has_dropout(architecture.layers)
        self._own: dict[int, Tensor | None] = {config.index: _own_rows(data, config)}
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
        return blake3(self.state()).digest()

    def state(self) -> bytes:
        """The whole public state, 8·dimension bytes: weights, then velocity."""
        outer = self._outer
        return outer.parameters.astype("<f4", copy=False).tobytes() + outer.velocity.astype("<f4", copy=False).tobytes()

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
        if index not in self._own:
            self._own[index] = _own_rows(self._data, replace(self._config, index=index))
        loss = self._local_steps(round_number, index)
        update = self._outer.parameters - self._local.numpy()
        if not np.isfinite(update).all():
            update = np.zeros_like(update)
        np.clip(update, -_LARGEST_UPDATE, _LARGEST_UPDATE, out=update)
        if before is None:
            return Work(update, update, loss)
        added = update * ADDED
        blended = added + before * KEPT
        for place in self._statistics:
            added[place] = blended[place] = update[place]
        return Work(blended, added, loss)

    def sent(self, round_number: int, wire: Vector) -> None:
        """What this member's wire of that round stands for, dequantised: the momentum of the next round."""
        self._sent = {number: kept for number, kept in self._sent.items() if number == round_number - 1}
        self._sent[round_number] = wire

    def apply(self, round_number: int, aggregate: Vector) -> None:
        """The outer step. Raises LocalError for a round applied already, or an aggregate that no rule gives."""
        if round_number <= self._applied:
            raise LocalError(f"round {round_number} was applied already; the state is after {self._applied}")
        if aggregate.shape != (self.dimension,) or aggregate.dtype != np.float32 or not np.isfinite(aggregate).all():
            raise LocalError(f"an aggregate is {self.dimension} finite float32")
        self._outer.step(aggregate)
        for place in self._variances:  # rounding, or a liar under the mean, may carry it to where no variance is
            np.maximum(self._outer.parameters[place], _LEAST_VARIANCE, out=self._outer.parameters[place])
        self._applied = round_number

    def evaluate(self, data: Dataset) -> Evaluation:
        """The public state on other data."""
        return Predictor(self.architecture, torch.from_numpy(self._outer.parameters)).evaluate(data)

    def export(self, path: Path) -> None:
        """Write the public weights as a weights file."""
        save_vector(self.architecture, self._outer.parameters, path)

    def _local_steps(self, round_number: int, index: int) -> float:
        """From the public state; leaves the result in `_local`. Returns the mean loss."""
        self._local.copy_(torch.from_numpy(self._outer.parameters))
        self._module.train()
        optimizer = inner_named(self._config.optimizer, self._config.learning_rate)
        total = 0.0
        for step in range(self._config.inner_steps):
            rows = self._rows(round_number, index, step)
            self._gradient.zero_()
            with self._noise(round_number, index, step):
                loss = loss_of(self.architecture, self._module(self._data.x[rows]), self._data.y[rows])
            torch.autograd.backward(loss)
            optimizer.step(self._local, self._gradient)
            total += float(loss.detach())
        return finite(total / self._config.inner_steps)

    def _rows(self, round_number: int, index: int, step: int) -> Tensor:
        """(batch,) int64: drawn with replacement from that member's samples."""
        drawn = self._prf(b"batch", round_number, index, step, 8 * self._config.batch)
        own = self._own[index]
        count = len(self._data) if own is None else len(own)
        places = np.frombuffer(drawn, dtype="<u8") % np.uint64(count)  # bias below 2^-30: 64 bits for few samples
        rows = torch.from_numpy(places.astype(np.int64))
        return rows if own is None else own[rows]

    def _noise(self, round_number: int, index: int, step: int) -> AbstractContextManager[None]:
        """A context in which dropout draws what the PRF says; nothing where nothing draws."""
        if not self._draws_noise:
            return nullcontext()
        return _seeded(int.from_bytes(self._prf(b"noise", round_number, index, step, 8), "little") >> 1)

    def _prf(self, purpose: bytes, round_number: int, index: int, step: int, length: int) -> bytes:
        """BLAKE3 keyed by the run, over purpose, round, member and step."""
        place = b"".join(number.to_bytes(8, "little") for number in (round_number, index, step))
        return blake3(b"celluler-" + purpose + b"-1\0" + place, key=self._config.run).digest(length=length)

    def _alias_gradients(self) -> None:
        """Let autograd accumulate into one flat vector, so that an optimizer steps once and not once a tensor."""
        start = 0
        named = dict(self._module.named_parameters())
        for tensor in self.architecture.tensors:
            if tensor.trained:
                named[tensor.name].grad = self._gradient[start : start + tensor.elements].view(tensor.shape)
            start += tensor.elements


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _has_dropout(layers: tuple[Layer, ...]) -> bool:
    return any(
        isinstance(layer, Dropout) or (isinstance(layer, Residual | Repeat) and _has_dropout(layer.layers))
        for layer in layers
    )


def _own_rows(data: Dataset, config: TrainConfig) -> Tensor | None:
    """The samples a member draws from; None for all. Raises LocalError when some member would have none."""
    if config.partition == "iid":
        return None
    kind, labels = "iid" if config.partition == "shard" else config.partition, None
    if kind == "by-label":
        if data.y.dtype != torch.int64:
            raise LocalError("only a classification's data can be sharded by label")
        labels = data.y.numpy()
    rows = shard(kind, len(data), config.members, config.index, config.run, labels=labels, keys=data.keys)
    return torch.from_numpy(rows)


def _places(architecture: Architecture, *roles: str) -> tuple[slice, ...]:
    """Where the tensors of these roles lie in the flat vector."""
    places, start = [], 0
    for tensor in architecture.tensors:
        if tensor.role in roles:
            places.append(slice(start, start + tensor.elements))
        start += tensor.elements
    return tuple(places)
