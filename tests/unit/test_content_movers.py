"""Fetching over streams and movers mixed, in part, from sources that grow or come later, for several callers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from celluler.content import download, window
from celluler.content.digest import Digest
from celluler.content.disk import DiskStore
from celluler.content.manifest import Description, Manifest
from celluler.content.movers import Falsified, Moved
from celluler.content.progress import Progress, Transport
from celluler.content.store import Store
from celluler.errors import BlockAbsent, InvalidSpec, LocalError, Unavailable
from celluler.errors import Busy as BusyError
from celluler.identity import PeerId
from celluler_protocols.content import Absent, Found, Transfer, fetch, serve_content, talk
from tests.support.content_swarm import (
    ALICE,
    BOB,
    CAROL,
    QUOTA_BYTES,
    MakeSwarm,
    Movers,
    answering,
    content_of,
    filled,
    holding_chunks_back,
    honest,
    open_swarm,
)

CHUNKS = 300  # more than one source is asked for at once


@pytest.fixture
async def swarm(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeSwarm]:
    monkeypatch.setattr(talk, "UPGRADE_BYTES", 1)
    async with open_swarm() as make:
        yield make


@pytest.fixture
def content(tmp_path: Path) -> tuple[Description, bytes]:
    return content_of(tmp_path, CHUNKS)


@pytest.fixture
def described(content: tuple[Description, bytes]) -> Description:
    return content[0]


@pytest.fixture
def data(content: tuple[Description, bytes]) -> bytes:
    return content[1]


@pytest.fixture
def full(described: Description, data: bytes) -> Store:
    return filled(described, data)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = DiskStore(tmp_path / "store", QUOTA_BYTES)
    yield store
    store.close()


class Meter:
    """Counts, and holds nothing back."""

    def __init__(self) -> None:
        self.sent = self.received = 0

    async def send(self, count: int) -> None:
        await trio.lowlevel.checkpoint()
        self.sent += count

    async def receive(self, count: int) -> None:
        await trio.lowlevel.checkpoint()
        self.received += count


# --- movers ----------------------------------------------------------------------------------------------------


async def test_chunks_come_by_a_mover_once_the_content_is_begun(
    swarm: MakeSwarm, store: Store, full: Store, described: Description, data: bytes
) -> None:
    movers, seen = Movers({ALICE: full}), list[Progress]()
    swarm_ = swarm(alice=holding_chunks_back(full, described, movers.there))
    report = await fetch(described.root, store, [ALICE], swarm_.open, open_mover=movers.open, on_progress=seen.append)
    assert store.path(described.root).read_bytes() == data
    assert (dict(report.received), report.liars) == ({ALICE: len(data)}, ())
    assert len(movers.opened) == movers.closed == len(swarm_.opened) == 1
    assert movers.opened[0].moved >= CHUNKS - 128
    assert [source.transport for source in seen[-1].sources] == [Transport.BULK]


async def test_a_source_without_a_mover_goes_on_over_its_stream_beside_one_that_has(
    swarm: MakeSwarm, store: Store, full: Store, described: Description, data: bytes
) -> None:
    movers = Movers({ALICE: full})
    swarm_ = swarm(alice=honest(full), bob=honest(full))
    report = await fetch(described.root, store, [ALICE, BOB], swarm_.open, open_mover=movers.open)
    assert store.path(described.root).read_bytes() == data
    assert sum(report.received.values()) == len(data)


async def test_when_a_mover_ends_the_stream_is_opened_again_and_carries_the_rest(
    swarm: MakeSwarm, store: Store, full: Store, described: Description, data: bytes
) -> None:
    def turn(moved: int) -> Moved | None:
        if moved == 60:
            raise ending
        return None

    for ending in (Unavailable("gone"), BusyError("no time")):  # noqa: B007 - raised in turn
        movers = Movers({ALICE: full}, turn)
        swarm_ = swarm(alice=holding_chunks_back(full, described, movers.there))
        report = await fetch(described.root, store, [ALICE], swarm_.open, open_mover=movers.open)
        assert store.path(described.root).read_bytes() == data
        assert (report.liars, movers.closed) == ((), 1)
        store.remove(described.root)


async def test_a_mover_that_found_a_lie_names_its_source_and_the_others_go_on(
    swarm: MakeSwarm, store: Store, full: Store, described: Description, data: bytes
) -> None:
    def turn(moved: int) -> Moved | None:
        return Falsified(Digest(bytes(32))) if moved == 5 else None

    async def bob(stream: trio.abc.Stream) -> None:
        await swarm_.caught.wait()
        await honest(full)(stream)

    movers = Movers({ALICE: full}, turn)
    swarm_ = swarm(alice=holding_chunks_back(full, described, movers.there), bob=bob)
    report = await fetch(
        described.root, store, [ALICE, BOB], swarm_.open, open_mover=movers.open, on_violation=swarm_.accuse
    )
    assert store.path(described.root).read_bytes() == data
    assert (report.liars, swarm_.accused) == ((ALICE,), [(ALICE, "CorruptBlock")])
    assert report.received[ALICE] <= (128 + 5) * 1024


async def test_what_a_mover_lacks_another_source_gives(
    swarm: MakeSwarm, store: Store, full: Store, described: Description, data: bytes
) -> None:
    half = filled(described, data, without=range(150))
    movers = Movers({ALICE: half})
    swarm_ = swarm(alice=holding_chunks_back(full, described, movers.there), bob=honest(full))
    report = await fetch(described.root, store, [ALICE, BOB], swarm_.open, open_mover=movers.open)
    assert store.path(described.root).read_bytes() == data
    assert report.liars == ()


async def test_a_little_is_not_worth_a_mover(
    swarm: MakeSwarm, store: Store, full: Store, described: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(talk, "UPGRADE_BYTES", 1 << 20)
    movers = Movers({ALICE: full})
    await fetch(described.root, store, [ALICE], swarm(alice=honest(full)).open, open_mover=movers.open)
    assert movers.opened == []


async def test_the_nodes_own_traffic_is_metered_on_both_sides(
    swarm: MakeSwarm, store: Store, full: Store, described: Description, data: bytes
) -> None:
    up, down = Meter(), Meter()
    swarm_ = swarm(alice=lambda stream: serve_content(full, stream, meter=up))
    await fetch(described.root, store, [ALICE], swarm_.open, meter=down)
    assert up.sent >= down.received >= len(data)


# --- parts -----------------------------------------------------------------------------------------------------


async def test_only_the_pieces_that_were_selected_are_asked_for(
    swarm: MakeSwarm, store: Store, full: Store, described: Description, data: bytes
) -> None:
    asked: list[Digest] = []

    def answer(digest: Digest, _: int) -> list[object]:
        asked.append(digest)
        return [Found(digest, full.get(digest))]

    seen: list[Progress] = []
    swarm_ = swarm(alice=answering(answer))
    await fetch(described.root, store, [ALICE], swarm_.open, select=lambda _: [7, 8, 299], on_progress=seen.append)
    assert len(asked) == 2 + 3
    assert (seen[-1].kept_bytes, seen[-1].wanted_bytes) == (2048 + 9, 2048 + 9)
    part = store.partial(described.root, [7, 8, 299]).read_bytes()
    assert part[7 * 1024 : 9 * 1024] == data[7 * 1024 : 9 * 1024]
    assert part[299 * 1024 :] == data[299 * 1024 :]
    assert not store.stat(described.root).complete
    await fetch(described.root, store, [], swarm_.open, select=lambda _: [8])
    assert len(asked) == 5
    await fetch(described.root, store, [ALICE], swarm_.open)
    assert len(asked) == 2 + CHUNKS
    assert store.path(described.root).read_bytes() == data


async def test_a_selection_that_makes_no_sense_fails_alone(
    swarm: MakeSwarm, store: Store, full: Store, described: Description
) -> None:
    def unknown(manifest: Manifest) -> list[int]:
        raise InvalidSpec("layers", f"no such layer in a content of {manifest.total_len} bytes")

    swarm_ = swarm(alice=honest(full))
    with pytest.raises(InvalidSpec):
        await fetch(described.root, store, [ALICE], swarm_.open, select=unknown)
    with pytest.raises(LocalError):
        await fetch(described.root, store, [ALICE], swarm_.open, select=lambda _: [CHUNKS])
    assert store.roots() == ()


async def test_a_wish_that_joins_in_is_fulfilled_by_the_same_transfer(
    swarm: MakeSwarm, store: Store, full: Store, described: Description, data: bytes
) -> None:
    asked: list[Digest] = []

    def answer(digest: Digest, _: int) -> list[object]:
        asked.append(digest)
        return [Found(digest, full.get(digest))]

    swarm_ = swarm(alice=answering(answer))
    joined = trio.Event()
    transfer = Transfer(described.root, store, swarm_.open, on_begun=lambda _: joined.set())
    first = transfer.want(lambda _: range(10))
    transfer.offer(ALICE)
    swarm_.nursery.start_soon(transfer.run)
    await joined.wait()
    late, wrong = transfer.want(lambda _: range(5, 20)), transfer.want(lambda _: [-1])
    for wish in (first, late, wrong):
        await wish.done.wait()
    assert (first.failure, late.failure, type(wrong.failure)) == (None, None, LocalError)
    assert store.partial(described.root, range(20)).read_bytes()[: 20 * 1024] == data[: 20 * 1024]
    assert len(asked) == len(set(asked)) == 2 + 20


# --- sources that grow, and that come later --------------------------------------------------------------------


async def test_a_source_that_grows_is_asked_again(
    swarm: MakeSwarm,
    store: Store,
    full: Store,
    described: Description,
    data: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(window, "LACK_S", 0.05)
    growing = filled(described, data, without=range(100, CHUNKS))
    denied = 0

    def answer(digest: Digest, _: int) -> list[object]:
        nonlocal denied
        if growing.has(digest):
            return [Found(digest, growing.get(digest))]
        denied += 1
        if denied == 250:  # by now it has fetched the rest itself
            for piece in growing.missing(described.root):
                growing.put_chunk(described.root, piece.index, full.get(piece.digest))
        return [Absent(digest)]

    report = await fetch(described.root, store, [ALICE], swarm(alice=answering(answer)).open)
    assert store.path(described.root).read_bytes() == data
    assert denied >= 250
    assert report.received == {ALICE: len(data)}


async def test_two_that_fetch_from_one_source_give_to_each_other(
    swarm: MakeSwarm,
    store: Store,
    full: Store,
    described: Description,
    data: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The source gives each chunk once, to whoever asks first."""
    monkeypatch.setattr(window, "LACK_S", 0.05)
    given: set[Digest] = set()
    blocks = {described.root, *described.manifest.leaves}

    def once(digest: Digest, _: int) -> list[object]:
        if digest in given - blocks:
            return [Absent(digest)]
        given.add(digest)
        return [Found(digest, full.get(digest))]

    other = DiskStore(tmp_path / "other", QUOTA_BYTES)
    swarm_ = swarm(alice=answering(once), bob=honest(other), carol=honest(store))
    begun = {each: trio.Event() for each in (BOB, CAROL)}

    async def pull(into: Store, own: PeerId, mate: PeerId) -> None:
        async def more() -> AsyncIterator[PeerId]:
            await begun[mate].wait()
            yield mate

        transfer = Transfer(described.root, into, swarm_.open, on_begun=lambda _: begun[own].set())
        transfer.want()
        transfer.offer(ALICE)
        await transfer.run(more())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pull, store, CAROL, BOB)
        nursery.start_soon(pull, other, BOB, CAROL)
    for each in (store, other):
        assert each.path(described.root).read_bytes() == data
    other.close()


async def test_sources_that_come_later_are_waited_for_and_used(
    swarm: MakeSwarm, store: Store, full: Store, described: Description, data: bytes
) -> None:
    tried = trio.Event()

    async def more() -> AsyncIterator[PeerId]:
        await tried.wait()
        yield CAROL

    def answer(digest: Digest, _: int) -> list[object]:
        tried.set()
        return [Absent(digest)]

    swarm_ = swarm(alice=answering(answer), carol=honest(full))
    report = await fetch(described.root, store, [ALICE], swarm_.open, more=more())
    assert report.received == {CAROL: len(data)}


async def test_when_nothing_more_comes_what_is_lacking_is_absent(
    swarm: MakeSwarm, store: Store, described: Description, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "HOPE_S", 0.1)

    async def more() -> AsyncIterator[PeerId]:
        yield BOB
        raise Unavailable("the directory went away")

    part = filled(described, data, without=[5])
    with pytest.raises(BlockAbsent):
        await fetch(described.root, store, [ALICE], swarm(alice=honest(part), bob=honest(part)).open, more=more())
    assert [piece.index for piece in store.missing(described.root)] == [5]


async def test_many_that_hold_the_same_part_do_not_keep_out_the_one_that_has_the_rest(
    swarm: MakeSwarm, store: Store, full: Store, described: Description, data: bytes
) -> None:
    part = filled(described, data, without=[5])
    crowd = {f"p{number}": honest(part) for number in range(12)}
    swarm_ = swarm(**crowd, whole=honest(full))
    await fetch(described.root, store, [*map(PeerId, crowd), PeerId("whole")], swarm_.open)
    assert store.path(described.root).read_bytes() == data


async def test_what_is_in_transfer_is_held(swarm: MakeSwarm, store: Store, full: Store, described: Description) -> None:
    gate, begun = trio.Event(), trio.Event()
    transfer = Transfer(
        described.root,
        store,
        swarm(alice=holding_chunks_back(full, described, gate)).open,
        on_begun=lambda _: begun.set(),
    )
    wish = transfer.want()
    transfer.offer(ALICE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transfer.run)
        await begun.wait()
        with pytest.raises(LocalError):
            store.remove(described.root)
        gate.set()
        await wish.done.wait()
    store.remove(described.root)
