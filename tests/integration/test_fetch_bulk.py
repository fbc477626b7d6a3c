"""Whole fetches by real bulk processes over real TLS: several sources, and processes that are killed in the midst."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from celluler.content.digest import Digest
from celluler.content.movers import Mover, OpenMover
from celluler.content.progress import Progress, Transport
from celluler.errors import PeerViolation
from celluler_protocols import content
from celluler_protocols.content import FetchReport
from tests.support.bulk_peers import Peer, peers

MIB = 1 << 20
DATA = random.Random(6).randbytes(48 * MIB + 77)


@pytest.fixture(autouse=True)
async def deadline() -> AsyncIterator[None]:
    with trio.fail_after(30):
        yield


class Watch:
    """What a fetch said on its way. acts: done once, when a quarter is here and something comes by bulk."""

    def __init__(self, acts: Callable[[], None] = lambda: None) -> None:
        self.by_bulk: set[str] = set()
        self._acts, self._done = acts, False

    def __call__(self, progress: Progress) -> None:
        self.by_bulk |= {source.peer for source in progress.sources if source.transport is Transport.BULK}
        if not self._done and self.by_bulk and progress.kept_bytes > progress.wanted_bytes / 4:
            self._done = True
            self._acts()


class Gate:
    """Holds chunks on the streams back until a mover was opened: these streams are in memory, and faster than TLS."""

    def __init__(self, open_mover: OpenMover) -> None:
        self._open_mover, self._opened, self._received = open_mover, trio.Event(), 0

    @asynccontextmanager
    async def open_mover(self, peer: str, root: bytes, path: Path) -> AsyncIterator[Mover]:
        async with self._open_mover(peer, root, path) as mover:
            self._opened.set()
            yield mover

    async def send(self, count: int) -> None:
        await trio.lowlevel.checkpoint()

    async def receive(self, count: int) -> None:
        await trio.lowlevel.checkpoint()
        self._received += count
        if self._received > MIB:  # manifest and leaves are less
            await self._opened.wait()


def accuse(peer: str, error: PeerViolation) -> None:
    raise AssertionError(f"{peer}: {error}")


async def fetch(
    into: Peer, root: Digest, sources: list[Peer], watch: Watch, *, select: content.Select | None = None
) -> FetchReport:
    gate = Gate(into.bulk.open_mover)
    return await content.fetch(
        root,
        into.store,
        [source.id for source in sources],
        lambda peer: into.open_stream(peer, content.PROTOCOL_ID),
        open_mover=gate.open_mover,
        meter=gate,
        select=select,
        on_progress=watch,
        on_violation=accuse,
    )


async def test_three_sources_give_a_content_by_bulk(tmp_path: Path) -> None:
    async with peers(4, tmp_path) as (alice, bob, carol, dora):
        root = {each.add(DATA) for each in (alice, bob, carol)}.pop()
        watch = Watch()
        report = await fetch(dora, root, [alice, bob, carol], watch)
        assert dora.store.path(root).read_bytes() == DATA
        assert sum(report.received.values()) == len(DATA)
        assert watch.by_bulk


async def test_part_of_a_content_comes_by_bulk_and_goes_on_to_others_from_there(tmp_path: Path) -> None:
    async with peers(3, tmp_path) as (alice, bob, carol):
        root = alice.add(DATA)
        wanted = list(range(5, 30))
        for into, source in ((bob, alice), (carol, bob)):
            watch = Watch()
            await fetch(into, root, [source], watch, select=lambda _: wanted)
            assert watch.by_bulk == {source.id}
            part = into.store.partial(root, wanted).read_bytes()
            assert part[5 * MIB : 30 * MIB] == DATA[5 * MIB : 30 * MIB]
            assert not into.store.stat(root).complete


@pytest.mark.parametrize("whose", ["the source's", "our own"])
async def test_when_a_bulk_process_is_killed_the_stream_carries_the_rest(tmp_path: Path, whose: str) -> None:
    async with peers(2, tmp_path) as (alice, bob):
        root = alice.add(DATA)

        def kill() -> None:
            process = (alice if whose == "the source's" else bob).bulk.process_id
            assert process is not None
            os.kill(process, signal.SIGKILL)

        watch = Watch(kill)
        report = await fetch(bob, root, [alice], watch)
        assert bob.store.path(root).read_bytes() == DATA
        assert (watch.by_bulk, report.liars) == ({alice.id}, ())
