"""A real node: models loaded, batched, updated while they are asked, and let go of for others."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from celluler.client import Client
from celluler.errors import NotFound, Unavailable
from celluler.home import read_node_file
from celluler.views import LoadedModel
from simulations.digits import MLP
from simulations.swarm import NodeProcess, Swarm, open_swarm
from tests.support.waiting import eventually

ASKING = 4
IMAGE = [[0.5] * 64]
CONFIG = """
[worker]
threads = 1
spares = 0
[serve]
memory = "900MiB"
"""


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    with open_swarm(tmp_path) as swarm:
        yield swarm


def begin(swarm: Swarm) -> NodeProcess:
    (swarm.folder / "alice").mkdir()
    (swarm.folder / "alice" / "config.toml").write_text(CONFIG)
    return swarm.start("alice")


class Asking:
    """Requests by a name that go on until it is over. heard: versions in the order in which they answered."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self.heard: list[tuple[str, Any]] = []
        self.failed: list[str] = []
        self._over = threading.Event()

    def go_on(self) -> None:
        while not self._over.is_set():
            answer = self._http.post("/api/v1/predict", json={"model": "alice/digits", "inputs": IMAGE})
            if answer.status_code == 200:
                told = answer.json()
                self.heard.append((told["model"], told["outputs"]))
            else:
                self.failed.append(answer.text)

    def __enter__(self) -> Asking:
        self._threads = ThreadPoolExecutor(ASKING)
        self._all = [self._threads.submit(self.go_on) for _ in range(ASKING)]
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._threads.shutdown()
        for one in self._all:
            one.result()


def command(node: NodeProcess, *words: str) -> str:
    program = [sys.executable, "-m", "celluler_node.cli", "--home", str(node.home), *words]
    return subprocess.run(program, capture_output=True, text=True, check=True, timeout=30).stdout


def test_a_model_is_updated_under_load_and_others_make_room(swarm: Swarm) -> None:
    alice = begin(swarm)
    file = read_node_file(alice.home)
    with (
        Client(home=alice.home) as client,
        httpx.Client(base_url=file.api, headers={"Authorization": f"Bearer {file.token}"}, timeout=30) as http,
    ):

        def ready() -> dict[str, LoadedModel]:
            return {one.model: one for one in client.serving().models if one.state == "ready"}

        client.models.add("alice/digits:1.0.0", MLP)
        loaded = client.models.load("alice/digits")
        assert (loaded.state, loaded.device, loaded.dtype, loaded.names) == (
            "ready", "cpu", "float32", ("alice/digits",)
        )  # fmt: skip
        with Asking(http) as asking:
            eventually(lambda: len(asking.heard) > 50)
            client.models.add("alice/digits:1.1.0", MLP, seed=1)
            eventually(lambda: asking.heard[-1][0] == "alice/digits:1.1.0")
            eventually(lambda: list(ready()) == ["alice/digits:1.1.0"])
        assert not asking.failed
        versions = [version for version, _ in asking.heard]
        assert set(versions) == {"alice/digits:1.0.0", "alice/digits:1.1.0"}
        later = versions[versions.index("alice/digits:1.1.0") :]
        assert later.count("alice/digits:1.0.0") < ASKING, "only what was under way is answered by the old one"
        alone = client.predict("alice/digits", IMAGE).lists()
        for version, outputs in asking.heard:
            if version == "alice/digits:1.1.0":
                assert outputs == [pytest.approx(alone[0], abs=1e-5)]
        batches = client.serving().batches
        assert sum(batches.counts[1:]) > 0, "some were computed together"

        client.models.add("alice/two:1.0.0", MLP)
        client.models.add("alice/three:1.0.0", MLP)
        client.predict("alice/two", IMAGE)
        client.predict("alice/digits", IMAGE)
        client.predict("alice/three", IMAGE)
        assert "alice/two:1.0.0" not in ready()
        assert "alice/three:1.0.0" in ready()
        shown = json.loads(command(alice, "ps", "--json"))
        assert shown["memory_bytes"] <= shown["limit_bytes"] == 900 << 20
        assert json.loads(command(alice, "unload", "alice/three", "--json"))["models"]
        with pytest.raises(NotFound):
            client.models.unload("alice/three")
        status = client.status()
        assert (status.loaded, status.engine) == (1, "torch on cpu, 1 thread a model, weights as stored")
        text = http.get("/metrics").text
        assert 'celluler_models_loaded{state="ready"} 1.0' in text
        with pytest.raises((NotFound, Unavailable)):
            client.models.load("nobody/nothing:1.0.0")
