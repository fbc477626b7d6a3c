"""Members that come late, go away and come back, among real node processes; checkpoints, and a job taken up again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from celluler.client import Client
from simulations.digits import Digits, write_digits
from simulations.learners import TRAIN_S, start_nodes, submit
from simulations.swarm import Swarm, open_swarm
from tests.support.training import await_round
from tests.support.waiting import eventually


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    with open_swarm(tmp_path / "swarm") as swarm:
        yield swarm


@pytest.fixture
def digits(tmp_path: Path) -> Digits:
    return write_digits(tmp_path)


@pytest.mark.large  # sixty rounds, so that there is something to come late to
def test_one_comes_late_another_is_killed_and_comes_back_and_all_end_with_the_same_model(
    swarm: Swarm, digits: Digits
) -> None:
    nodes = start_nodes(swarm, 4)
    with Client(home=nodes[0].home) as alice:
        job = submit(alice, digits, 4, at_most=6, rounds=60)
        await_round(job, 2)
        late = swarm.start("erin", join=[nodes[0].address])
        nodes[3].kill()
        back = swarm.start("dave", join=[nodes[0].address])
        told = job.wait(TRAIN_S)
        assert told.state == "Succeeded", told.reason
        assert late.peer_id in told.members
        weights = {job.results().weights}
        credited = job.rounds()[-1].credits
    for node in (nodes[1], nodes[2], late, back):
        with Client(home=node.home) as client:
            eventually(lambda: any(one.id == job.id for one in client.jobs.ls()), within_s=30)
            own = client.jobs.get(job.id).wait(TRAIN_S)
            assert own.state == "Succeeded", own.reason
            weights.add(client.jobs.get(job.id).results().weights)
    assert len(weights) == 1
    assert credited[late.peer_id] > 0
