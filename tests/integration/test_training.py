"""Training among real node processes: with a liar, with a death in mid-round, with a worker that crashes, cancelled."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from celluler.client import Client, Job
from simulations.digits import MLP, Digits, write_digits
from simulations.swarm import NodeProcess, Swarm, open_swarm
from tests.support.waiting import eventually

TRAIN_S = 120.0
LIES = ("-m", "simulations.attacks.node", "--attack", "scale:-1000")
NAMES = ("alice", "bob", "carol", "dave", "erin")


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    with open_swarm(tmp_path / "swarm") as swarm:
        yield swarm


@pytest.fixture
def digits(tmp_path: Path) -> Digits:
    return write_digits(tmp_path)


def start_nodes(swarm: Swarm, count: int, *, liar: int | None = None) -> list[NodeProcess]:
    """The first alone, the others side by side. liar: place of the one that lies."""
    first = swarm.start(NAMES[0])
    for place, name in enumerate(NAMES[1:count], 1):
        if place == liar:
            swarm.launch(name, join=[first.address], program=LIES)
        else:
            swarm.launch(name, join=[first.address])
    for node in swarm.nodes[1:]:
        swarm.await_ready(node)
    return swarm.nodes


def submit(client: Client, digits: Digits, members: int, **train: Any) -> Job:
    """A job of all nodes, handed in at the client's own."""
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
            "resources": {"peers": {"min": members, "max": members}},
            "policy": {"deadline": "5m"},
        }
    )


def transcript_in(reason: str) -> str:
    """The CID of a member's transcript, from what it says of its end."""
    return reason.rpartition("transcript ")[2]


def await_round(job: Job, number: int) -> None:
    for line in job.logs(follow=True):
        if line.metrics.get("round", 0) >= number:
            return
    pytest.fail(f"the job ended before round {number}: {job.refresh().reason}")


def test_five_members_learn_although_one_of_them_lies(swarm: Swarm, digits: Digits) -> None:
    nodes = start_nodes(swarm, 5, liar=3)
    with Client(home=nodes[0].home) as alice:
        job = submit(alice, digits, 5)
        ended = job.wait(TRAIN_S)
        assert ended.state == "Succeeded", ended.reason
        assert {one.peer for one in ended.excluded} == {nodes[3].peer_id}
        assert "no weight" in ended.excluded[0].reason
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
