"""Real nodes that serve one model: who asks through a gateway hears the same when the node that answers is killed."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from celluler.client import Client
from celluler.models.templates import fill
from celluler.views import Generation
from simulations.swarm import NodeProcess, Swarm, open_swarm
from tests.support.waiting import eventually

LENGTH = 512
WRITER = fill(
    "transformer-lm",
    [
        f"input.shape=[{LENGTH}]",
        "layers[0].vocabulary=256",
        "layers[1].times=4",
        "layers[3].width=256",
        "objective.vocabulary=256",
    ],
)
BYTES: dict[str, Any] = {
    "transforms": 1,
    "input": {"name": "text", "dtype": "text", "shape": [LENGTH]},
    "steps": [{"kind": "byte_tokens", "length": LENGTH}],
}
MODEL = "server-0/writer"
PROMPT = "Once upon a time"
TOKENS = 300
BEFORE = 10
"""Tokens that a client has heard when whoever answers it is killed."""

Heard = tuple[str, tuple[str, ...], tuple[float, ...]]
"""Text, the text of each token, and each one's logarithm of probability, rounded."""


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    with open_swarm(tmp_path) as swarm:
        yield swarm


def begin(swarm: Swarm, servers: int) -> tuple[NodeProcess, list[NodeProcess]]:
    """A gateway that runs no model, and nodes that serve one which each of them has."""
    for name in ("gateway", *(f"server-{n}" for n in range(servers))):
        (swarm.folder / name).mkdir()
        roles = '["store"]' if name == "gateway" else '["serve", "store"]'
        (swarm.folder / name / "config.toml").write_text(f"roles = {roles}\n[worker]\nthreads = 1\n")
    nodes = [swarm.start("server-0")]
    gateway = swarm.launch("gateway", join=[nodes[0].address])
    nodes += [swarm.launch(f"server-{n}", join=[nodes[0].address]) for n in range(1, servers)]
    for node in (gateway, *nodes[1:]):
        swarm.await_ready(node)
    with Client(home=nodes[0].home) as client:
        client.models.add(f"{MODEL}:1.0.0", WRITER, seed=3, preprocess=BYTES)
    for node in (*nodes[1:], gateway):
        with Client(home=node.home) as client:
            eventually(partial(_sees, client, servers + 1))
            if node is not gateway:
                client.models.pull(MODEL)
    with ThreadPoolExecutor(servers) as pool:
        assert len(set(pool.map(load, nodes))) == 1
    return gateway, nodes


def _sees(client: Client, count: int) -> bool:
    return len(client.peers.ls()) == count


def load(node: NodeProcess) -> str:
    """Have a node load the model, and write with it."""
    with Client(home=node.home) as client:
        return client.generate(MODEL, PROMPT, max_tokens=8, temperature=0).text


class Asking:
    """Clients that stream through the gateway, each in a thread. peer: who answers the first that has heard so much."""

    def __init__(self, gateway: NodeProcess, count: int) -> None:
        self._gateway, self._count = gateway, count
        self._heard = threading.Event()
        self.peer = ""

    def start(self, pool: ThreadPoolExecutor) -> list[Future[Heard]]:
        return [pool.submit(self._ask) for _ in range(self._count)]

    def wait(self) -> str:
        assert self._heard.wait(90.0)
        return self.peer

    def _ask(self) -> Heard:
        with (
            Client(home=self._gateway.home) as client,
            client.generate(MODEL, PROMPT, max_tokens=TOKENS, temperature=0, logprobs=0, stream=True) as pieces,
        ):
            for heard, _ in enumerate(pieces):
                if heard == BEFORE and not self._heard.is_set():
                    self.peer = pieces.generation.peer
                    self._heard.set()
            return heard_of(pieces.generation)


def heard_of(told: Generation) -> Heard:
    [answer] = told.answers
    assert answer.reason == "length"
    assert told.generated_tokens == TOKENS
    tokens = answer.tokens
    return answer.text, tuple(one.text for one in tokens), tuple(round(one.logprob, 3) for one in tokens)


def undisturbed(gateway: NodeProcess) -> Heard:
    with Client(home=gateway.home) as client:
        return heard_of(client.generate(MODEL, PROMPT, max_tokens=TOKENS, temperature=0, logprobs=0))


def test_servers_and_workers_killed_in_the_middle_of_answers_are_not_noticed(swarm: Swarm) -> None:
    gateway, nodes = begin(swarm, 3)
    by_id = {node.peer_id: node for node in nodes}
    expected = undisturbed(gateway)
    with ThreadPoolExecutor(4) as pool:
        for end in (kill_workers, NodeProcess.kill):
            asking = Asking(gateway, 4)
            answers = asking.start(pool)
            end(by_id[asking.wait()])
            assert [answer.result(90.0) for answer in answers] == [expected] * 4
            assert "server_failed" in gateway.log()


def kill_workers(node: NodeProcess) -> None:
    for child in psutil.Process(node.process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            child.send_signal(signal.SIGKILL)
