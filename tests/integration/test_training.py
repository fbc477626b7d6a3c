"""Training among real node processes: with a liar, with a death in mid-round, with a worker that crashes, cancelled."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from celluler.client import Client
from simulations.digits import Digits, write_digits
from simulations.learners import TRAIN_S, start_nodes, submit
from simulations.swarm import Swarm, open_swarm
from tests.support.training import await_round, transcript_in
from tests.support.waiting import eventually


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    with open_swarm(tmp_path / "swarm") as swarm:
        yield swarm


@pytest.fixture
def digits(tmp_path: Path) -> Digits:
    return write_digits(tmp_path)


def test_five_members_learn_although_one_of_them_lies(swarm: Swarm, digits: Digits) -> None:
    nodes = start_nodes(swarm, 5, {3: "scale:-1000"})
    with Client(home=nodes[0].home) as alice:
        job = submit(alice, digits, 5, checkpoint_every=2)
        ended = job.wait(TRAIN_S)
        assert ended.state == "Succeeded", ended.reason
        assert {one.peer for one in ended.excluded} == {nodes[3].peer_id}
        reason = ended.excluded[0].reason  # an audit may have come before the rule had said enough
        assert "no weight" in reason or "its steps do not give; evidence" in reason
        everybody = [one.norms for one in job.rounds() if len(one.norms) == 5]
        assert any(norms[nodes[3].peer_id] > 100 * norms[nodes[0].peer_id] for norms in everybody)
        checkpoints = alice.models.search("digits-checkpoint")
        assert len({one.author for one in checkpoints}) > 1
        result = job.results()
        answer = alice.predict(result.model, digits.x)
        assert digits.accuracy(answer.outputs.numpy()) >= 0.85
    transcripts = [transcript_in(ended.reason)]
    for node in (nodes[1], nodes[2], nodes[4]):
        with Client(home=node.home) as client:
            told = client.jobs.get(job.id)
            own = told.wait(TRAIN_S)
            assert own.state == "Succeeded"
            assert told.results().weights == result.weights
            transcripts.append(transcript_in(own.reason))
    verified = nodes[1].call("verify", *transcripts, "--model", result.model, "--rounds", "3", "--peers", "2")
    assert verified["ok"], verified
    reached = nodes[1].call("verify", checkpoints[0].cid, "--rounds", "1", "--peers", "1")
    assert reached["ok"], reached
    assert any(not one["problem"] for one in reached["transcripts"])
    by_name = nodes[1].call("verify", result.model, "--rounds", "2", "--peers", "1")
    assert by_name["ok"], by_name
    assert any(not one["problem"] for one in by_name["transcripts"])


def test_a_member_killed_in_mid_round_does_not_end_the_job(swarm: Swarm, digits: Digits) -> None:
    nodes = start_nodes(swarm, 5)
    with Client(home=nodes[0].home) as alice:
        job = submit(alice, digits, 5, rounds=6)
        await_round(job, 2)
        nodes[2].kill()
        ended = job.wait(TRAIN_S)
        assert ended.state == "Succeeded", ended.reason
        assert ended.metrics["round"] == 6


def test_the_coordinator_killed_in_mid_run_does_not_end_the_job(swarm: Swarm, digits: Digits) -> None:
    nodes = start_nodes(swarm, 5)
    with Client(home=nodes[0].home) as alice:
        job = submit(alice, digits, 5, rounds=6)
        await_round(job, 2)
        identity = job.id
    nodes[0].kill()
    with Client(home=nodes[1].home) as bob:
        ended = bob.jobs.get(identity).wait(TRAIN_S)
        assert ended.state == "Succeeded", ended.reason


def test_a_crashed_worker_fails_its_job_here_and_leaves_the_node_serving(swarm: Swarm, digits: Digits) -> None:
    (node,) = start_nodes(swarm, 1)
    with Client(home=node.home) as client:
        job = submit(client, digits, 1, rounds=500)
        await_round(job, 1)
        for child in psutil.Process(node.process.pid).children():
            if "worker" in child.name() or "celluler_node.processes" in " ".join(child.cmdline()):
                child.send_signal(signal.SIGKILL)
        ended = job.wait(TRAIN_S)
        assert ended.state == "Failed"
        assert "SIGKILL" in ended.reason
        x = np.zeros((1, 64), dtype=np.float32)
        assert client.predict("alice/untrained", x).outputs.shape == (1, 10)


def test_a_cancelled_job_ends_with_its_processes(swarm: Swarm, digits: Digits) -> None:
    (node,) = start_nodes(swarm, 1)
    with Client(home=node.home) as client:
        job = submit(client, digits, 1, rounds=1000)
        await_round(job, 1)
        children = psutil.Process(node.process.pid).children(recursive=True)
        assert children
        job.cancel()
        assert job.wait(TRAIN_S).state == "Cancelled"
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not alive
        assert client.status().peer_id == node.peer_id


def test_a_job_that_waits_says_why(swarm: Swarm, digits: Digits) -> None:
    (node,) = start_nodes(swarm, 1)
    with Client(home=node.home) as client:
        job = submit(client, digits, 3)
        waiting = eventually(lambda: "of 3 peers" in job.refresh().reason and job.info)
        assert waiting.state == "Queued"
        job.cancel()
