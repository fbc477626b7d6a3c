"""One training run of many peers, some of which lie, by the shipped code in one process.

The trainer (local steps, momentum, outer step), the wire form, the cut into parts and the rules are those that nodes
run; what is left out is what does not touch a number: processes, sockets, signatures, votes. Liars send what an attack
of `simulations/attacks` makes up. Everything random follows from the setting.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from numpy.typing import NDArray

from celluler.aggregation.q16 import Mantissas, Values, decode_parts, encode_parts, part_slices
from celluler.aggregation.rules import rule_named
from celluler.aggregation.wires import FINEST, round_to
from celluler.engines.config import TrainConfig
from celluler.engines.data import Dataset
from celluler.engines.train import Trainer
from celluler.learning.roster import bad_updates
from celluler.models.spec import Architecture, parse_spec
from celluler.models.weights import initial_vector
from simulations import digits, mnist
from simulations.attacks.catalogue import parse_attack
from simulations.attacks.updates import PAST_ROUNDS, Scene, Wire, forged

PEERS = 16
ROUNDS = 40
ALPHA = 0.3
LEAST_SAMPLES = 8
HONEST = "none"


@dataclass(frozen=True, slots=True)
class Setting:
    """data: `digits` or `mnist-5k`. partition: `iid`, everybody draws from all samples; `dirichlet`, own shards.

    The rule is told of (n − 1) // 2 bad updates when the data are IID; else of n // 5, or of as many as there are.
    """

    data: str
    partition: str
    liars: int
    attack: str
    rule: str
    seed: int
    rounds: int = ROUNDS
    wire: str = FINEST

    @property
    def f(self) -> int:
        return max(self.liars, bad_updates(PEERS, iid=self.partition == "iid"))


@dataclass(frozen=True, slots=True)
class Task:
    """What is learned, and how. Training samples and held-out ones."""

    model: dict[str, Any]
    learning_rate: float
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    held_out: int
    inner_steps: int = 20
    batch: int = 32

    @property
    def training(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return self.x[self.held_out :], self.y[self.held_out :]

    @property
    def judging(self) -> Dataset:
        return _dataset(self.x[: self.held_out], self.y[: self.held_out])


@dataclass(frozen=True, slots=True)
class Outcome:
    """accuracy: of the state after the last round, on held-out samples. root: that state's, in hex."""

    accuracy: float
    root: str
    wall_s: float


def run(setting: Setting) -> Outcome:
    """Train, and judge what came out."""
    began = time.perf_counter()
    federation = Federation(setting)
    for number in range(setting.rounds):
        federation.round(number)
    accuracy = federation.honest[0].evaluate(federation.task.judging).accuracy
    roots = {trainer.state_root() for trainer in federation.honest}
    assert accuracy is not None
    assert len(roots) == 1, "honest members hold different states"
    return Outcome(accuracy, roots.pop().hex(), time.perf_counter() - began)


class Federation:
    """The peers of one setting."""

    def __init__(self, setting: Setting) -> None:
        self.task = task_named(setting.data)
        self._setting = setting
        self._rule = rule_named(setting.rule)
        self._attack = None if setting.attack == HONEST else parse_attack(setting.attack)
        self._liars = sorted(_random(setting, 1).permutation(PEERS)[: setting.liars].tolist())
        architecture = parse_spec(self.task.model)
        deal = _deal(setting, self.task.training[1])
        self._trainers = [self._trainer(architecture, member, rows) for member, rows in enumerate(deal)]
        self._pieces = part_slices(architecture.dimension, PEERS)
        self._past: list[deque[Values]] = [deque(maxlen=PAST_ROUNDS) for _ in range(PEERS)]
        self._aggregate: Values | None = None

    @property
    def honest(self) -> list[Trainer]:
        return [trainer for member, trainer in enumerate(self._trainers) if member not in self._liars]

    def round(self, number: int) -> None:
        """Everybody trains, liars lie, the rule reduces each part, everybody applies."""
        wires = self._sent(number)
        exponents = np.array([wire.exponents for wire in wires], dtype=np.int16)
        mantissas = np.stack([self._rounded(wire.mantissas) for wire in wires])
        reduced = [
            self._rule(np.ascontiguousarray(exponents[:, part]), mantissas[:, piece], self._setting.f)
            for part, piece in enumerate(self._pieces)
        ]
        whole = self._rounded(np.concatenate([one.mantissas for one in reduced]))
        self._aggregate = decode_parts(tuple(one.exponent for one in reduced), whole)
        for trainer in self._trainers:
            trainer.apply(number, self._aggregate)

    def _sent(self, number: int) -> list[Wire]:
        colluding = self._attack is not None and self._attack.knows_others
        trained: dict[int, Wire] = {
            member: self._trained(trainer, number)
            for member, trainer in enumerate(self._trainers)
            if not (colluding and member in self._liars)
        }
        if self._attack is None or not self._liars:
            return list(trained.values())
        honest = np.stack([wire.values() for member, wire in trained.items() if member not in self._liars])
        if colluding:
            first = next(iter(trained.values()))
            lie = forged(self._attack, self._scene(number, self._liars[0], first, honest))
            return [trained.get(member, lie) for member in range(PEERS)]
        lies = {
            member: forged(self._attack, self._scene(number, member, trained[member], honest)) for member in self._liars
        }
        for member in self._liars:
            self._past[member].append(trained[member].values())
        return [lies.get(member, trained[member]) for member in range(PEERS)]

    def _trained(self, trainer: Trainer, number: int) -> Wire:
        """As the worker does it."""
        update, _ = trainer.train(number)
        exponents, mantissas = encode_parts(update, PEERS)
        wire = Wire(exponents, self._rounded(mantissas))
        trainer.sent(number, wire.values())
        return wire

    def _rounded(self, mantissas: Mantissas) -> Mantissas:
        """To what the wire can say, each part by itself."""
        if self._setting.wire == FINEST:
            return mantissas
        return np.concatenate([round_to(self._setting.wire, mantissas[piece]) for piece in self._pieces])

    def _scene(self, number: int, me: int, own: Wire, honest: NDArray[np.float32]) -> Scene:
        setting = self._setting
        past = tuple(self._past[me])
        return Scene(number, me, PEERS, setting.liars, setting.f, own, honest, past, self._aggregate)

    def _trainer(self, architecture: Architecture, member: int, rows: NDArray[np.int64] | None) -> Trainer:
        x, y = self.task.training
        if member in self._liars and self._attack is not None and self._attack.flips_labels:
            y = y.max() - y
        share = self._attack.share_of_steps if member in self._liars and self._attack is not None else 1.0
        data = _dataset(x, y) if rows is None else _dataset(x[rows], y[rows])
        config = TrainConfig(
            run=blake3(f"accuracy {self._setting.seed}".encode()).digest(),
            index=member,
            members=PEERS,
            inner_steps=max(1, round(share * self.task.inner_steps)),
            batch=self.task.batch,
            learning_rate=self.task.learning_rate,
            optimizer="sgd",
        )
        seed = blake3(f"accuracy {self._setting.seed} weights".encode()).digest()
        return Trainer(architecture, initial_vector(architecture, seed), data, config)


@cache
def task_named(name: str) -> Task:
    """Raises LookupError, or ModuleNotFoundError where the data are not installed."""
    match name:
        case "digits":
            from sklearn.datasets import load_digits  # noqa: PLC0415 - an extra

            bunch: Any = load_digits()
            x, y = (bunch.data / 16.0).astype(np.float32), bunch.target.astype(np.int64)
            return _shuffled(digits.MLP, 0.2, x, y, digits.HELD_OUT)
        case "mnist-5k":
            return _shuffled(mnist.MLP, 0.1, *mnist.load_mnist(), mnist.HELD_OUT)
    raise LookupError(f"no data are called {name!r}; there are digits and mnist-5k")


def _shuffled(model: dict[str, Any], rate: float, x: NDArray[np.float32], y: NDArray[np.int64], held_out: int) -> Task:
    order = np.random.default_rng(7).permutation(len(y))
    return Task(model, rate, x[order], y[order], held_out)


def _deal(setting: Setting, labels: NDArray[np.int64]) -> Sequence[NDArray[np.int64] | None]:
    """The samples of each peer; None for all of them."""
    match setting.partition:
        case "iid":
            return [None] * PEERS
        case "dirichlet":
            return dirichlet(labels, PEERS, ALPHA, _random(setting, 2))
    raise LookupError(f"no partition is called {setting.partition!r}; there are iid and dirichlet")


def dirichlet(
    labels: NDArray[np.int64], members: int, alpha: float, random: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Each class dealt out in proportions of its own, anew until everybody has LEAST_SAMPLES. Hsu et al. 2019."""
    while True:
        hands: list[list[NDArray[np.int64]]] = [[] for _ in range(members)]
        for label in np.unique(labels):
            rows = random.permutation(np.flatnonzero(labels == label))
            shares = random.dirichlet(np.full(members, alpha))
            cuts = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
            for hand, dealt in zip(hands, np.split(rows, cuts), strict=True):
                hand.append(dealt)
        whole = [np.sort(np.concatenate(hand)) for hand in hands]
        if min(map(len, whole)) >= LEAST_SAMPLES:
            return whole


def _random(setting: Setting, purpose: int) -> np.random.Generator:
    return np.random.default_rng([setting.seed, purpose])


def _dataset(x: NDArray[np.float32], y: NDArray[np.int64]) -> Dataset:
    return Dataset(torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(np.ascontiguousarray(y)))
