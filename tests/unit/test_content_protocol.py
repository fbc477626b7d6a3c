"""`/celluler/content/1` over streams in memory: honest, lying, busy, silent and vanishing providers."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from celluler.content import download
from celluler.content.digest import Digest, digest_of
from celluler.content.disk import DiskStore
from celluler.content.manifest import Description, Leaf, Manifest, describe
from celluler.content.memory import MemoryStore
from celluler.content.progress import Progress, Transport
from celluler.content.store import Store
from celluler.errors import (
    BlockAbsent,
    NoPeers,
    ProtocolViolation,
    QuotaExceeded,
    TimedOut,
)
from celluler.errors import Busy as BusyError
from celluler.identity import PeerId
from celluler.wire import pack
from celluler_protocols.content import (
    Absent,
    Busy,
    Found,
    Want,
    block,
    fetch,
    fetch_block,
    frames,
    provider,
    serve_content,
    talk,
    turn_away,
)
from tests.support.content_swarm import (
    ALICE,
    BOB,
    CAROL,
    QUOTA_BYTES,
    MakeSwarm,
    answering,
    filled,
    honest,
    open_swarm,
)


@pytest.fixture
async def swarm() -> AsyncIterator[MakeSwarm]:
    async with open_swarm() as make:
        yield make


@pytest.fixture
def data() -> bytes:
    return random.Random(2).randbytes(40 * 1024 + 9)


@pytest.fixture
def described(tmp_path: Path, data: bytes) -> Description:
    (tmp_path / "file").write_bytes(data)
    return describe(tmp_path / "file", "model", chunk_size=1024)


@pytest.fixture
def full(described: Description, data: bytes) -> Store:
    """A store that holds the content."""
    return filled(described, data)


@pytest.fixture
def store() -> Store:
    return MemoryStore(QUOTA_BYTES)


async def silent(stream: trio.abc.Stream) -> None:
    await trio.sleep_forever()


async def test_a_content_arrives_complete_from_one_source(
    swarm: MakeSwarm, store: Store, full: Store, described: Description, data: bytes
) -> None:
    seen: list[Progress] = []
    report = await fetch(described.root, store, [ALICE], swarm(alice=honest(full)).open, on_progress=seen.append)
    assert store.path(described.root).read_bytes() == data
    assert (report.root, dict(report.received), report.liars) == (described.root, {ALICE: len(data)}, ())
    assert (seen[-1].kept_bytes, seen[-1].wanted_bytes, seen[-1].eta_s) == (len(data), len(data), 0)
    assert [(source.peer, source.transport) for source in seen[-1].sources] == [(ALICE, Transport.STREAM)]


async def test_a_disk_store_serves_and_fills_as_a_memory_store_does(
    swarm: MakeSwarm, tmp_path: Path, described: Description, data: bytes
) -> None:
    here, there = DiskStore(tmp_path / "here", QUOTA_BYTES), DiskStore(tmp_path / "there", QUOTA_BYTES)
    root = there.add(tmp_path / "file", "model")
    await fetch(root, here, [ALICE], swarm(alice=honest(there)).open)
    assert here.path(root).read_bytes() == data
    here.close()
    there.close()


async def test_several_sources_share_the_work_and_half_of_it_is_enough(
    swarm: MakeSwarm, store: Store, described: Description, data: bytes
) -> None:
    swarm_ = swarm(
        alice=honest(filled(described, data, without=tuple(range(20)))),
        bob=honest(filled(described, data, without=tuple(range(20, 41)))),
    )
    report = await fetch(described.root, store, [ALICE, BOB], swarm_.open)
    assert store.path(described.root).read_bytes() == data
    assert sum(report.received.values()) == len(data)
    assert report.received[ALICE] >= 21 * 1024 - 1015


async def test_what_is_here_already_is_not_asked_for(swarm: MakeSwarm, described: Description, data: bytes) -> None:
    asked: list[Digest] = []
    store = filled(described, data, without=(3, 17))
    source = filled(described, data)

    def answer(digest: Digest, _: int) -> list[object]:
        asked.append(digest)
        return [Found(digest, source.get(digest))]

    await fetch(described.root, store, [ALICE], swarm(alice=answering(answer)).open)
    assert sorted(asked) == sorted(digest_of(data[at * 1024 : at * 1024 + 1024]) for at in (3, 17))
    assert (await fetch(described.root, store, [], swarm().open)).received == {}


async def test_a_corrupt_provider_is_named_and_the_content_completes_from_another(
    swarm: MakeSwarm, store: Store, full: Store, described: Description, data: bytes
) -> None:
    def lie(digest: Digest, count: int) -> list[object]:
        truth = full.get(digest)
        return [Found(digest, truth if count < 5 else truth[:-1] + bytes([truth[-1] ^ 1]))]

    async def bob(stream: trio.abc.Stream) -> None:
        await swarm_.caught.wait()  # else he may have given everything before she has lied
        await serve_content(full, stream)

    swarm_ = swarm(alice=answering(lie), bob=bob)
    report = await fetch(described.root, store, [ALICE, BOB], swarm_.open, on_violation=swarm_.accuse)
    assert store.path(described.root).read_bytes() == data
    assert report.liars == (ALICE,)
    assert swarm_.accused == [(ALICE, "CorruptBlock")]


@pytest.mark.parametrize(
    "lie",
    [
        lambda digest: [Found(digest_of(b"something else"), b"something else")],
        lambda digest: [Absent(digest_of(b"something else"))],
        lambda digest: [Found(digest, b"")],
        lambda digest: [Absent(digest), Absent(digest)],
        lambda digest: [Want((digest,))],
    ],
    ids=["unsolicited block", "unsolicited absence", "empty bytes", "two answers", "a request"],
)
async def test_whoever_leaves_the_protocol_is_named(
    swarm: MakeSwarm, full: Store, store: Store, described: Description, lie: Callable[[Digest], list[object]]
) -> None:
    def answer(digest: Digest, count: int) -> list[object]:
        return [Found(digest, full.get(digest))] if count < 2 else lie(digest)

    swarm_ = swarm(alice=answering(answer))
    with pytest.raises(BlockAbsent):
        await fetch(described.root, store, [ALICE], swarm_.open, on_violation=swarm_.accuse)
    assert [name for name, _ in swarm_.accused] == [ALICE]


async def test_garbage_and_oversized_frames_are_named_before_they_have_arrived(
    swarm: MakeSwarm, store: Store, full: Store, described: Description
) -> None:
    async def oversized(stream: trio.abc.Stream) -> None:
        await stream.send_all((1 << 31).to_bytes(4, "big"))
        await trio.sleep_forever()

    async def garbage(stream: trio.abc.Stream) -> None:
        await stream.send_all(bytes([0, 0, 0, 100]) + bytes(range(200)))
        await trio.sleep_forever()

    swarm_ = swarm(alice=oversized, bob=garbage, carol=honest(full))
    with pytest.raises(BlockAbsent):
        await fetch(described.root, store, [ALICE, BOB], swarm_.open, on_violation=swarm_.accuse)
    assert sorted(swarm_.accused) == [(ALICE, "ProtocolViolation"), (BOB, "ProtocolViolation")]
    await fetch(described.root, store, [CAROL], swarm_.open)


async def test_a_stream_that_ends_in_mid_answer_costs_nothing_but_its_source(
    swarm: MakeSwarm, store: Store, full: Store, described: Description, data: bytes
) -> None:
    async def half(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(frames().encode(Found(described.root, described.manifest_bytes))[:-1])

    swarm_ = swarm(
        alice=half, bob=answering(lambda d, n: [Found(d, full.get(d))] if n < 9 else None), carol=honest(full)
    )
    report = await fetch(described.root, store, [ALICE, BOB, CAROL], swarm_.open, on_violation=swarm_.accuse)
    assert store.path(described.root).read_bytes() == data
    assert (report.liars, swarm_.accused) == ((), [])


async def test_a_busy_source_is_left_without_blame(
    swarm: MakeSwarm, store: Store, full: Store, described: Description, data: bytes
) -> None:
    swarm_ = swarm(alice=turn_away, bob=honest(full))
    with pytest.raises(BusyError):
        await fetch(described.root, store, [ALICE], swarm_.open, on_violation=swarm_.accuse)
    report = await fetch(described.root, store, [ALICE, BOB], swarm_.open, on_violation=swarm_.accuse)
    assert (report.liars, swarm_.accused) == ((), [])


async def test_a_silent_source_is_left_when_it_stalls(
    swarm: MakeSwarm, store: Store, full: Store, described: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "STALL_S", dict.fromkeys(Transport, 0.02))
    with pytest.raises(TimedOut):
        await fetch(described.root, store, [ALICE], swarm(alice=silent).open)
    await fetch(described.root, store, [ALICE, BOB], swarm(alice=silent, bob=honest(full)).open)


async def test_sources_that_cannot_be_reached_are_no_peers(
    swarm: MakeSwarm, store: Store, described: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(peer: PeerId) -> trio.abc.Stream:
        raise NoPeers("connection refused", peer=peer)

    async def hangs(peer: PeerId) -> trio.abc.Stream:
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(talk, "OPEN_S", 0.02)
    for open_stream in (refused, hangs):
        with pytest.raises(NoPeers):
            await fetch(described.root, store, [ALICE, BOB], open_stream)
    with pytest.raises(NoPeers):
        await fetch(described.root, store, [], refused)


async def test_what_no_source_has_is_absent_and_the_rest_is_kept(
    swarm: MakeSwarm, store: Store, described: Description, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "HOPE_S", 0.2)
    with pytest.raises(BlockAbsent) as caught:
        await fetch(described.root, store, [ALICE], swarm(alice=honest(MemoryStore(10))).open)
    assert caught.value.digest == described.root
    with pytest.raises(BlockAbsent) as caught:
        await fetch(described.root, store, [ALICE], swarm(alice=honest(filled(described, data, without=(7,)))).open)
    assert caught.value.digest == digest_of(data[7 * 1024 : 8 * 1024])
    assert [piece.index for piece in store.missing(described.root)] == [7]


async def test_a_manifest_that_lies_fails_the_fetch_and_blames_no_source(swarm: MakeSwarm, store: Store) -> None:
    leaf = pack(Leaf((digest_of(b"five!"),)))
    lies = [
        pack(Manifest(1, "model", 1 << 40, 1024, None, (), (digest_of(leaf),), ())),
        pack(Manifest(1, "nonsense", 5, 1024, None, (), (digest_of(leaf),), ())),
        pack(Manifest(1, "model", 1024 * 4097, 1024, None, (), (digest_of(leaf),) * 2, ())),
        pack(Manifest(1, "model", 4, 1024, None, (), (digest_of(leaf),), ())),
        b"not a manifest at all",
    ]
    for manifest in lies:
        source = MemoryStore(QUOTA_BYTES)
        root = source.put_block(manifest)
        source.put_block(leaf)
        source.put_block(b"five!")
        swarm_ = swarm(alice=honest(source))
        with pytest.raises(ProtocolViolation) as caught:
            await fetch(root, store, [ALICE], swarm_.open, on_violation=swarm_.accuse)
        assert (caught.value.peer, swarm_.accused) == (None, [])
        assert all(not store.stat(known).complete for known in store.roots())


async def test_a_content_above_the_callers_limit_is_refused_at_its_manifest(
    swarm: MakeSwarm, store: Store, full: Store, described: Description, data: bytes
) -> None:
    with pytest.raises(QuotaExceeded):
        await fetch(described.root, store, [ALICE], swarm(alice=honest(full)).open, limit_bytes=len(data) - 1)
    assert store.used_bytes() == 0
    with pytest.raises(QuotaExceeded):
        await fetch(described.root, MemoryStore(20_000), [ALICE], swarm(alice=honest(full)).open)


async def test_a_cancelled_fetch_keeps_what_came_and_the_next_goes_on(
    swarm: MakeSwarm, store: Store, full: Store, described: Description, data: bytes
) -> None:
    with trio.CancelScope() as scope:
        await fetch(
            described.root,
            store,
            [ALICE],
            swarm(alice=answering(lambda d, n: [Found(d, full.get(d))] if n < 13 else [])).open,
            on_progress=lambda now: scope.cancel() if now.kept_bytes >= 10 * 1024 else None,
        )
    assert scope.cancelled_caught
    assert 10 * 1024 <= store.stat(described.root).have_bytes < len(data)
    report = await fetch(described.root, store, [ALICE], swarm(alice=honest(full)).open)
    assert 0 < report.received[ALICE] <= len(data) - 10 * 1024
    assert store.path(described.root).read_bytes() == data


async def test_one_block_comes_from_the_first_source_that_has_it(swarm: MakeSwarm, store: Store, full: Store) -> None:
    digest = full.put_block(b"an envelope")
    swarm_ = swarm(alice=honest(MemoryStore(10)), bob=answering(lambda d, _: [Found(d, b"a lie")]), carol=honest(full))
    sources = [ALICE, BOB, CAROL]
    assert await fetch_block(digest, store, sources, swarm_.open, on_violation=swarm_.accuse) == b"an envelope"
    assert swarm_.accused == [(BOB, "CorruptBlock")]
    assert await fetch_block(digest, store, [], swarm_.open) == b"an envelope"
    with pytest.raises(BlockAbsent):
        await fetch_block(digest_of(b"nowhere"), store, sources, swarm_.open)


async def test_one_block_from_sources_that_fail(
    swarm: MakeSwarm, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block, "BLOCK_S", 0.02)
    digest = digest_of(b"anything")
    busy = answering(lambda *_: [Busy()])
    swarm_ = swarm(alice=silent, bob=busy, carol=answering(lambda *_: [Absent(digest_of(b"other"))]))
    with pytest.raises(BusyError):
        await fetch_block(digest, store, [CAROL, ALICE, BOB], swarm_.open, on_violation=swarm_.accuse)
    assert swarm_.accused == [(CAROL, "ProtocolViolation")]
    with pytest.raises(NoPeers):
        await fetch_block(digest, store, [], swarm_.open)


async def test_a_provider_refuses_a_requester_that_asks_too_much_or_talks_nonsense(full: Store) -> None:
    want = frames().encode(Want(tuple(digest_of(bytes([at])) for at in range(64))))
    for opening in (want * 5, frames().encode(Absent(digest_of(b""))), b"\0\0\0\1\xff", b"\xff" * 8):
        ours, theirs = trio.testing.memory_stream_pair()
        await ours.send_all(opening)
        with pytest.raises(ProtocolViolation), trio.fail_after(5):
            await serve_content(full, theirs)


async def test_a_provider_ends_with_its_requester_and_tires_of_an_idle_one(
    full: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await ours.aclose()
    with trio.fail_after(5):
        await serve_content(full, theirs)
        monkeypatch.setattr(provider, "IDLE_S", 0.02)
        ours, theirs = trio.testing.memory_stream_pair()
        await serve_content(full, theirs)
        assert await ours.receive_some() == b""


async def test_a_provider_gives_up_on_a_requester_that_does_not_read(
    full: Store, described: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider, "SEND_S", 0.02)
    theirs, ours = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        with trio.fail_after(5):
            nursery.start_soon(ours.send_all, frames().encode(Want((described.root,))))
            await serve_content(full, theirs)
