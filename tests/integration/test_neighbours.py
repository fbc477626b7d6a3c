"""Training without certificates among real node processes: four on a ring."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from celluler.client import Client
from celluler_node.training import member
from simulations.digits import Digits, write_digits
from simulations.swarm import Swarm, open_swarm
from tests.support.training import TRAIN_S, await_round, start_nodes, submit

GOSSIP = {"consensus": "gossip", "topology": "ring", "rounds": 8, "inner_steps": 20, "learning_rate": 0.3}


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    with open_swarm(tmp_path / "swarm") as swarm:
        yield swarm


@pytest.fixture
def digits(tmp_path: Path) -> Digits:
    return write_digits(tmp_path)


@pytest.mark.skipif(not hasattr(member, "run_neighbours"), reason="members do not train with neighbours alone yet")
def test_four_on_a_ring_learn_without_certificates_although_one_dies(swarm: Swarm, digits: Digits) -> None:
    nodes = start_nodes(swarm, 4)
    with Client(home=nodes[0].home) as alice, Client(home=nodes[1].home) as bob:
        job = submit(alice, digits, 4, **GOSSIP)
        await_round(job, 3)
        nodes[3].kill()
        ended = job.wait(TRAIN_S)
        assert ended.state == "Succeeded", ended.reason
        assert "its publisher's own model" in ended.reason
        assert ended.metrics["round"] == 8
        assert 0 < ended.metrics["distance"] < 0.5
        result = job.results()
        told = bob.jobs.get(job.id)
        assert told.wait(TRAIN_S).state == "Succeeded"
        assert told.results().weights == result.weights
        answer = alice.predict(result.model, digits.x)
        assert digits.accuracy(answer.outputs.numpy()) >= 0.85
