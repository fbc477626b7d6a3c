"""What is left when nodes die for good: copies are made anew, names outlive their authors, one alone still knows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from celluler.client import Client
from celluler.errors import NotFound, Unavailable
from celluler.views import Model
from simulations.digits import MLP
from simulations.swarm import NodeProcess, Swarm, open_swarm
from tests.support.waiting import eventually

T = TypeVar("T")
HASTY = ("-m", "tests.support.hasty_node")
WAIT_S = 45.0
ALONE_S = 20.0
"""The most that a node may take for an answer that it must give by itself; it needs a tenth of a second, and a few
seconds to begin to predict."""


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    with open_swarm(tmp_path) as swarm:
        yield swarm


def start(swarm: Swarm, names: Sequence[str]) -> list[NodeProcess]:
    """Nodes that all know each other."""
    first = swarm.start(names[0], program=HASTY)
    for name in names[1:]:
        swarm.launch(name, join=[first.address], program=HASTY)
    for node in swarm.nodes[1:]:
        swarm.await_ready(node)
    for node in swarm.nodes:
        with Client(home=node.home) as client:
            eventually(lambda client=client: len(client.peers.ls()) == len(names))
    return swarm.nodes


def holders(nodes: Sequence[NodeProcess], model: Model) -> list[NodeProcess]:
    found = []
    for node in nodes:
        with Client(home=node.home) as client:
            try:
                if client.blobs.stat(model.weights).complete:
                    found.append(node)
            except NotFound:
                continue
    return found


def test_copies_are_made_and_made_anew_and_the_name_outlives_its_author(swarm: Swarm, tmp_path: Path) -> None:
    (tmp_path / "template").write_text("{{ messages }}")
    files = {"chat-template": tmp_path / "template"}
    living = start(swarm, ["alice", "bob", "carol", "dora", "emil"])
    alice = living[0]
    with Client(home=alice.home) as client:
        model = client.models.add("alice/kept:1.0.0", MLP, copies=3, aliases=["stable"], card="# Kept", files=files)
    held = eventually(lambda: len(found := holders(living, model)) >= 3 and found, within_s=WAIT_S)
    assert alice in held
    for dead in (alice, held[-1]):
        dead.kill()
        living.remove(dead)
    eventually(lambda: len(holders(living, model)) == 3, within_s=WAIT_S)
    for node in living:
        with Client(home=node.home) as client:
            assert client.models.show(f"{alice.peer_id}/kept@stable").cid == model.cid
            assert [one.version for one in client.models.versions("alice/kept").versions] == ["1.0.0"]
            assert client.models.pull("alice/kept").local
            assert client.blobs.stat(model.files["chat-template"]).complete
    with Client(home=living[-1].home) as client:
        answer = client.predict("alice/kept:1.0.0", np.zeros((1, 64), dtype=np.float32))
        assert answer.cid == model.cid


def alone(call: Callable[[], T]) -> T:
    began = time.monotonic()
    answer = call()
    assert time.monotonic() - began < ALONE_S
    return answer


def test_a_node_with_nobody_left_lists_searches_and_shows_what_it_knew(swarm: Swarm) -> None:
    alice, bob, carol = start(swarm, ["alice", "bob", "carol"])
    with Client(home=alice.home) as client:
        pulled = client.models.add("alice/pulled:1.0.0", MLP, copies=1, description="a deep well")
        told = client.models.add("alice/told:1.0.0", MLP, seed=1, copies=1, description="a shallow brook")
        client.models.add("alice/told:1.1.0", MLP, seed=2, copies=1, description="a wide brook")
    with Client(home=carol.home) as client:
        client.models.pull("alice/pulled")
        eventually(lambda: len([one for one in client.models.ls() if one.task]) == 3)
    alice.kill()
    bob.kill()
    assert_knows(carol, pulled, told)
    carol.kill()
    assert_knows(swarm.start("carol", program=HASTY), pulled, told)


def assert_knows(carol: NodeProcess, pulled: Model, told: Model) -> None:
    with Client(home=carol.home) as client:
        listed = alone(client.models.ls)
        assert {(one.name, one.version, one.local) for one in listed} == {
            ("pulled", "1.0.0", True),
            ("told", "1.0.0", False),
            ("told", "1.1.0", False),
        }
        assert [one.version for one in alone(lambda: client.models.search("shallow brook"))] == ["1.0.0"]
        assert alone(lambda: client.models.show("alice/pulled")).cid == pulled.cid
        assert alone(lambda: client.models.show("alice/told")).version == "1.1.0"
        assert alone(lambda: client.models.show("alice/told:1.0.0")).cid == told.cid
        assert alone(lambda: client.models.show(told.cid)).description == "a shallow brook"
        assert alone(lambda: client.predict("alice/pulled", np.zeros((1, 64), dtype=np.float32))).cid == pulled.cid
        for unknown in ("alice/told:3.0.0", "alice/nothing"):
            with pytest.raises(Unavailable):
                alone(lambda unknown=unknown: client.models.show(unknown))
        with pytest.raises(Unavailable):
            alone(lambda: client.models.pull("alice/told"))
