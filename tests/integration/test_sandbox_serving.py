"""Who serves models keeps strangers' where they belong, and gets rid of a worker that does not answer."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from celluler.errors import Denied, WorkerFailed
from celluler.identity import Identity
from celluler.models.manifest import OpenedManifest, describe_model, open_manifest, seal_manifest
from celluler_node.processes.confinement import FULL, OFF, Confinement, Walls
from celluler_node.processes.words import Limits
from celluler_node.scratch import open_scratch
from celluler_node.serving import server as serving
from celluler_node.serving import spares
from celluler_node.serving.server import ModelServer
from celluler_protocols.inference import Predict
from tests.fuzz.targets import TARGETS
from tests.support.spare_child import READER
from tests.support.specs import TINY

ALICE, BOB = Identity(b"a" * 32), Identity(b"b" * 32)
GRAPH = TARGETS["graph"].seeds()[0]
LIMITS = Limits(memory_bytes=1 << 30, disk_bytes=1 << 20)


class OneModel:
    """A repository of one model, whose weights lie in a file."""

    def __init__(self, opened: OpenedManifest, weights: Path) -> None:
        self._opened, self._weights = opened, weights

    async def resolve(self, _: str, **__: Any) -> OpenedManifest:
        return self._opened

    async def sound(self, _: OpenedManifest, **__: Any) -> Path:
        return self._weights

    async def file(self, _: OpenedManifest, __: str, **___: Any) -> None:
        return None

    def hold(self, _: OpenedManifest) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def a_model(kind: str, author: Identity = ALICE) -> OpenedManifest:
    document = GRAPH if kind == "graph" else json.dumps(TINY).encode()
    manifest = describe_model("digits", "1.0.0", document, b"w" * 32, created_s=1, body=kind)
    return open_manifest(seal_manifest(author, manifest))


def asks(value: float, width: int) -> Predict:
    x = np.full((2, width), value, dtype=np.float32)
    return Predict("alice/digits:1.0.0", "raw", "float32", x.shape, x.tobytes())


@asynccontextmanager
async def a_server(
    root: Path, kind: str, here: Confinement, monkeypatch: pytest.MonkeyPatch, own: Identity = BOB
) -> AsyncIterator[ModelServer]:
    monkeypatch.setattr(serving, "CALL_S", 1)
    monkeypatch.setattr(spares, "QUIET_S", 60.0)
    (root / "weights").write_bytes(b"w")
    with trio.fail_after(30):
        async with open_scratch(root / "scratch") as scratch, trio.open_nursery() as nursery:
            repository: Any = OneModel(a_model(kind), root / "weights")
            walls = Walls(here)
            yield ModelServer(
                repository, READER, LIMITS, scratch, nursery,
                own=own.peer_id, confinement=here, spares=0, on_start=walls.note,
            )  # fmt: skip
            nursery.cancel_scope.cancel()


async def test_a_model_that_does_not_answer_costs_its_worker_and_the_next_request_gets_another(tmp_path, monkeypatch):
    async with a_server(tmp_path, "spec", Confinement(FULL), monkeypatch) as server:
        assert (await server.predict(asks(0.1, 3))).data
        with pytest.raises(WorkerFailed, match="time limit of 1 s") as caught:
            await server.predict(asks(0.0, 3))
        assert caught.value.limit == "time"
        assert (await server.predict(asks(0.1, 3))).data


async def test_a_strangers_graph_is_refused_where_the_sandbox_is_off(tmp_path, monkeypatch):
    async with a_server(tmp_path, "graph", Confinement(OFF), monkeypatch) as server:
        with pytest.raises(Denied, match="needs the full sandbox"):
            await server.predict(asks(0.1, 8))
        assert not server.loaded
    async with a_server(tmp_path, "graph", Confinement(OFF, foreign=True), monkeypatch) as server:
        assert (await server.predict(asks(0.1, 8))).data
    async with a_server(tmp_path, "graph", Confinement(OFF), monkeypatch, own=ALICE) as server:
        assert (await server.predict(asks(0.1, 8))).data
    async with a_server(tmp_path, "spec", Confinement(OFF), monkeypatch) as server:
        assert (await server.predict(asks(0.1, 3))).data
