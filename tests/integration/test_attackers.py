"""Real processes against the protocol: two members that lie in ways of their own, and one that dies in mid-round."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from celluler.client import Client
from simulations.digits import Digits, write_digits
from simulations.swarm import Swarm, open_swarm
from tests.support.training import TRAIN_S, await_round, start_nodes, submit

ATTACKS = {3: "wrong-reducer", 5: "equivocating-commit"}
KILLED = 2
MEMBERS = 7
ROUNDS = 8


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    with open_swarm(tmp_path / "swarm") as swarm:
        yield swarm
        processes = [psutil.Process(node.process.pid) for node in swarm.nodes if node.process.poll() is None]
        family = [each for one in processes for each in (one, *one.children(recursive=True))]
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive, "something outlived the swarm"


@pytest.fixture
def digits(tmp_path: Path) -> Digits:
    return write_digits(tmp_path)


@pytest.mark.large  # seven nodes want a machine of their own
def test_seven_members_learn_although_two_lie_and_one_dies(swarm: Swarm, digits: Digits) -> None:
    nodes = start_nodes(swarm, MEMBERS, ATTACKS)
    liars = {nodes[place].peer_id for place in ATTACKS}
    with Client(home=nodes[0].home) as alice:
        job = submit(alice, digits, MEMBERS, rounds=ROUNDS, inner_steps=40, audits_per_round=0)
        await_round(job, 3)
        assert liars <= {one.peer for one in job.refresh().excluded}, "proven by now, so that one death is borne"
        nodes[KILLED].kill()
        ended = job.wait(TRAIN_S)
        assert ended.state == "Succeeded", ended.reason
        assert ended.metrics["round"] == ROUNDS
        result = job.results()
        answer = alice.predict(result.model, digits.x)
        assert digits.accuracy(answer.outputs.numpy()) >= 0.93
    for place, node in enumerate(nodes):
        if place in (0, KILLED) or place in ATTACKS:
            continue
        with Client(home=node.home) as client:
            told = client.jobs.get(job.id)
            own = told.wait(TRAIN_S)
            assert own.state == "Succeeded", own.reason
            assert told.results().weights == result.weights
            proven = {one.peer for one in told.info.excluded if one.reason.startswith("excluded with proof")}
            assert proven == liars
