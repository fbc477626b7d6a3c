"""Training with neighbours alone, on digits, some members lying: the shipped trainer, wire and mixing in one process.

    python -m simulations.gossip_training                # every topology, IID data, nobody or two of nine lying
    python -m simulations.gossip_training --partition by-label --topologies ring mesh

Prints, for each topology and lie, the accuracy of the honest members' models on held-out images under clipping and
under the plain mean (mean of them, then the worst), and how far apart two honest models lie at most, relative to how
far they have come. All rounds are in step and no message is lost: what that does is in `simulations/neighbours.py`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from blake3 import blake3
from numpy.typing import NDArray

from celluler.aggregation.q16 import decode_parts, encode_parts
from celluler.engines.config import TrainConfig
from celluler.engines.data import Dataset
from celluler.engines.mixing import length_between
from celluler.engines.own import OwnModel
from celluler.engines.train import Trainer
from celluler.learning.neighbours import SETTLING_ROUNDS
from celluler.learning.roster import bad_updates, tolerated
from celluler.learning.topology import Topology, graph
from celluler.models.spec import parse_spec
from celluler.models.weights import initial_vector
from simulations.federation import task_named

MEMBERS = 9
LIARS = (0, 5)
"""The first is the hub of a star and the aggregator of a region."""

HONEST = "nobody lies"

Vector = NDArray[np.float32]
Lie = Callable[[Vector, NDArray[np.float32]], Vector]
"""From the receiver's own model and all honest ones, (k, d), to what it is sent."""


def _alie(receiver: Vector, honest: NDArray[np.float32]) -> Vector:
    centre: Vector = honest.mean(axis=0) - np.float32(1.5) * honest.std(axis=0)
    return centre


LIES: Mapping[str, Lie] = {
    "-1000 ×": lambda receiver, honest: -1000 * honest.mean(axis=0),
    "-1 ×": lambda receiver, honest: -honest.mean(axis=0),
    "mean - 1.5 σ": _alie,
    "echo": lambda receiver, honest: receiver,
}
"""`echo` shows everybody its own model: distance zero, so it counts as the nearest and the radius shrinks."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """accuracies: of the honest, each its own model. spread: see above."""

    accuracies: tuple[float, ...]
    spread: float

    @property
    def text(self) -> str:
        mean, worst = (100 * np.mean(self.accuracies), 100 * min(self.accuracies))
        return f"{mean:.0f} ({worst:.0f})"


def run(topology: Topology, lie: Lie | None, *, clip: bool, rounds: int, partition: str, seed: int = 0) -> Outcome:
    """Train, mix, and judge every honest member's own model."""
    trainers = [_trainer(member, partition, seed) for member in range(MEMBERS)]
    models = [OwnModel(trainer) for trainer in trainers]
    liars = LIARS if lie is not None else ()
    honest = [member for member in range(MEMBERS) if member not in liars]
    found = graph(topology, MEMBERS)
    bad = max(bad_updates(MEMBERS, iid=partition == "iid"), tolerated(MEMBERS))
    for number in range(rounds + SETTLING_ROUNDS):
        shown = [_travelled(model.step(number, train=number < rounds)[0]) for model in models]
        sincere = np.stack([shown[member] for member in honest])
        for member, model in enumerate(models):
            near = found.neighbours[member]
            rows = [
                _travelled(lie(shown[member], sincere)) if lie is not None and other in liars else shown[other]
                for other in near
            ]
            weights = [found.weight(member, other) for other in near]
            trusted = None if len(near) < 2 else len(near) - min(bad, len(near) // 2)
            model.mix(number, rows, weights, trusted=trusted, clip=clip)
    return _judged([trainers[member] for member in honest], _trainer(0, partition, seed).parameters)


def _judged(trainers: Sequence[Trainer], start: Vector) -> Outcome:
    task = task_named("digits")
    accuracies = [trainer.evaluate(task.judging).accuracy or 0.0 for trainer in trainers]
    spread = max(
        length_between(one.parameters, other.parameters) / length_between(one.parameters, start)
        for one in trainers
        for other in trainers
    )
    return Outcome(tuple(accuracies), spread)


def _trainer(member: int, partition: str, seed: int) -> Trainer:
    task = task_named("digits")
    x, y = task.training
    run_id = blake3(f"gossip {seed}".encode()).digest()
    config = TrainConfig(
        run=run_id,
        index=member,
        members=MEMBERS,
        inner_steps=task.inner_steps,
        batch=task.batch,
        learning_rate=task.learning_rate,
        optimizer="sgd",
        partition=partition,
    )
    architecture = parse_spec(task.model)
    data = Dataset(torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(np.ascontiguousarray(y)))
    return Trainer(architecture, initial_vector(architecture, run_id), data, config)


def _travelled(model: Vector) -> Vector:
    """What the wire makes of it."""
    return decode_parts(*encode_parts(np.clip(model, -3e38, 3e38).astype(np.float32), MEMBERS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--partition", choices=("iid", "shard", "by-label"), default="iid")
    parser.add_argument("--topologies", nargs="+", choices=[*Topology], default=[*Topology])
    parser.add_argument("--lies", nargs="+", choices=[HONEST, *LIES], default=[HONEST, *LIES])
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    print("| topology | lie | clipping | apart | mean | apart |\n|---|---|---|---|---|---|")
    for topology in map(Topology, chosen.topologies):
        for name in chosen.lies:
            lie = LIES.get(name)
            told = [
                run(topology, lie, clip=clip, rounds=chosen.rounds, partition=chosen.partition, seed=chosen.seed)
                for clip in (True, False)
            ]
            cells = " | ".join(f"{one.text} | {one.spread:.2g}" for one in told)
            print(f"| {topology} | {name} | {cells} |", flush=True)
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
