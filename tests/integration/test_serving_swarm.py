"""Real nodes that serve one model: who asks through a gateway hears the same when the node that answers is killed."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from celluler.client import Client
from celluler.errors import Busy
from celluler.models.templates import fill
from celluler.views import Generation
from simulations.digits import MLP
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
TOKENS = 160
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
        (swarm.folder / name / "config.toml").write_text(f"roles = {roles}\n[worker]\nthreads = 1\nspares = 0\n")
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


# --- under load ------------------------------------------------------------------------------------------------------

CLIENTS, LOAD_S, KILL_EVERY_S, DEADLINE_S = 64, 60.0, 12.0, 60.0
SAMPLES = np.linspace(-1.0, 1.0, 4 * 64, dtype=np.float32).reshape(4, 64)


@dataclass(slots=True)
class Tally:
    """What clients met with. busy: refused for want of room."""

    texts: list[float] = field(default_factory=list)
    predictions: list[float] = field(default_factory=list)
    busy: int = 0
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


class UnderLoad:
    """Clients that ask without a pause, texts and predictions in turn, until they are told to stop."""

    def __init__(self, gateway: NodeProcess) -> None:
        self._home, self._over = gateway.home, threading.Event()
        with Client(home=self._home) as client:
            self._text, self._outputs = ask_text(client), ask_outputs(client)
        self.tally = Tally()

    def stop(self) -> None:
        self._over.set()

    def run(self, number: int) -> None:
        with Client(home=self._home) as client:
            turn = number
            while not self._over.is_set():
                turn += 1
                self._ask_once(client, texts=bool(turn % 2))

    def _ask_once(self, client: Client, *, texts: bool) -> None:
        began = time.monotonic()
        try:
            if texts:
                right, times = ask_text(client) == self._text, self.tally.texts
            else:
                right, times = np.allclose(ask_outputs(client), self._outputs, atol=1e-5), self.tally.predictions
            times.append(time.monotonic() - began)
            if not right:
                self.tally.wrong.append("a text" if texts else "a prediction")
        except Busy:
            self.tally.busy += 1
            time.sleep(0.2)
        except Exception as error:
            self.tally.failed.append(f"{time.monotonic() - began:.1f} s: {error!r}")


def ask_text(client: Client) -> str:
    return client.generate(MODEL, PROMPT, max_tokens=24, temperature=0, timeout_s=DEADLINE_S).text


def ask_outputs(client: Client) -> Any:
    return client.predict("server-0/digits", SAMPLES).outputs.numpy()


@pytest.mark.large
def test_servers_killed_under_load_cost_no_request(swarm: Swarm) -> None:
    gateway, nodes = begin(swarm, 4)
    with Client(home=nodes[0].home) as client:
        client.models.add("server-0/digits:1.0.0", MLP)
    for node in nodes:
        with Client(home=node.home) as client:
            client.models.pull("server-0/digits")
            client.predict("server-0/digits", SAMPLES)
    under, killed, began = UnderLoad(gateway), 0, time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        for number in range(CLIENTS):
            pool.submit(under.run, number)
        while time.monotonic() - began < LOAD_S:
            time.sleep(KILL_EVERY_S)
            place = killed % len(nodes)
            nodes[place].kill()
            nodes[place] = swarm.launch(nodes[place].name, join=[gateway.address])
            killed += 1
        under.stop()
    tally = under.tally
    for what, times in (("texts", tally.texts), ("predictions", tally.predictions)):
        ordered = sorted(times)
        figures = [f"{ordered[int(share * (len(ordered) - 1))]:.2f}" for share in (0.5, 0.95, 1.0)]
        print(f"{len(times)} {what}, p50/p95/most {'/'.join(figures)} s")
    print(
        f"{killed} nodes killed, {tally.busy} refused for want of room, {len(tally.failed)} failed: {tally.failed[:5]}"
    )
    assert killed >= 4
    assert min(len(tally.texts), len(tally.predictions)) > CLIENTS
    assert tally.failed == []
    assert tally.wrong == []
    assert max(*tally.texts, *tally.predictions) < DEADLINE_S
