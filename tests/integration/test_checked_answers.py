"""Real nodes, one of which answers with another model than it says: outvoted, caught, proven, and asked last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from celluler.client import Client
from celluler.models.templates import fill
from celluler_node.cli.root import run
from simulations.swarm import NodeProcess, Swarm, open_swarm
from tests.support.waiting import eventually

WAIT_S = 60.0
LEAN = "[worker]\nspares = 0\n"
SERVES, ASKS = f'roles = ["serve", "store"]\n{LEAN}', f'roles = ["store"]\n{LEAN}[checks]\nshare = 1.0\n'
LIAR = ("-m", "simulations.attacks.server", "--instead", "alice/prose=alice/nonsense")


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    with open_swarm(tmp_path / "swarm") as swarm:
        yield swarm
        processes = [psutil.Process(node.process.pid) for node in swarm.nodes if node.process.poll() is None]
        family = [each for one in processes for each in (one, *one.children(recursive=True))]
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive, "something outlived the swarm"


def started(swarm: Swarm) -> tuple[NodeProcess, ...]:
    """Alice, who asks and checks everything; bob and carol, who serve; mallory, who serves something else."""
    for name, config in (("alice", ASKS), *((name, SERVES) for name in ("bob", "carol", "mallory"))):
        (swarm.folder / name).mkdir(parents=True)
        (swarm.folder / name / "config.toml").write_text(config)
    alice = swarm.start("alice")
    for name in ("bob", "carol"):
        swarm.launch(name, join=[alice.address])
    swarm.launch("mallory", join=[alice.address], program=LIAR)
    for node in swarm.nodes[1:]:
        swarm.await_ready(node)
    return tuple(swarm.nodes)


def published(alice: Client) -> None:
    for name, seed in (("prose", 1), ("nonsense", 2)):
        alice.models.add(f"alice/{name}:1.0.0", fill("transformer-lm"), seed=seed)


def test_a_peer_that_serves_another_model_is_outvoted_caught_proven_and_asked_last(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice_node, _, _, mallory = started(swarm)
    batch = np.random.default_rng(1).integers(0, 128, (5, 64))
    with Client(home=alice_node.home) as alice:
        published(alice)
        eventually(lambda: len(alice.peers.ls()) == 4)

        told = alice.predict("alice/prose", batch, output="next_token", ensemble=3, aggregate="vote")
        assert told.ensemble is not None
        dissent = {one.peer: one.dissent for one in told.ensemble.members}
        assert (told.ensemble.answered, len(dissent)) == (3, 3)
        assert dissent.pop(mallory.peer_id) > 0
        assert set(dissent.values()) == {0}
        assert max(told.ensemble.disagreement) == pytest.approx(1 / 3)

        def caught() -> str:
            return alice.peers.show(mallory.peer_id).evidence

        eventually(caught, within_s=WAIT_S)
        assert [one.peer for one in alice.violations()] == [mallory.peer_id]
        for _ in range(4):
            honest = alice.predict("alice/prose", batch, output="next_token")
            assert honest.peer != mallory.peer_id
        assert told.outputs.numpy() == pytest.approx(honest.outputs.numpy(), abs=1e-4)
        first = caught()
        generation = alice.generate("alice/prose", [1, 2, 3], max_tokens=24, seed=5, peer=mallory.peer_id)
        assert generation.generated_tokens == 24
        eventually(lambda: caught() != first, within_s=WAIT_S)
        assert "token" in alice.peers.show(mallory.peer_id).wrong_answer
        monkeypatch.setenv("CELLULER_HOME", str(alice_node.home))
        assert run(["verify", caught()]) == 0
