"""Peers that take stages, all in one process: real layers and the real protocol, over streams in memory.

`lost` peers end their streams, as a killed process does. While `slow` is not set no stage is opened.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio
from trio.testing import memory_stream_pair

from celluler.errors import Unavailable
from celluler.identity import Identity, PeerId
from celluler.inference.stages import stage_of
from celluler.models.manifest import OpenedManifest, describe_model, open_manifest, seal_manifest
from celluler.models.spec import Architecture, format_spec
from celluler_node.processes.words import Reply
from celluler_node.processes.worker_stages import StageWorker
from celluler_node.processes.worker_stages_words import LoadStage, StageLoaded
from celluler_node.stages.held import Held, HeldStage
from celluler_node.stages.running import RunningStage
from celluler_protocols.membership import Capabilities, Member
from celluler_protocols.membership.table import Status
from celluler_protocols.nursery import own_nursery
from celluler_protocols.stages import Widths, open_link
from celluler_protocols.stages_messages import OpenStage
from celluler_protocols.stages_serving import Stage, serve_stage

ALICE = Identity(b"a" * 32)
SERVING = Capabilities(1, 1 << 16, "cpu", ("serve",))


def manifest(body: Architecture, **fields: Any) -> OpenedManifest:
    described = describe_model("split", "1.0.0", format_spec(body), b"w" * 32, created_s=1, **fields)
    return open_manifest(seal_manifest(ALICE, described))


class StageSwarm:
    """Also a repository, of the one model. opened: (peer, first, until), in order. forwards: of each peer."""

    def __init__(self, nursery: trio.Nursery, opened: OpenedManifest, weights: Path, peers: int) -> None:
        self._nursery, self._weights, self.manifest = nursery, weights, opened
        self.peers = [Identity(bytes([one + 1] * 32)).peer_id for one in range(peers)]
        self.opened: list[tuple[PeerId, int, int]] = []
        self.forwards: dict[PeerId, int] = {}
        self.able = SERVING
        self.lost: set[PeerId] = set()
        self.swift: set[PeerId] = set()
        self.slow = trio.Event()
        self.slow.set()
        self.lose_after: dict[PeerId, int] = {}
        self.wrong: set[PeerId] = set()
        self.penalised: list[PeerId] = []
        self._streams: dict[PeerId, list[Any]] = {}

    async def resolve(self, reference: str, **_: Any) -> OpenedManifest:
        return self.manifest

    def members(self) -> tuple[Member, ...]:
        """Also of those that are lost: nobody has noticed yet."""
        swift = replace(self.able, cores=100)
        found = ((peer, (swift, 1e-5) if peer in self.swift else (self.able, 1e-3)) for peer in self.peers)
        return tuple(Member(peer, (), "", able, Status.ALIVE, 0, away_s) for peer, (able, away_s) in found)

    def penalise(self, peer: PeerId, error: Exception) -> None:
        self.penalised.append(peer)

    @asynccontextmanager
    async def open_at(self, peer: PeerId, request: OpenStage, widths: Widths) -> AsyncIterator[Stage]:
        if peer in self.lost:
            raise Unavailable("no connection")
        await self.slow.wait()
        ours, theirs = memory_stream_pair()
        self._streams.setdefault(peer, []).append(theirs)
        self._nursery.start_soon(self._serve, peer, theirs)
        async with open_link(ours, request, widths) as link:
            yield link

    async def lose(self, peer: PeerId) -> None:
        self.lost.add(peer)
        for stream in self._streams.get(peer, []):
            await stream.aclose()

    async def _serve(self, peer: PeerId, stream: trio.abc.Stream) -> None:
        try:
            await serve_stage(stream, lambda request: self._held(peer, request))
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            assert peer in self.lost

    @asynccontextmanager
    async def _held(self, peer: PeerId, request: OpenStage) -> AsyncIterator[Stage]:
        worker = StageWorker()
        record = self.manifest.record

        async def call(asked: Any, *blobs: Any) -> Reply:
            await trio.lowlevel.checkpoint()
            told = worker.handlers[type(asked)](asked, tuple(bytearray(one) for one in blobs))
            return told if isinstance(told, Reply) else Reply(told)

        loaded: StageLoaded = (
            await call(
                LoadStage(
                    record.spec,
                    str(self._weights),
                    request.first,
                    request.until,
                    request.slots,
                    request.length,
                    preprocess=record.preprocess,
                    check=False,
                )
            )
        ).record
        body = self.manifest.architecture
        stage = stage_of(body, request.first, request.until)
        held = Held(self.manifest, stage, request.slots, request.length, 0, loaded=loaded)
        running = RunningStage(call, request.slots)
        self.opened.append((peer, request.first, request.until))
        async with own_nursery() as nursery:
            nursery.start_soon(running.run)
            yield _Watched(self, peer, HeldStage(held, running, list(range(request.slots)), request.wire))


class _Watched:
    """A stage that counts, and that is lost, or lies, when a test says so."""

    def __init__(self, swarm: StageSwarm, peer: PeerId, stage: HeldStage) -> None:
        self._swarm, self._peer, self._stage = swarm, peer, stage
        self.ready, self.read, self.begin, self.end = stage.ready, stage.read, stage.begin, stage.end

    async def forward(self, message: Any) -> Any:
        swarm = self._swarm
        swarm.forwards[self._peer] = count = swarm.forwards.get(self._peer, 0) + 1
        if swarm.lose_after.get(self._peer, count) < count:
            await swarm.lose(self._peer)
        told = await self._stage.forward(message)
        if self._peer in swarm.wrong and isinstance(told, bytes):
            return told[:-4] + b"\xff\xff\xff\xff"
        return told
