"""A model split over real nodes: the same tokens as unsplit, also when a node that has a stage is killed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from celluler.client import Client
from celluler.models.templates import fill
from celluler.views import Generation
from simulations.swarm import NodeProcess, Swarm, open_swarm
from tests.support.waiting import eventually

LENGTH, TOKENS = 256, 60
WRITER = fill(
    "transformer-lm",
    [
        f"input.shape=[{LENGTH}]",
        "layers[0].vocabulary=256",
        "layers[1].times=6",
        "layers[3].width=256",
        "objective.vocabulary=256",
    ],
)
BYTES: dict[str, Any] = {
    "transforms": 1,
    "input": {"name": "text", "dtype": "text", "shape": [LENGTH]},
    "steps": [{"kind": "byte_tokens", "length": LENGTH}],
}
MODEL = "alice/writer:1.0.0"
PROMPT = "Once upon a time there was"
_PART = re.compile(r"\('(\w{8})', (\d+), (\d+)\)")


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[NodeProcess]]:
    """alice asks, and has the model whole; with it three are enough for stages, and one is to spare."""
    with open_swarm(tmp_path) as swarm:
        alice = swarm.await_ready(_launch(swarm, "alice"))
        others = [_launch(swarm, name, alice) for name in ("bob", "carol", "dave")]
        for node in others:
            swarm.await_ready(node)
        with Client(home=alice.home) as client:
            client.models.add(MODEL, WRITER, seed=3, preprocess=BYTES)
            eventually(partial(_sees, client, len(others) + 1))
        yield [alice, *others]


def _launch(swarm: Swarm, name: str, first: NodeProcess | None = None) -> NodeProcess:
    (swarm.folder / name).mkdir()
    (swarm.folder / name / "config.toml").write_text('roles = ["serve", "store"]\n[worker]\nthreads = 1\n')
    return swarm.launch(name, join=() if first is None else [first.address])


def _sees(client: Client, count: int) -> bool:
    return len(client.peers.ls()) == count


def _line(alice: NodeProcess) -> list[tuple[str, int, int]]:
    """(end of the peer's id, blocks) of the last line of stages that was opened."""
    (*_, opened) = (line for line in alice.log().splitlines() if "line_opened" in line)
    return [(peer, int(first), int(until)) for peer, first, until in _PART.findall(opened)]


def _ask(alice: NodeProcess, **fields: Any) -> tuple[tuple[str, float], ...]:
    with Client(home=alice.home) as client:
        return _heard(client.generate(MODEL, PROMPT, max_tokens=TOKENS, temperature=0, logprobs=0, **fields))


def _heard(told: Generation) -> tuple[tuple[str, float], ...]:
    """Of each token its text, and its logarithm of probability, which says more where a byte is no text."""
    return tuple((one.text, round(one.logprob, 3)) for one in told.answers[0].tokens)


def test_three_stages_write_what_the_whole_model_writes_also_when_one_is_killed(nodes: list[NodeProcess]) -> None:
    alice, *others = nodes
    whole = _ask(alice)
    assert len(whole) == TOKENS
    assert _ask(alice, stages=3) == whole
    line = _line(alice)
    assert [first for _, first, _ in line] == [0, *(until for _, _, until in line[:-1])]
    assert len(line) == 3
    holders = {node.peer_id[-8:]: node for node in others}
    lost = next(holders[peer] for peer, _, _ in reversed(line) if peer in holders)
    with ThreadPoolExecutor(2) as pool, Client(home=alice.home) as client:
        beside = pool.submit(_ask, alice, stages=3)
        with client.generate(
            MODEL, PROMPT, max_tokens=TOKENS, temperature=0, logprobs=0, stages=3, stream=True
        ) as pieces:
            for heard, _ in enumerate(pieces):
                if heard == 10:
                    lost.kill()
            assert _heard(pieces.generation) == whole
        assert beside.result(timeout=60.0) == whole
    assert "stage_replaced" in alice.log()
