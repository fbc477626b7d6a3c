"""A swarm of real nodes that trains a small model on digits, some of them lying."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celluler.client import Client, Job
from simulations.digits import MLP, Digits
from simulations.swarm import SHIPPED, NodeProcess, Swarm

TRAIN_S = 120.0
NAMES = ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi")


def start_nodes(swarm: Swarm, count: int, attacks: Mapping[int, str] | None = None) -> list[NodeProcess]:
    """The first alone, the others side by side. attacks: those that lie, by their places, and how."""
    first = swarm.start(NAMES[0])
    for place, name in enumerate(NAMES[1:count], 1):
        attack = (attacks or {}).get(place)
        program = SHIPPED if attack is None else ("-m", "simulations.attacks.node", "--attack", attack)
        swarm.launch(name, join=[first.address], program=program)
    for node in swarm.nodes[1:]:
        swarm.await_ready(node)
    return swarm.nodes


def submit(client: Client, digits: Digits, members: int, *, at_most: int | None = None, **train: Any) -> Job:
    """A job of all nodes, handed in at the client's own. at_most: members, those that come late included."""
    model = client.models.add("alice/untrained:1.0.0", MLP)
    data = client.blobs.add(digits.train, kind="dataset")
    settings = {"rounds": 8, "inner_steps": 20, "batch": 32, "learning_rate": 0.2, "optimizer": "sgd"}
    return client.jobs.submit(
        {
            "apiVersion": "celluler/v1",
            "kind": "TrainJob",
            "name": "digits",
            "model": model.cid,
            "data": {"cid": data.cid},
            "train": {**settings, **train},
            "resources": {"peers": {"min": members, "max": at_most or members}},
            "policy": {"deadline": "5m"},
        }
    )
