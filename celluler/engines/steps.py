"""The local steps of one member's round, a few at a time: from given weights, on batches that a PRF gives.

Whose round it is, is an argument: a member's own, or that of another whose work is done again. Two that compute alike
(one audit class) get the same bits, in however many turns the steps are taken.

float16 is trained with its gradients 1,024 times as large, so that small ones do not vanish; a step whose gradient is
not finite even so is left out. bfloat16 and float32 need neither.
Knows nothing of momentum between rounds, of wires or of other members.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import numpy.typing as npt
import torch
from blake3 import blake3
from torch import Tensor

from celluler.datasets.sharding import shard
from celluler.engines.build import net_of
from celluler.engines.config import TrainConfig
from celluler.engines.data import Dataset
from celluler.engines.draws import Draws
from celluler.engines.graph.net import GraphNet
from celluler.engines.modules import draws_noise, idle_of, module_of, parameters_of
from celluler.engines.objectives import finite
from celluler.engines.objectives_wired import Loss, Phase, Run, phases_of
from celluler.engines.optimise import Inner, inner_named
from celluler.errors import LocalError
from celluler.models.body import Body
from celluler.models.objectives import Contrastive
from celluler.models.weights import NOTHING_STILL, Still

Vector = npt.NDArray[np.float32]

_REDUCED = {"bf16": torch.bfloat16, "fp16": torch.float16}
_HALF_SCALE = 1024.0  # a power of two: scaling back is exact


class LocalSteps:
    """A copy of the model that walks. `begin`, then `take` until `done`; then again for another round."""

    def __init__(self, architecture: Body, config: TrainConfig, data: Dataset, still: Still = NOTHING_STILL) -> None:
        self._architecture, self._config, self._data = architecture, config, data
        if config.micro < config.batch and architecture.whole_batch:
            raise LocalError("this model takes its batch whole: it cannot be cut into micro-batches")
        if config.batch < 2 and isinstance(architecture.objective, Contrastive):
            raise LocalError("a contrastive model needs at least 2 samples in a batch")
        self._vector = torch.empty(architecture.dimension)
        self._gradient = torch.zeros(architecture.dimension)
        self._module = module_of(architecture, self._vector, still)
        self._run = Run(self._module, self._autocast)
        self._phases = phases_of(architecture)
        self._nets = {phase.net: self._net(phase.net) for phase in self._phases}
        self._idle = self._alias_gradients()
        self._module.train()
        self._draws_noise = draws_noise(architecture)
        self._taken, self._total = 0, 0.0

    def begin(self, start: Vector, round_number: int, index: int, rows: Tensor | None) -> None:
        """start: (dimension,) float32, the public weights before that round; must stay as it is until the end.

        index: whose round. rows: the samples that member draws from, None for all.
        """
        self.start, self.round, self.index, self._own = start, round_number, index, rows
        self._vector.copy_(torch.from_numpy(start))
        if isinstance(self._module, GraphNet):
            self._module.restart()
        self._optimizers = [inner_named(self._config.optimizer, self._config.learning_rate) for _ in self._phases]
        self._taken, self._total = 0, 0.0

    @property
    def done(self) -> bool:
        return self._taken >= self._config.inner_steps

    @property
    def left(self) -> int:
        """Steps not taken yet."""
        return self._config.inner_steps - self._taken

    def take(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Go on: one step at least, then until `stop` says so or none is left."""
        while not self.done:
            self._step()
            if stop():
                return

    def rows(self, step: int) -> Tensor:
        """The samples of a step: (batch,) int64, drawn with replacement from that member's."""
        drawn = self._prf(b"batch", step, 8 * self._config.batch)
        count = len(self._data) if self._own is None else len(self._own)
        places = np.frombuffer(drawn, dtype="<u8") % np.uint64(count)  # bias below 2^-30: 64 bits for few samples
        rows = torch.from_numpy(places.astype(np.int64))
        return rows if self._own is None else self._own[rows]

    @property
    def vector(self) -> Vector:
        """Where the steps have led: (dimension,) float32; not a copy."""
        vector: Vector = self._vector.numpy()
        return vector

    @property
    def loss(self) -> float:
        """Mean over the steps taken."""
        return finite(self._total / max(1, self._taken))

    def _step(self) -> None:
        rows = self.rows(self._taken)
        with self._noise():
            for phase, optimizer in zip(self._phases, self._optimizers, strict=True):
                self._move(phase, optimizer, rows)
        self._taken += 1

    def _move(self, phase: Phase, optimizer: Inner, rows: Tensor) -> None:
        """One phase of a step: its net, by the gradient of its loss on these samples."""
        self._gradient.zero_()
        moved, parameters = self._nets[phase.net]
        for start in range(0, len(rows), self._config.micro):
            piece = range(start, min(start + self._config.micro, len(rows)))
            self._total += self._accumulate(phase.loss, parameters, rows, piece)
        if self._config.precision == "fp16":
            self._gradient.div_(_HALF_SCALE)
            if not bool(torch.isfinite(self._gradient).all()):
                return
        for place in self._idle:
            self._gradient[place] = 0
        optimizer.step(self._vector[moved], self._gradient[moved])

    def _net(self, name: str) -> tuple[slice, list[Tensor] | None]:
        """Where the tensors of a net lie in the flat vector, and its parameters; None for all that there are."""
        if not name:
            return slice(None), None
        tensors = self._architecture.tensors
        before = itertools.takewhile(lambda tensor: not tensor.name.startswith(f"{name}."), tensors)
        start = sum(tensor.elements for tensor in before)
        size = sum(tensor.elements for tensor in tensors if tensor.name.startswith(f"{name}."))
        return slice(start, start + size), list(net_of(self._module, name).parameters())

    def _accumulate(self, loss_of: Loss, parameters: list[Tensor] | None, rows: Tensor, piece: range) -> float:
        """Add the gradient of a piece of the batch, its share of the mean loss; the share itself. parameters: those
        whose gradient is wanted, None for all."""
        chosen = rows[piece.start : piece.stop]
        draws = Draws(self._config.run, self._place(self._taken), piece)
        loss = loss_of(self._run, self._data.x[chosen], self._data.y[chosen], draws)
        if len(chosen) != len(rows):
            loss = loss * (len(chosen) / len(rows))
        torch.autograd.backward(loss * _HALF_SCALE if self._config.precision == "fp16" else loss, inputs=parameters)
        return float(loss.detach())

    def _autocast(self) -> AbstractContextManager[object]:
        dtype = _REDUCED.get(self._config.precision)
        return nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype)

    def _noise(self) -> AbstractContextManager[None]:
        """A context in which dropout draws what the PRF says; nothing where nothing draws."""
        if not self._draws_noise:
            return nullcontext()
        return _seeded(int.from_bytes(self._prf(b"noise", self._taken, 8), "little") >> 1)

    def _prf(self, purpose: bytes, step: int, length: int) -> bytes:
        """BLAKE3 keyed by the run, over purpose, round, member and step."""
        message = b"celluler-" + purpose + b"-1\0" + self._place(step)
        return blake3(message, key=self._config.run).digest(length=length)

    def _place(self, step: int) -> bytes:
        return b"".join(number.to_bytes(8, "little") for number in (self.round, self.index, step))

    def _alias_gradients(self) -> tuple[slice, ...]:
        """Let autograd accumulate into one flat vector, so that an optimizer steps once and not once a tensor.

        Where in it there is nothing but rounding, ever.
        """
        start, idle, idle_names = 0, list[slice](), idle_of(self._architecture)
        named = parameters_of(self._architecture, self._module)
        for tensor in self._architecture.tensors:
            if tensor.trained:
                named[tensor.name].grad = self._gradient[start : start + tensor.elements].view(tensor.shape)
            if tensor.name in idle_names:
                idle.append(slice(start, start + tensor.elements))
            start += tensor.elements
        return tuple(idle)


def own_rows(data: Dataset, config: TrainConfig, index: int) -> Tensor | None:
    """The samples a member draws from; None for all. Raises LocalError when some member would have none."""
    if config.partition == "iid":
        return None
    kind, labels = "iid" if config.partition == "shard" else config.partition, None
    if kind == "by-label":
        if data.y.dtype != torch.int64 or data.y.dim() != 1:
            raise LocalError("only a classification's data can be sharded by label")
        labels = data.y.numpy()
    place = index % config.members  # who came later shares the shard of one who was there
    rows = shard(kind, len(data), config.members, place, config.run, labels=labels, keys=data.keys)
    return torch.from_numpy(rows)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
