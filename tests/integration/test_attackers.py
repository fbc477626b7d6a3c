"""Real processes against a run: members that lie in the protocol, one that does not train, one that dies, one late."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from celluler.client import Client, Job
from celluler.learning.evidence_file import Kind, open_evidence_file
from celluler_node.cli.root import run
from simulations.digits import Digits, write_digits
from simulations.learners import NAMES, TRAIN_S, start_nodes, submit
from simulations.swarm import NodeProcess, Swarm, open_swarm
from tests.support.training import await_round
from tests.support.waiting import eventually

ACCURACY = 0.93


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


def await_expelled(job: Job, liars: set[str]) -> None:
    """Follow the rounds until certified bodies have expelled all of these, and nobody else."""
    expelled = set[str]()
    for line in job.logs(follow=True):
        expelled |= set(line.round.expelled) if line.round is not None else set()
        if expelled >= liars:
            break
    assert expelled == liars, job.refresh().reason


def assert_learned(client: Client, job: Job, digits: Digits) -> str:
    """The CID of the weights that came out."""
    ended = job.wait(TRAIN_S)
    assert ended.state == "Succeeded", ended.reason
    result = job.results()
    assert digits.accuracy(client.predict(result.model, digits.x).outputs.numpy()) >= ACCURACY
    return result.weights


def assert_agrees(node: NodeProcess, job: Job, weights: str, proofs: Mapping[str, Kind], folder: Path) -> None:
    """This member has the same model, and a file that convinces whoever was not there, of each liar and nobody else."""
    with Client(home=node.home) as client:
        eventually(lambda: any(one.id == job.id for one in client.jobs.ls()))
        told = client.jobs.get(job.id)
        own = told.wait(TRAIN_S)
        assert own.state == "Succeeded", own.reason
        assert told.results().weights == weights
        proven = {one.peer: one.reason for one in own.excluded if one.reason.startswith("excluded with proof")}
        assert proven.keys() == proofs.keys()
        for peer, kind in proofs.items():
            path = folder / f"{node.name}-{peer}"
            client.blobs.get(proven[peer].rpartition("evidence ")[2], path)
            case = open_evidence_file(path.read_bytes(), coordinator=job.info.coordinator)
            assert (case.peer, case.kind) == (peer, kind)


def assert_verifies(node: NodeProcess, job: Job, proofs: Mapping[str, Kind], monkeypatch: pytest.MonkeyPatch) -> None:
    """`celluler verify` confirms each proof by its CID alone, beside a node that has it."""
    monkeypatch.setenv("CELLULER_HOME", str(node.home))
    proven = {one.peer: one.reason for one in job.refresh().excluded}
    for peer in proofs:
        assert run(["verify", proven[peer].rpartition("evidence ")[2]]) == 0


@pytest.mark.large  # eight nodes want a machine of their own
def test_seven_learn_although_two_lie_in_the_protocol_one_dies_and_one_comes_late(
    swarm: Swarm, digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = start_nodes(swarm, 7, {3: "wrong-reducer", 5: "equivocating-commit"})
    proofs = {nodes[3].peer_id: Kind.FRAUD, nodes[5].peer_id: Kind.EQUIVOCATION}
    with Client(home=nodes[0].home) as alice:
        job = submit(alice, digits, 7, at_most=8, rounds=60, audits_per_round=0)
        await_round(job, 1)
        late = swarm.launch(NAMES[7], join=[nodes[0].address])
        await_expelled(job, set(proofs))
        nodes[2].kill()
        swarm.await_ready(late)
        weights = assert_learned(alice, job, digits)
        assert job.info.metrics["round"] == 60
        assert late.peer_id in job.info.members
        assert_verifies(nodes[0], job, proofs, monkeypatch)
    for place in (0, 1, 4, 6):
        assert_agrees(nodes[place], job, weights, proofs, tmp_path)
    assert_agrees(late, job, weights, {}, tmp_path)


@pytest.mark.large  # audits want idle time
def test_four_learn_and_expel_the_one_that_does_not_train(
    swarm: Swarm, digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = start_nodes(swarm, 4, {2: "cached"})
    proofs = {nodes[2].peer_id: Kind.AUDIT}
    with Client(home=nodes[0].home) as alice:
        job = submit(alice, digits, 4, rounds=10, inner_steps=40, audits_per_round=4)
        await_expelled(job, set(proofs))
        weights = assert_learned(alice, job, digits)
        assert_verifies(nodes[0], job, proofs, monkeypatch)
    for place in (0, 1, 3):
        assert_agrees(nodes[place], job, weights, proofs, tmp_path)
