"""A node that holds stages: who shares a worker, what there is memory for, and what becomes of a worker that ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from celluler.errors import Busy, Denied, InvalidSpec, LocalError, ProtocolViolation, WorkerFailed
from celluler.identity import Identity
from celluler.inference.memory import WORKER_BYTES
from celluler.models.access import new_key, seal_key
from celluler.models.manifest import OpenedManifest
from celluler.models.memory import RUNTIME_BYTES
from celluler.models.spec import parse_spec
from celluler.models.templates import fill
from celluler.models.weights import initial_weights
from celluler_node.processes.confinement import Confinement
from celluler_node.processes.words import Isolation, Limits, Reply
from celluler_node.processes.worker_stages import StageWorker
from celluler_node.processes.worker_stages_words import STAGE_WORKER, LoadStage
from celluler_node.stages.server import CALL_S, IDLE_S, StageServer
from celluler_protocols.nursery import own_nursery
from celluler_protocols.stages_messages import DRAW, HIDDEN, Forward, OpenStage
from tests.support.stages import ALICE, manifest

pytestmark = pytest.mark.thorough

BODY = parse_spec(fill("transformer-lm", ["layers[1].times=4", "input.shape=[16]"]))
TOKENS = np.array([1, 2, 3], dtype="<u4").tobytes()
BOB = Identity(b"b" * 32)


class Child:
    """A worker that is none of a process. loads: what it was asked to load."""

    isolation = Isolation(True, True, True, 7, True, ())

    def __init__(self, loads: list[LoadStage]) -> None:
        self._worker, self._loads = StageWorker(), loads
        self.ended, self.reason = trio.Event(), ""

    async def call(self, request: Any, *blobs: bytes) -> Reply:
        await trio.lowlevel.checkpoint()
        if self.ended.is_set():
            raise WorkerFailed(self.reason)
        if isinstance(request, LoadStage):
            self._loads.append(request)
        told = self._worker.handlers[type(request)](request, tuple(bytearray(one) for one in blobs))
        return told if isinstance(told, Reply) else Reply(told)

    def end(self, reason: str) -> None:
        self.reason = reason
        self.ended.set()


class Node:
    """A stage server, its repository of one model, and its workers."""

    def __init__(self, weights: Path, nursery: trio.Nursery, opened: OpenedManifest, memory_bytes: int) -> None:
        self.manifest, self._weights = opened, weights
        self.children: list[Child] = []
        self.loads: list[LoadStage] = []
        self.names: list[frozenset[str]] = []
        repository: Any = self
        self.server = StageServer(
            repository,
            STAGE_WORKER,
            Limits(4 << 30),
            repository,
            nursery,
            own=ALICE.peer_id,
            confinement=Confinement("full"),
            memory_bytes=memory_bytes,
            on_start=lambda _: None,
        )
        self.server._workers = repository

    async def resolve(self, _: str, **__: Any) -> OpenedManifest:
        return self.manifest

    async def sound_part(self, _: OpenedManifest, names: frozenset[str], **__: Any) -> Path:
        self.names.append(names)
        return self._weights

    async def file(self, *_: Any, **__: Any) -> None:
        return None

    def hold(self, _: OpenedManifest) -> AbstractContextManager[None]:
        return nullcontext()

    @asynccontextmanager
    async def open(self, *files: Path) -> AsyncIterator[tuple[Child, tuple[Path, ...]]]:
        self.children.append(Child(self.loads))
        yield self.children[-1], files


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("held") / "weights"
    initial_weights(BODY, b"s" * 32, path)
    return path


@asynccontextmanager
async def a_node(weights: Path, memory_bytes: int = 8 << 30, **fields: Any) -> AsyncIterator[Node]:
    async with own_nursery() as nursery:
        node = Node(weights, nursery, manifest(BODY, **fields), memory_bytes)
        nursery.start_soon(node.server.unload_idle)
        yield node


def stage(first: int = 0, until: int = 3, slots: int = 4, wire: str = "float32") -> OpenStage:
    return OpenStage(bytes(32), first, until, slots, 16, wire)


def places(sequence: int = 0, want: int = HIDDEN) -> Forward:
    return Forward(sequence, 0, 3, want, 0, TOKENS)


async def test_askers_of_the_same_layers_share_a_worker_and_not_their_slots(weights: Path, autojump_clock: Any) -> None:
    async with a_node(weights) as node:
        async with node.server.open(stage(), asker=BOB.peer_id) as one, node.server.open(stage()) as other:
            for held in (one, other):
                await held.begin(0, None, ())
            assert await one.forward(places()) == await other.forward(places())
            with pytest.raises(Busy, match="slots"):
                async with node.server.open(stage()):
                    raise AssertionError("all eight are taken")
            with pytest.raises(LocalError, match="no sequence 4"):
                await one.begin(4, None, ())
            with pytest.raises(LocalError, match="context of 99"):
                await one.begin(0, None, (1,) * 99)
        async with node.server.open(stage()) as again:
            assert again.ready.slots == 4
        assert len(node.children) == 1
        (names,) = node.names
        assert names == {tensor.name for tensor in BODY.planned if tensor.name[:3] in ("0.w", "1.0", "1.1")}


async def test_a_stage_is_tested_the_first_time_of_a_model(weights: Path, autojump_clock: Any) -> None:
    async with a_node(weights) as node:
        for first, until in ((0, 2), (2, 5)):
            async with node.server.open(stage(first, until)):
                pass
        assert [load.check for load in node.loads] == [True, False]


async def test_what_nobody_asks_for_is_let_go(weights: Path, autojump_clock: Any) -> None:
    async with a_node(weights) as node:
        async with node.server.open(stage()):
            await trio.sleep(2 * IDLE_S)
            assert node.server.held
        await trio.sleep(2 * IDLE_S)
        assert not node.server.held


async def test_a_stage_makes_room_for_another_when_it_is_idle_and_not_while_it_is_used(
    weights: Path, autojump_clock: Any
) -> None:
    room = WORKER_BYTES + BODY.parameter_bytes + (1 << 20)
    async with a_node(weights, room) as node:
        async with node.server.open(stage()):
            with pytest.raises(Busy, match="memory"):
                async with node.server.open(stage(3, 5)):
                    raise AssertionError("there is no memory for it")
        async with node.server.open(stage(3, 5)):
            assert [one.first for one in node.server.held] == [3]
    async with a_node(weights, WORKER_BYTES) as node:
        with pytest.raises(Busy, match="memory"):
            async with node.server.open(stage()):
                raise AssertionError("there is no memory for any")
    assert room < RUNTIME_BYTES


async def test_a_worker_that_ends_fails_its_askers_and_the_next_gets_a_new_one(
    weights: Path, autojump_clock: Any
) -> None:
    async with a_node(weights) as node:
        async with node.server.open(stage()) as held:
            await held.begin(0, None, ())
            node.children[0].end("killed by SIGKILL")
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(WorkerFailed, match="SIGKILL"):
                await held.forward(places())
        async with node.server.open(stage()) as held:
            await held.begin(0, None, ())
            assert await held.forward(places()) is not None
        assert len(node.children) == 2
    assert CALL_S < 2 * IDLE_S


async def test_what_cannot_be_is_refused(weights: Path, autojump_clock: Any) -> None:
    async with a_node(weights) as node:
        for wrong in (stage(0, 9), stage(wire="float64"), OpenStage(bytes(32), 0, 1, 1, 17, "float32")):
            with pytest.raises(InvalidSpec):
                async with node.server.open(wrong):
                    raise AssertionError("it was refused")
        async with node.server.open(stage(1, 3)) as held:
            await held.begin(0, None, ())
            with pytest.raises(ProtocolViolation, match="bytes"):
                await held.forward(places())
            with pytest.raises(LocalError, match="last stage"):
                await held.forward(places(want=DRAW))
    sealed = seal_key(new_key(), (ALICE.peer_id,))
    async with a_node(weights, sealed=sealed, plain=bytes(32)) as node:
        with pytest.raises(Denied):
            async with node.server.open(stage(), asker=BOB.peer_id):
                raise AssertionError("it was refused")
        with pytest.raises(InvalidSpec, match="encrypted"):
            async with node.server.open(stage()):
                raise AssertionError("it was refused")
