"""Workers that load whatever they are given in a moment, and a repository of models that are names alone."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import trio

from celluler.content.digest import Digest
from celluler.errors import NotFound, WorkerFailed
from celluler.identity import Identity
from celluler.inference.memory import bytes_served
from celluler.models.manifest import OpenedManifest, describe_model, open_manifest, seal_manifest
from celluler.models.spec import format_spec, parse_spec
from celluler.models.templates import fill
from celluler_node.processes.confinement import Confinement
from celluler_node.processes.words import Isolation, Reply
from celluler_node.processes.worker_words import Loaded, LoadModel, Predict, Predicted, Warm, WarmUp
from celluler_node.serving.loading import LoadedModels, ServingRules

ALICE = Identity(b"a" * 32)
SPEC = format_spec(parse_spec(fill("mlp")))
LOAD_S, PREDICT_S, END_S = 2.0, 0.5, 1.0


def version(number: str, name: str = "digits", spec: bytes = SPEC) -> OpenedManifest:
    manifest = describe_model(name, number, spec, b"w" * 32, created_s=1, nickname="alice")
    return open_manifest(seal_manifest(ALICE, manifest))


class Child:
    """Gives back what it is given."""

    def __init__(self) -> None:
        self.ended, self.reason, self.limit = trio.Event(), None, None
        self.isolation = Isolation(True, True, True, 4, True, ())

    async def call(self, request: Any, *blobs: Any) -> Reply:
        if self.ended.is_set():
            raise WorkerFailed("worker: has ended")
        match request:
            case LoadModel():
                await trio.sleep(LOAD_S)
                return Reply(Loaded(1, 1))
            case WarmUp():
                await trio.sleep(LOAD_S)
                return Reply(Warm())
            case Predict():
                await trio.sleep(PREDICT_S)
                return Reply(Predicted("float32", request.shape), (blobs[0],))
        raise AssertionError(request)


class Workers:
    """As `Spares`. running, most: how many there are, and were at once. failure: to start any."""

    def __init__(self) -> None:
        self.children: list[Child] = []
        self.running = self.most = 0
        self.failure: Exception | None = None

    @asynccontextmanager
    async def open(self, *files: Path) -> AsyncIterator[tuple[Child, tuple[Path, ...]]]:
        if self.failure is not None:
            raise self.failure
        child = Child()
        self.children.append(child)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            yield child, files
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(END_S)
            self.running -= 1


class Versions:
    """A repository. means: what each name does; told: what was announced. failure: of the disk."""

    def __init__(self, **means: OpenedManifest) -> None:
        self.means: dict[str, OpenedManifest | Exception] = {f"alice/{name}": one for name, one in means.items()}
        self.told: Digest | None = None
        self.failure: Exception | None = None
        self.resolved = 0

    async def resolve(self, reference: str, *, hints: Any = ()) -> OpenedManifest:
        self.resolved += 1
        found = self.means.get(reference, NotFound(reference))
        if isinstance(found, Exception):
            raise found
        return found

    async def sound(self, opened: OpenedManifest, *, hints: Any = (), on_fetched: Any = lambda: None) -> Path:
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        on_fetched()
        return Path("weights")

    async def file(self, opened: OpenedManifest, name: str, *, hints: Any = ()) -> Path | None:
        return None

    def hold(self, opened: OpenedManifest) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def announced_as(self, opened: OpenedManifest) -> Digest | None:
        return self.told

    def held(self, opened: OpenedManifest) -> Any:
        return SimpleNamespace(name=f"alice/{opened.record.name}:{opened.record.version}")

    def fetched(self, opened: OpenedManifest) -> tuple[int, int] | None:
        return None


def models_of(
    repository: Versions, workers: Workers, nursery: trio.Nursery, *, models: int = 2, **rules: Any
) -> LoadedModels:
    """models: that fit."""
    room = models * bytes_served(version("1.0.0").interface.body, 16)
    return LoadedModels(
        cast(Any, repository),
        cast(Any, workers),
        nursery,
        replace(ServingRules(memory_bytes=room), **rules),
        own=ALICE.peer_id,
        confinement=Confinement("full"),
        worker_bytes=None,
        on_start=lambda _: None,
    )
