"""A real language model in three stages over real nodes, one of them killed in the middle of an answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from celluler.client import Client
from celluler.views import Generation
from simulations.swarm import NodeProcess, open_swarm
from tests.support.smollm2 import smollm2

pytestmark = pytest.mark.large
MODEL = "alice/smollm2:1.0.0"
ASKED = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[NodeProcess]]:
    """alice has the model; with it three are enough for stages, and one is to spare."""
    with open_swarm() as swarm:
        alice = swarm.start("alice")
        alice.call("model", "add", MODEL, str(smollm2()), "--context", "512", timeout_s=300)
        others = [swarm.start(name, join=[alice.address]) for name in ("bob", "carol", "dave")]
        yield [alice, *others]


def test_paris_whole_and_in_three_stages_also_when_one_is_killed(nodes: list[NodeProcess]) -> None:
    alice, *others = nodes
    with Client(home=alice.home) as client:
        whole = client.generate(MODEL, ASKED, max_tokens=48, temperature=0, timeout_s=280)
        assert "Paris" in whole.text
        staged = client.generate(MODEL, ASKED, max_tokens=48, temperature=0, stages=3, timeout_s=280)
        assert staged.text == whole.text
        (*_, opened) = (line for line in alice.log().splitlines() if "line_opened" in line)
        lost = next(node for node in others if node.peer_id[-8:] in opened)
        with client.generate(
            MODEL, ASKED, max_tokens=48, temperature=0, stages=3, timeout_s=280, stream=True
        ) as pieces:
            for heard, _ in enumerate(pieces):
                if heard == 5:
                    lost.kill()
            again: Generation = pieces.generation
    assert again.text == whole.text
    assert "stage_replaced" in alice.log()
