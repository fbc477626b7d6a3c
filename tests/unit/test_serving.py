"""What a node refuses to predict before a worker is woken."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from celluler.errors import InvalidSpec, WorkerFailed
from celluler.identity import Identity
from celluler.models.interface import read_interface
from celluler.models.spec import parse_spec
from celluler.models.templates import TEMPLATES
from celluler_node.processes.confinement import Confinement
from celluler_node.processes.words import Limits
from celluler_node.processes.worker_words import WORKER
from celluler_node.repository import Repository
from celluler_node.serving.server import ModelServer, blamed
from celluler_protocols.inference import MAX_DATA_BYTES, Predict

ALICE = Identity(b"a" * 32)


class Shelf:
    """A repository that knows one model, and cannot open it: whoever loads it fails another way."""

    async def resolve(self, ref: str, *, hints: Any) -> Any:
        record = SimpleNamespace(encrypted=False, body="spec")
        architecture = parse_spec(TEMPLATES["diffusion"].document)
        interface = read_interface(architecture)
        return SimpleNamespace(interface=interface, record=record, signed=SimpleNamespace(signer=ALICE.peer_id))


def asking(seeds: int, output: str = "sample") -> Predict:
    return Predict("alice/diffusion", output, "int64", (seeds,), bytes(8 * seeds))


async def test_few_seeds_cannot_ask_for_an_answer_that_nobody_can_carry() -> None:
    most = MAX_DATA_BYTES // (64 * 4)
    async with trio.open_nursery() as nursery:
        server = ModelServer(
            cast(Repository, Shelf()),
            WORKER,
            Limits(),
            cast(Any, None),
            nursery,
            own=ALICE.peer_id,
            confinement=Confinement("full"),
            spares=0,
            on_start=lambda *_: None,
        )
        for asker, seeds in ((ALICE.peer_id, most + 1), (None, (1 << 28) // (64 * 4) + 1)):
            with pytest.raises(InvalidSpec, match="asks for an answer of"):
                await server.predict(asking(seeds), asker=asker)
        with pytest.raises(InvalidSpec, match="gives sample"):
            await server.predict(asking(1, "raw"), asker=ALICE.peer_id)
    assert server.loaded == ()


@pytest.mark.parametrize("path", ["input[2]", "input", "preprocess.steps[0]", "postprocess.outputs[1].steps[3]"])
def test_values_that_a_worker_refuses_are_the_askers_to_mend(path: str) -> None:
    told = blamed(WorkerFailed(f"worker: InvalidSpec: {path}: is given 12: must be 0…9"))
    assert isinstance(told, InvalidSpec)
    assert (told.path, told.problem) == (path, "is given 12: must be 0…9")
    for other in ("LocalError: {}: no", "InvalidSpec: weights.{}: no", "InvalidSpec: {}"):
        assert isinstance(blamed(WorkerFailed(f"worker: {other.format(path)}")), WorkerFailed)
    limit = WorkerFailed(f"worker: InvalidSpec: {path}: no", limit="memory")
    assert blamed(limit) is limit
