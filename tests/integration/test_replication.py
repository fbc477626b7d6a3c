"""Replication between real hosts: the DHT names who holds a content, the aim is met, and a dead holder is replaced."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from celluler.content.memory import MemoryStore
from celluler.content.replication import Candidate, Policy, Replicated
from celluler.content.replication_watch import Wanted
from celluler.errors import BlockAbsent
from celluler.identity import PeerId
from celluler_node.replicator import answers_for, open_replicator
from celluler_protocols.content import PROTOCOL_ID, fetch, serve_content
from celluler_protocols.directory import Directory, DirectoryTiming, open_directory
from celluler_protocols.host import Host, open_host
from tests.support.hosts import LISTEN, identity, join, until

DATA = random.Random(6).randbytes((3 << 20) + 11)
QUICK = Policy(patience_s=0.3, jitter_s=0.3, step_s=1.5)


@dataclass
class Peer:
    """A host that keeps copies. What it holds, the swarm's catalogue says by `wanted`."""

    host: Host
    directory: Directory
    store: MemoryStore
    wanted: list[Replicated] = field(default_factory=list)

    def holds(self, root: bytes) -> bool:
        try:
            return self.store.stat(root).complete
        except BlockAbsent:
            return False

    def catalogue(self) -> Sequence[Wanted]:
        return [Wanted(one, b"m" * 32, self.holds(one.root)) for one in self.wanted]

    def members(self) -> Sequence[Candidate]:
        return [Candidate(peer) for peer in sorted(self.host.connected())]

    async def serve(self, _peer: PeerId, stream: trio.abc.Stream) -> None:
        await serve_content(self.store, stream)

    async def pull(self, root: bytes, _manifest: bytes) -> None:
        sources = await self.directory.providers(root)
        await fetch(root, self.store, sources, lambda peer: self.host.open_stream(peer, PROTOCOL_ID))
        await self.directory.provide(root)

    async def confirm(self, peer: PeerId, root: bytes) -> bool:
        return await answers_for(await self.host.open_stream(peer, PROTOCOL_ID), peer, root)


@asynccontextmanager
async def peer(number: int) -> AsyncIterator[Peer]:
    own = identity(number)
    async with (
        open_host(own, listen=LISTEN) as host,
        open_directory(host, own, timing=DirectoryTiming(settle_s=0.1)) as directory,
    ):
        one = Peer(host, directory, MemoryStore(1 << 26))
        host.serve(PROTOCOL_ID, one.serve)
        async with open_replicator(
            catalogue=one.catalogue,
            members=one.members,
            providers=directory.providers,
            pull=one.pull,
            room=lambda: 1 << 26,
            own=own.peer_id,
            region="",
            interval_s=0.6,
            policy=QUICK,
            confirm=one.confirm,
            rng=random.Random(number),
        ):
            yield one


async def live(number: int, task_status: trio.TaskStatus[tuple[Peer, trio.CancelScope]]) -> None:
    """A peer in a task of its own, so that it can die alone."""
    with trio.CancelScope() as life:
        async with peer(number) as one:
            task_status.started((one, life))
            await trio.sleep_forever()


async def test_the_aim_is_met_and_met_again_when_a_holder_dies(tmp_path: Path, nursery: trio.Nursery) -> None:
    (tmp_path / "weights").write_bytes(DATA)
    lives: list[tuple[Peer, trio.CancelScope]] = [await nursery.start(live, number + 1) for number in range(5)]
    peers = [one for one, _ in lives]
    for place, one in enumerate(peers):
        for other in peers[:place]:
            await join(one.host, other.host)
    await until(lambda: all(one.host.dht.routing_peers == 4 for one in peers))
    root = peers[0].store.add(tmp_path / "weights", "model")
    await peers[0].directory.provide(root)
    for one in peers:
        one.wanted.append(Replicated(root, len(DATA), 3))
    await until(lambda: sum(one.holds(root) for one in peers) >= 3, within_s=20)
    victim, life = next((one, life) for one, life in lives[1:] if one.holds(root))
    life.cancel()
    peers.remove(victim)
    await until(lambda: sum(one.holds(root) for one in peers) >= 3, within_s=20)
    assert sum(one.holds(root) for one in peers) <= 4


async def test_a_peer_that_says_it_holds_what_it_has_not_got_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(DATA)
    async with peer(1) as author, peer(2) as boaster, peer(3) as honest:
        await join(author.host, boaster.host)
        await join(honest.host, boaster.host)
        await join(honest.host, author.host)
        await until(lambda: all(one.host.dht.routing_peers == 2 for one in (author, boaster, honest)))
        root = author.store.add(tmp_path / "weights", "model")
        await author.directory.provide(root)
        await boaster.directory.provide(root)
        honest.wanted.append(Replicated(root, len(DATA), 2))
        await until(lambda: honest.holds(root), within_s=20)
