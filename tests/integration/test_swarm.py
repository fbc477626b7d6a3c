"""Real node processes: joining, content and models among them, loss of a peer, restart."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from celluler.client import Client
from celluler.errors import NotFound
from simulations.digits import MLP
from simulations.swarm import CommandFailed, Swarm, celluler, open_swarm
from tests.support.waiting import eventually

WAIT_S = 30.0


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """Three nodes that tests may use but not end."""
    with open_swarm(tmp_path_factory.mktemp("swarm")) as swarm:
        alice = swarm.start("alice")
        for name in ("bob", "carol"):
            swarm.launch(name, join=[alice.address])
        for node in swarm.nodes[1:]:
            swarm.await_ready(node)
        yield swarm


@pytest.fixture
def own_swarm(tmp_path: Path) -> Iterator[Swarm]:
    """A swarm of this test's own, to end nodes in."""
    with open_swarm(tmp_path) as swarm:
        yield swarm


def test_every_node_sees_every_other(swarm: Swarm) -> None:
    names = {node.name for node in swarm.nodes}
    for node in swarm.nodes:
        with Client(home=node.home) as client:
            eventually(lambda client=client: {peer.nickname for peer in client.peers.ls()} == names)


def test_a_blob_added_at_one_node_is_read_at_another(swarm: Swarm, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(3_000_000))
    with Client(home=swarm.nodes[0].home) as alice, Client(home=swarm.nodes[1].home) as bob:
        blob = alice.blobs.add(source)
        assert bob.blobs.get(blob.cid, target) == 3_000_000
        assert target.read_bytes() == source.read_bytes()
        assert bob.blobs.stat(blob.cid).complete


def test_a_model_is_resolved_by_name_and_predicts_at_another_node(swarm: Swarm) -> None:
    with Client(home=swarm.nodes[0].home) as alice, Client(home=swarm.nodes[1].home) as bob:
        published = alice.models.add("alice/mlp:1.2.0", MLP)
        assert bob.models.pull("alice/mlp").cid == published.cid
        prediction = bob.predict("alice/mlp:1.2.0", np.zeros((2, 64), dtype=np.float32))
        assert prediction.outputs.shape == (2, 10)
        assert prediction.cid == published.cid


def test_a_peer_client_predicts_without_a_node(swarm: Swarm, tmp_path: Path) -> None:
    with Client(home=swarm.nodes[0].home) as alice:
        alice.models.add("alice/for-clients:1.0.0", MLP)
    inputs = tmp_path / "x.npy"
    np.save(inputs, np.zeros((1, 64), dtype=np.float32))
    answer = celluler(
        "run", "alice/for-clients", str(inputs), "--join", swarm.nodes[2].address, home=tmp_path / "client"
    )
    assert np.asarray(answer["outputs"]).shape == (1, 10)
    assert answer["peer"] in {node.peer_id for node in swarm.nodes}


def test_an_input_of_another_shape_is_refused_by_name(swarm: Swarm) -> None:
    with Client(home=swarm.nodes[0].home) as alice:
        alice.models.add("alice/shape:1.0.0", MLP)
        with pytest.raises(Exception, match="shape"):
            alice.predict("alice/shape", np.zeros((2, 63), dtype=np.float32))


def test_what_nobody_has_is_not_found(swarm: Swarm) -> None:
    with Client(home=swarm.nodes[0].home) as alice, pytest.raises(NotFound):
        alice.models.show("alice/nothing-of-that-name")


def test_a_version_once_published_does_not_change(swarm: Swarm) -> None:
    with Client(home=swarm.nodes[0].home) as alice:
        alice.models.add("alice/fixed:1.0.0", MLP, seed=1)
        with pytest.raises(Exception, match="published already"):
            alice.models.add("alice/fixed:1.0.0", MLP, seed=2)


def test_health_and_metrics_answer_without_a_token(swarm: Swarm) -> None:
    import httpx  # noqa: PLC0415

    api = swarm.nodes[0].ready["api"]
    assert httpx.get(f"{api}/healthz").status_code == 200
    assert httpx.get(f"{api}/readyz").status_code == 200
    assert "celluler_" in httpx.get(f"{api}/metrics").text
    assert httpx.get(f"{api}/api/v1/status").status_code == 401


def test_doctor_finds_nothing_wrong(swarm: Swarm) -> None:
    checks = swarm.nodes[0].call("doctor")["checks"]
    assert all(check["ok"] for check in checks), checks


def test_a_worker_that_is_killed_is_replaced_by_the_next_request(swarm: Swarm) -> None:
    import psutil  # noqa: PLC0415

    node = swarm.nodes[2]
    with Client(home=node.home) as client:
        client.models.add("carol/crash:1.0.0", MLP)
        x = np.zeros((1, 64), dtype=np.float32)
        before = client.predict("carol/crash", x)
        workers = [child for child in psutil.Process(node.process.pid).children() if child.is_running()]
        assert workers
        for worker in workers:
            worker.send_signal(signal.SIGKILL)
        psutil.wait_procs(workers, timeout=WAIT_S)
        after = eventually(lambda: _try(lambda: client.predict("carol/crash", x)))
        assert after.outputs == before.outputs
        assert client.status().peer_id == node.peer_id


def test_a_name_resolves_through_the_dht_after_its_publisher_was_killed(own_swarm: Swarm) -> None:
    alice = own_swarm.start("alice")
    bob = own_swarm.start("bob", join=[alice.address])
    carol = own_swarm.start("carol", join=[alice.address])
    with Client(home=alice.home) as client:
        published = client.models.add("alice/survivor:1.0.0", MLP)
    with Client(home=bob.home) as client:
        client.models.pull("alice/survivor")
    alice.kill()
    with Client(home=carol.home) as client:
        assert client.models.pull("alice/survivor:1.0.0").cid == published.cid
        assert client.models.show(f"{alice.peer_id}/survivor").cid == published.cid


def test_a_restarted_node_comes_back_as_itself_without_the_bootstrap_peer(own_swarm: Swarm) -> None:
    alice = own_swarm.start("alice")
    bob = own_swarm.start("bob", join=[alice.address])
    carol = own_swarm.start("carol", join=[alice.address])
    with Client(home=bob.home) as client:
        published = client.models.add("bob/kept:1.0.0", MLP)
        eventually(lambda: {peer.nickname for peer in client.peers.ls()} == {"alice", "bob", "carol"})
        eventually(lambda: carol.peer_id in (bob.home / "state.json").read_text(), within_s=60)
    bob.kill()
    alice.kill()
    again = own_swarm.start("bob")
    assert again.peer_id == bob.peer_id
    with Client(home=again.home) as client:
        eventually(lambda: any(peer.nickname == "carol" for peer in client.peers.ls()))
        assert client.models.show("bob/kept").local
    with Client(home=carol.home) as client:
        assert client.models.pull("bob/kept").cid == published.cid


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_node_with_all_its_processes(own_swarm: Swarm, number: signal.Signals) -> None:
    import psutil  # noqa: PLC0415

    node = own_swarm.start("alice")
    with Client(home=node.home) as client:
        client.models.add("alice/m:1.0.0", MLP)
        client.predict("alice/m", np.zeros((1, 64), dtype=np.float32))
    children = psutil.Process(node.process.pid).children(recursive=True)
    assert children
    node.process.send_signal(number)
    assert node.process.wait(WAIT_S) == 0
    _, alive = psutil.wait_procs(children, timeout=WAIT_S)
    assert not alive
    assert not (node.home / "node.json").exists()
    assert not (node.home / "scratch").exists()


def test_a_second_node_in_the_same_home_is_refused(own_swarm: Swarm) -> None:
    node = own_swarm.start("alice")
    second = own_swarm.launch("alice")
    assert second.process.wait(WAIT_S) == 2
    assert "runs here already" in second.log()
    assert node.process.poll() is None


def test_down_ends_the_node_and_then_none_is_running(own_swarm: Swarm) -> None:
    node = own_swarm.start("alice")
    node.call("down")
    assert node.process.wait(WAIT_S) == 0
    with pytest.raises(CommandFailed) as failed:
        node.call("status")
    assert failed.value.code == 3


def test_joining_where_nobody_is_fails_in_bounded_time_with_its_exit_code(tmp_path: Path) -> None:
    nobody = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWR8arJX65dUJj4HyW22r8f2QxXLWu2wv4RWLjd3meSLjS"
    with pytest.raises(CommandFailed) as failed:
        celluler("peer", "ls", "--join", nobody, home=tmp_path / "client", timeout_s=WAIT_S)
    assert failed.value.code == 6


def _try(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception:
        return None
