"""Large content between real nodes: killed at either end, shared, limited, and in spite of a bulk process that dies."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from celluler.client import Client
from celluler.errors import CellulerError, Unavailable
from celluler.views import Transfer
from simulations.swarm import NodeProcess, Swarm, open_swarm
from tests.support.waiting import eventually

MIB = 1 << 20
WAIT_S = 30.0
RATE = 8 * MIB
TRANSFER = {"alice": "", "bob": 'down = "8MiB"', "carol": 'bulk = "off"', "dora": 'up = "8MiB"'}
"""The nodes, and what stands in the table of that name in the configuration of each."""


@dataclass
class World:
    """The nodes, those that were killed and started again among them, and a thread for each waiting client."""

    swarm: Swarm
    folder: Path
    nodes: dict[str, NodeProcess] = field(default_factory=dict)
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(8))
    contents: int = 0

    def __getitem__(self, name: str) -> NodeProcess:
        return self.nodes[name]

    def start(self) -> None:
        """Side by side, the first of them joined by the others."""
        for name, transfer in TRANSFER.items():
            home = self.swarm.folder / name
            home.mkdir(parents=True)
            (home / "config.toml").write_text(f"[transfer]\n{transfer}\n")
            first = next(iter(self.nodes.values()), None)
            self.nodes[name] = self.swarm.launch(name, join=[first.address] if first else ())
            if first is None:
                self.swarm.await_ready(self.nodes[name])
        for node in self.nodes.values():
            if not node.ready:
                self.swarm.await_ready(node)

    def again(self, name: str) -> NodeProcess:
        """A node that was killed, at the address it had; it finds the others by what it remembers and is told."""
        others = [node.address for node in self.nodes.values() if node.name != name]
        listen = self[name].address.partition("/p2p/")[0]
        self.nodes[name] = self.swarm.start(name, listen=listen, join=others)
        return self[name]

    def publish(self, node: NodeProcess, size: int) -> tuple[str, bytes]:
        """CID and bytes of a new content of the node's."""
        self.contents += 1
        data = random.Random(f"{self.contents} {size}").randbytes(size)
        source = self.folder / f"source{self.contents}"
        source.write_bytes(data)
        with Client(home=node.home) as client:
            return client.blobs.add(source).cid, data

    def get(self, node: NodeProcess, cid: str) -> Future[bytes]:
        """Fetch in a thread."""

        def run() -> bytes:
            target = self.folder / f"target-{random.getrandbits(64):x}"
            with Client(home=node.home) as client:
                client.blobs.get(cid, target)
            data = target.read_bytes()
            target.unlink()
            return data

        return self.threads.submit(run)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_swarm(tmp_path_factory.mktemp("swarm")) as swarm:
        world = World(swarm, tmp_path_factory.mktemp("files"))
        try:
            world.start()
            yield world
        finally:
            swarm.stop()  # so that no thread waits for an answer
            world.threads.shutdown()


def moving(node: NodeProcess, cid: str, kept: int = 1, *, by: str = "") -> Transfer:
    """Wait until so many bytes of a content have come to a node, while it is on its way. by: a transport in use."""

    def meant(one: Transfer) -> bool:
        used = {source.transport for source in one.sources}
        return one.cid == cid and one.kept_bytes >= kept and (not by or by in used)

    def look() -> Transfer | None:
        with Client(home=node.home) as client:
            return next(filter(meant, client.transfers()), None)

    found = eventually(look, within_s=WAIT_S)
    assert found is not None
    return found


def here(node: NodeProcess, cid: str) -> int:
    with Client(home=node.home) as client:
        return client.blobs.stat(cid).have_bytes


def received(node: NodeProcess, cid: str) -> dict[str, int]:
    """Bytes of a content since the node began, by who gave them."""
    with Client(home=node.home) as client:
        return {one.peer: one.received_bytes for one in client.blobs.stat(cid).received}


def bulk_process(node: NodeProcess) -> psutil.Process | None:
    for child in psutil.Process(node.process.pid).children():
        if child.cmdline()[-1:] == ["bulk"]:
            return child
    return None


# --- sharing and limits ----------------------------------------------------------------------------------------------


def test_two_who_get_the_same_content_at_one_node_share_a_transfer_that_can_be_watched(world: World) -> None:
    alice, bob = world["alice"], world["bob"]
    cid, data = world.publish(alice, 24 * MIB)
    first = world.get(bob, cid)
    moving(bob, cid)
    second = world.get(bob, cid)
    seen = moving(bob, cid, 4 * MIB, by="bulk")
    with Client(home=bob.home) as client:
        assert len(client.transfers()) == 1
    assert (seen.wanted_bytes, seen.cid) == (len(data), cid)
    assert [(source.peer, source.transport) for source in seen.sources] == [(alice.peer_id, "bulk")]
    assert seen.sources[0].received_bytes == seen.kept_bytes
    assert seen.rate_bytes_s > 0
    assert seen.eta_s is not None
    assert first.result(WAIT_S) == second.result(WAIT_S) == data
    assert received(bob, cid) == {alice.peer_id: len(data)}
    with Client(home=bob.home) as client:
        assert client.transfers() == ()
        assert client.peers.show("alice").received_bytes < 1.05 * len(data)


def given(source: NodeProcess, cid: str, *nodes: NodeProcess) -> int:
    """Bytes of a content that some nodes have from another."""
    return sum(received(node, cid).get(source.peer_id, 0) for node in nodes)


def test_a_limit_holds_for_what_goes_to_several_by_either_way(world: World) -> None:
    """Measured from where what an idle limit had saved up is spent. Both also give each other what they have. The lower
    bound allows for a machine that has other things to do."""
    alice, carol, dora = world["alice"], world["carol"], world["dora"]
    cid, data = world.publish(dora, 24 * MIB)
    fetches = [world.get(node, cid) for node in (alice, carol)]
    for node, way in ((alice, "bulk"), (carol, "stream")):
        assert any(source.peer == dora.peer_id for source in moving(node, cid, 4 * MIB, by=way).sources)
    before, began = given(dora, cid, alice, carol), time.monotonic()
    assert all(fetch.result(WAIT_S) == data for fetch in fetches)
    pace = (given(dora, cid, alice, carol) - before) / (time.monotonic() - began)
    assert 0.2 * RATE < pace < 1.1 * RATE


def test_a_limit_holds_for_what_comes_from_several(world: World) -> None:
    alice, bob, carol = world["alice"], world["bob"], world["carol"]
    cid, data = world.publish(alice, 32 * MIB)
    assert world.get(carol, cid).result(WAIT_S) == data
    fetch = world.get(bob, cid)
    before, began = moving(bob, cid, 6 * MIB).kept_bytes, time.monotonic()
    assert fetch.result(WAIT_S) == data
    assert 0.2 * RATE < (len(data) - before) / (time.monotonic() - began) < 1.1 * RATE
    assert received(bob, cid).keys() == {alice.peer_id, carol.peer_id}


def test_without_a_bulk_process_content_moves_over_libp2p(world: World) -> None:
    cid, data = world.publish(world["carol"], 8 * MIB)
    fetch = world.get(world["bob"], cid)
    assert {source.transport for source in moving(world["bob"], cid, 6 * MIB).sources} == {"stream"}
    assert fetch.result(WAIT_S) == data
    assert bulk_process(world["carol"]) is None


# --- death ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whose", ["alice", "bob"])
def test_a_bulk_process_killed_in_the_midst_is_replaced_and_the_fetch_completes(world: World, whose: str) -> None:
    alice, bob = world["alice"], world["bob"]
    cid, data = world.publish(alice, 16 * MIB)
    fetch = world.get(bob, cid)
    moving(bob, cid, by="bulk")
    killed = bulk_process(world[whose])
    assert killed is not None
    killed.kill()
    assert fetch.result(WAIT_S) == data
    assert received(bob, cid) == {alice.peer_id: len(data)}
    cid, data = world.publish(alice, 12 * MIB)
    fetch = world.get(bob, cid)
    moving(bob, cid, by="bulk")
    assert fetch.result(WAIT_S) == data
    assert bulk_process(world[whose]) not in (None, killed)


def test_a_node_killed_in_the_midst_of_a_fetch_goes_on_from_there(world: World) -> None:
    alice, bob = world["alice"], world["bob"]
    cid, data = world.publish(alice, 24 * MIB)
    lost = world.get(bob, cid)
    kept = moving(bob, cid, 8 * MIB).kept_bytes
    bob.kill()
    with pytest.raises(CellulerError):
        lost.result(WAIT_S)
    bob = world.again("bob")
    found = here(bob, cid)
    assert found >= kept
    assert world.get(bob, cid).result(WAIT_S) == data
    assert received(bob, cid) == {alice.peer_id: len(data) - found}


def test_when_its_source_is_killed_a_part_is_given_on_and_completed_once_the_source_is_back(world: World) -> None:
    alice, bob, carol = world["alice"], world["bob"], world["carol"]
    cid, data = world.publish(alice, 24 * MIB)
    lost = world.get(bob, cid)
    moving(bob, cid, 8 * MIB)
    alice.kill()
    with pytest.raises(Unavailable):
        lost.result(WAIT_S)
    part = here(bob, cid)
    assert 8 * MIB <= part < len(data)
    passed_on = world.get(carol, cid)
    seen = moving(carol, cid, part)
    assert [(source.peer, source.received_bytes) for source in seen.sources if source.received_bytes] == [
        (bob.peer_id, part)
    ]
    world.again("alice")
    assert world.get(bob, cid).result(WAIT_S) == data
    assert sum(received(bob, cid).values()) == len(data)
    assert passed_on.result(WAIT_S) == data
    assert sum(received(carol, cid).values()) == len(data)
