"""Content between real hosts: pulled, repaired from another when one lies, and refused to requesters that misbehave."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from celluler.content.digest import digest_of
from celluler.content.disk import DiskStore
from celluler.content.memory import MemoryStore
from celluler.errors import BlockAbsent, PeerViolation
from celluler.identity import PeerId
from celluler_protocols.content import PROTOCOL_ID, Found, Want, fetch, fetch_block, frames, serve_content
from celluler_protocols.host import Host
from tests.support.hosts import hosts, join, until

QUOTA_BYTES = 1 << 26


DATA = random.Random(4).randbytes((6 << 20) + 77)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(DATA)
    return path


def opener(host: Host):  # type: ignore[no-untyped-def]
    return lambda peer: host.open_stream(peer, PROTOCOL_ID)


async def test_a_content_is_pulled_over_libp2p_and_a_liar_is_disconnected(path: Path, tmp_path: Path) -> None:
    store, truth = DiskStore(tmp_path / "store", QUOTA_BYTES), MemoryStore(QUOTA_BYTES)
    root = truth.add(path, "model")
    caught = trio.Event()

    async def lie(_peer: PeerId, stream: trio.abc.Stream) -> None:
        incoming = frames()
        async for data in stream:
            for want in incoming.feed(data):
                for digest in want.digests:
                    block = truth.get(digest)
                    lie = block if digest == root or len(block) < 1000 else b"!" + block[1:]
                    await stream.send_all(frames().encode(Found(digest, lie)))

    async def serve_late(_peer: PeerId, stream: trio.abc.Stream) -> None:
        await caught.wait()
        await serve_content(truth, stream)

    with trio.fail_after(30):
        async with hosts(3) as (alice, bob, carol):
            bob.serve(PROTOCOL_ID, lie)
            carol.serve(PROTOCOL_ID, serve_late)
            await join(alice, bob)
            await join(alice, carol)

            def accuse(peer: PeerId, error: PeerViolation) -> None:
                alice.penalise(peer, error)
                caught.set()

            sources = [bob.peer_id, carol.peer_id]
            report = await fetch(root, store, sources, opener(alice), on_violation=accuse)
            assert report.liars == (bob.peer_id,)
            assert store.path(root).read_bytes() == DATA
            assert [violation.peer for violation in alice.violations] == [bob.peer_id]
            await until(lambda: alice.connected() == {carol.peer_id})
    store.close()


async def test_a_provider_that_goes_away_in_the_midst_is_made_up_for(path: Path) -> None:
    store, truth = MemoryStore(QUOTA_BYTES), MemoryStore(QUOTA_BYTES)
    root = truth.add(path, "model")

    async def drop(_peer: PeerId, stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(frames().encode(Found(root, truth.get(root)))[:-3])

    async def serve(_peer: PeerId, stream: trio.abc.Stream) -> None:
        await serve_content(truth, stream)

    with trio.fail_after(30):
        async with hosts(3) as (alice, bob, carol):
            bob.serve(PROTOCOL_ID, drop)
            carol.serve(PROTOCOL_ID, serve)
            await join(alice, bob)
            await join(alice, carol)
            report = await fetch(root, store, [bob.peer_id, carol.peer_id], opener(alice))
            assert report.liars == ()
            assert store.path(root).read_bytes() == DATA
            block = truth.put_block(b"an envelope")
            assert await fetch_block(block, store, [bob.peer_id, carol.peer_id], opener(alice)) == b"an envelope"
            with pytest.raises(BlockAbsent):
                await fetch_block(digest_of(b"nowhere"), store, [carol.peer_id], opener(alice))
    store.close()
    truth.close()


async def test_a_requester_that_breaks_the_protocol_is_in_the_providers_ledger() -> None:
    store = MemoryStore(QUOTA_BYTES)
    with trio.fail_after(30):
        async with hosts(4) as (alice, *others):
            alice.serve(PROTOCOL_ID, lambda _, stream: serve_content(store, stream))
            want = frames().encode(Want(tuple(digest_of(bytes([at])) for at in range(64))))
            for other, bytes_ in zip(
                others, (want * 20, b"\xff" * 9, frames().encode(Found(bytes(32), b""))), strict=True
            ):
                await join(other, alice)
                stream = await other.open_stream(alice.peer_id, PROTOCOL_ID)
                await stream.send_all(bytes_)
                await until(lambda other=other: other.peer_id in {each.peer for each in alice.violations})
