"""Real nodes: versions behind one name, with replicas at peers, under requests that none of it may fail."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from celluler.client import Client
from celluler.home import read_node_file
from celluler.inference.deployments import Arm, Deployment, arm_of
from celluler.views import Deployment as View
from simulations.digits import MLP
from simulations.swarm import NodeProcess, Swarm, open_swarm
from tests.support.waiting import eventually

SESSIONS = [f"session-{n}" for n in range(120)]
ASKING = 3
IMAGE = [[0.5] * 64]


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    with open_swarm(tmp_path) as swarm:
        yield swarm


def begin(swarm: Swarm) -> tuple[NodeProcess, dict[str, NodeProcess]]:
    """A node that runs no model itself, and two that serve, each in a region."""
    for name, roles in (("alice", '["store"]'), ("bob", '["serve"]'), ("carol", '["serve"]')):
        (swarm.folder / name).mkdir()
        text = f'roles = {roles}\n[network]\nregion = "{name}"\n[worker]\nthreads = 1\nspares = 0\n'
        (swarm.folder / name / "config.toml").write_text(text)
    alice = swarm.start("alice")
    for name in ("bob", "carol"):
        swarm.launch(name, join=[alice.address])
    nodes = {node.peer_id: node for node in map(swarm.await_ready, swarm.nodes[1:])}
    with Client(home=alice.home) as client:
        eventually(lambda: len(client.peers.ls()) == 3)
    return alice, nodes


class Asking:
    """Requests for the deployment that go on until it is over. failed: answers that were none."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self.heard: Counter[tuple[str, str]] = Counter()
        self.failed: list[str] = []
        self._over = threading.Event()

    def ask(self, session: str) -> dict[str, Any]:
        body = {"model": "deploy:digits", "inputs": IMAGE}
        answer = self._http.post("/api/v1/predict", json=body, headers={"X-Celluler-Session": session})
        if answer.status_code != 200:
            self.failed.append(answer.text)
            return {}
        told: dict[str, Any] = answer.json()
        self.heard[told["arm"], told["cid"]] += 1
        return told

    def go_on(self, place: int) -> None:
        while not self._over.is_set():
            self.ask(SESSIONS[place])

    def __enter__(self) -> Asking:
        self._threads = ThreadPoolExecutor(ASKING)
        self._all = [self._threads.submit(self.go_on, place) for place in range(ASKING)]
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._threads.shutdown()
        for one in self._all:
            one.result()


def ready(one: View) -> dict[str, set[str]]:
    return {arm.name: {replica.peer for replica in arm.replicas if replica.ready} for arm in one.arms}


def test_a_canary_is_promoted_and_a_killed_replica_replaced_without_a_failed_request(swarm: Swarm) -> None:
    alice, serving = begin(swarm)
    with Client(home=alice.home) as client:
        node = read_node_file(alice.home)
        headers = {"Authorization": f"Bearer {node.token}"}
        first, second = (
            client.models.add(f"alice/digits:{version}.0.0", MLP, seed=version, labels=[str(n) for n in range(10)])
            for version in (1, 2)
        )
        client.deployments.create("digits", "alice/digits:1.0.0", compare="20%")
        client.deployments.update("digits", "alice/digits:2.0.0", canary="25%")
        eventually(lambda: all(ready(client.deployments.show("digits")).values()))
        told = client.deployments.show("digits")
        pure = Deployment("digits", tuple(Arm(a.name, a.model, a.cid, round(a.share * 10_000)) for a in told.arms))

        with httpx.Client(base_url=node.api, headers=headers, timeout=60) as http:
            asking = Asking(http)
            for session in SESSIONS:
                answer = asking.ask(session)
                expected = arm_of(pure, f"said:{session}")
                assert (answer["arm"], answer["cid"]) == (expected.name, expected.cid)
                assert answer["peer"] in serving
            canaries = sum(count for (arm, _), count in asking.heard.items() if arm == "canary")
            assert 15 <= canaries <= 45  # of 120, a quarter: within three deviations

            with asking:
                promoted = client.deployments.promote("digits")
                assert [arm.cid for arm in promoted.arms] == [second.cid]
                (at,) = eventually(lambda: ready(client.deployments.show("digits"))["stable"])
                before = asking.heard["stable", second.cid]
                eventually(lambda: asking.heard["stable", second.cid] > before + 5)
                serving[at].kill()
                eventually(lambda: ready(client.deployments.show("digits"))["stable"] == {*serving} - {at})
                before = asking.heard["stable", second.cid]
                eventually(lambda: asking.heard["stable", second.cid] > before + 5)
            assert not asking.failed

        report = client.deployments.show("digits").arms[0].report
        assert report.requests > len(SESSIONS) // 8
        assert not report.errors
        assert report.p50_ms is not None
        assert report.compared > 0
        assert first.cid not in {arm.cid for arm in client.deployments.show("digits").arms}
        assert client.deployments.rollback("digits").arms[0].cid == first.cid
