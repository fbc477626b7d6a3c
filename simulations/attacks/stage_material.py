"""What a play on the stage is given: a roster, a small model, digits. Cached: nothing of it is what a play is about."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from blake3 import blake3

from celluler.engines.config import TrainConfig
from celluler.engines.data import Dataset
from celluler.engines.train import Trainer
from celluler.identity import Identity, seal
from celluler.learning.roster import RosterEntry, RosterView, open_roster, rules_for, seal_roster
from celluler.models.spec import Architecture, parse_spec
from celluler.models.weights import initial_vector
from simulations.federation import task_named

STEPS, BATCH, RATE = 8, 16, 0.3
RUN = blake3(b"the run of the stage").digest()
MODEL: dict[str, Any] = {
    "spec": 1,
    "input": {"dtype": "float32", "shape": [64]},
    "layers": [
        {"kind": "dense", "width": 16},
        {"kind": "activation", "function": "relu"},
        {"kind": "dense", "width": 10},
    ],
    "objective": {"kind": "classification", "classes": 10},
}


@cache
def architecture() -> Architecture:
    return parse_spec(MODEL)


@cache
def identity(name: str) -> Identity:
    return Identity(blake3(name.encode()).digest())


@cache
def roster_of(members: int, rounds: int, audits: int) -> tuple[RosterView, dict[str, Identity]]:
    """A roster, and who signs for whom. audits: in thousandths."""
    signers = [identity(f"member {number}") for number in range(members)]
    entries = [seal(signer, _entry(number)) for number, signer in enumerate(signers)]
    rules = rules_for(
        members, rounds=rounds, delta_ms=2_000, exchange_ms=4_000, train_ms=30_000, stall_ms=60_000, audits=audits
    )
    coordinator = identity("coordinator")
    raw = seal_roster(coordinator, run=RUN, job=RUN, entries=tuple(entries), rules=rules)
    return open_roster(raw, coordinator.peer_id), {signer.peer_id: signer for signer in signers}


def _entry(number: int) -> RosterEntry:
    return RosterEntry(RUN, identity(f"averager {number}").peer_id, (), f"peer-{number}", audit_class="stage")


def trainer_of(place: int, members: int, *, steps: int, flipped: bool) -> Trainer:
    """The shipped trainer of one member. flipped: on wrong labels."""
    torch.set_num_threads(1)  # as a worker does: the same bits at all members, and no waiting for threads
    x, y = task_named("digits").training
    if flipped:
        y = y.max() - y
    config = TrainConfig(
        run=RUN, index=place, members=members, inner_steps=steps, batch=BATCH, learning_rate=RATE, optimizer="sgd"
    )
    weights = initial_vector(architecture(), blake3(b"weights of the stage").digest())
    return Trainer(architecture(), weights, Dataset(torch.from_numpy(x), torch.from_numpy(y)), config)


def accuracy_of(trainer: Trainer) -> float:
    """Of the public state, on held-out images."""
    accuracy = trainer.evaluate(task_named("digits").judging).accuracy
    assert accuracy is not None, "digits are classified"
    return accuracy
