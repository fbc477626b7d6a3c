"""Training without certificates in real processes: models from averager to averager, and four nodes on a ring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trio

from celluler.aggregation.digests import part_hash
from celluler.aggregation.q16 import encode_parts, part_slices
from celluler.client import Client
from celluler.errors import WorkerFailed
from celluler_node.processes.averager_words import Inputs, Offer
from simulations.digits import Digits, write_digits
from simulations.learners import TRAIN_S, start_nodes, submit
from simulations.swarm import Swarm, open_swarm
from tests.support.averagers import RUN, open_peers
from tests.support.training import await_round

PARTS = 3
GOSSIP = {"consensus": "gossip", "topology": "ring", "rounds": 8, "inner_steps": 20, "learning_rate": 0.3}


async def test_an_averager_serves_what_it_was_handed_and_nothing_else_counts(tmp_path: Path) -> None:
    async with open_peers(2, tmp_path) as (alice, bob):
        update = np.arange(1000, dtype=np.float32)
        exponents, mantissas = encode_parts(update, PARTS)
        hashes = tuple(
            part_hash(RUN, 4, alice.author.public_key, part=part, exponent=exponents[part], mantissas=mantissas[piece])
            for part, piece in enumerate(part_slices(1000, PARTS))
        )
        with trio.fail_after(30):
            await alice.child.call(Offer(RUN, 4, PARTS), mantissas.tobytes())
            asked = Inputs(RUN, 4, alice.member(hashes, exponents), 1000, tuple(range(PARTS)))
            assert bytes((await bob.child.call(asked)).blobs[0]) == mantissas.tobytes()
            false = replace(asked, member=alice.member((bytes(32), *hashes[1:]), exponents))
            with pytest.raises(WorkerFailed, match="another part 0"):
                await bob.child.call(false)
            with pytest.raises(WorkerFailed, match="does not serve"):
                await bob.child.call(replace(asked, round=5))


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    with open_swarm(tmp_path / "swarm") as swarm:
        yield swarm


@pytest.fixture
def digits(tmp_path: Path) -> Digits:
    return write_digits(tmp_path)


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
