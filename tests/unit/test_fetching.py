"""The node's fetcher: whom it asks, who shares a transfer, what it tells and what it remembers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import trio

from celluler.content.digest import Digest, digest_of
from celluler.content.disk import DiskStore
from celluler.content.manifest import Description
from celluler.content.store import Store
from celluler.errors import NotFound, QuotaExceeded, Unavailable
from celluler.identity import PeerId
from celluler_node import fetching
from celluler_node.answers.content import all_within
from celluler_node.fetching import Fetcher
from celluler_node.notes import MAX_PEERS, NOTE_S, Notes
from celluler_protocols.content import Found
from celluler_protocols.nursery import own_nursery
from tests.support.content_swarm import (
    ALICE,
    BOB,
    CAROL,
    QUOTA_BYTES,
    MakeSwarm,
    Swarm,
    answering,
    content_of,
    filled,
    holding_chunks_back,
    honest,
    open_swarm,
)

OWN = PeerId("own")


@dataclass
class Directory:
    """Knows what a test says, and remembers what it was told."""

    known: dict[Digest, tuple[PeerId, ...]] = field(default_factory=dict)
    told: list[bytes] = field(default_factory=list)
    asked: int = 0

    async def provide(self, digest: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.told.append(digest)

    def withdraw(self, digest: bytes) -> None:
        self.told.remove(digest)

    async def providers(self, digest: bytes) -> tuple[PeerId, ...]:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        if Digest(digest) not in self.known:
            raise Unavailable("no record")
        return self.known[Digest(digest)]


@pytest.fixture
async def swarm() -> AsyncIterator[MakeSwarm]:
    async with open_swarm() as make:
        yield make


@pytest.fixture
def content(tmp_path: Path) -> tuple[Description, bytes]:
    return content_of(tmp_path, 40)


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


class Told:
    """What the fetcher said of others."""

    def __init__(self) -> None:
        self.penalised: list[PeerId] = []
        self.notes: list[tuple[PeerId, bytes, bytes, str]] = []


@asynccontextmanager
async def fetcher(
    swarm: Swarm,
    store: Store,
    directory: Directory | None = None,
    *,
    members: tuple[PeerId, ...] = (),
    told: Told | None = None,
    doubts: dict[PeerId, int] | None = None,
) -> AsyncIterator[Fetcher]:
    told = told or Told()
    async with own_nursery() as nursery:
        yield Fetcher(
            OWN,
            store,
            directory or Directory(),
            lambda peer, _: swarm.open(peer),
            lambda: members,
            nursery,
            penalise=lambda peer, _: told.penalised.append(peer),
            provides=True,
            note=lambda *note: told.notes.append(note),
            doubts=lambda peer: (doubts or {}).get(peer, 0),
        )
        await trio.testing.wait_all_tasks_blocked()


async def test_a_content_comes_from_a_hint_and_is_provided_from_then_on(
    swarm: MakeSwarm, store: Store, full: Store, described: Description, data: bytes
) -> None:
    directory = Directory()
    async with fetcher(swarm(alice=honest(full)), store, directory) as fetch:
        path = await fetch.content(described.root, hints=[ALICE])
        assert path.read_bytes() == data
        assert fetch.moved(described.root) == {ALICE: len(data)}
        assert fetch.transfers() == ()
        assert await fetch.content(described.root) == path
    assert directory.told == [described.root]


async def test_the_directory_is_asked_beside_a_hint_that_has_nothing(
    swarm: MakeSwarm, store: Store, full: Store, described: Description, data: bytes, tmp_path: Path
) -> None:
    empty = DiskStore(tmp_path / "empty", QUOTA_BYTES)
    swarm_ = swarm(alice=honest(empty), bob=honest(full))
    async with fetcher(swarm_, store, Directory({described.root: (BOB, OWN)})) as fetch:
        assert (await fetch.content(described.root, hints=[ALICE])).read_bytes() == data
    assert OWN not in swarm_.opened
    empty.close()


async def test_members_are_asked_only_when_nobody_else_helps(
    swarm: MakeSwarm, store: Store, full: Store, described: Description, data: bytes
) -> None:
    swarm_ = swarm(alice=honest(full), bob=honest(full))
    async with fetcher(swarm_, store, members=(BOB,)) as fetch:
        await fetch.content(described.root, hints=[ALICE])
        assert swarm_.opened == [ALICE]
        store.remove(described.root)
        assert (await fetch.content(described.root)).read_bytes() == data
        assert swarm_.opened == [ALICE, BOB]
        with pytest.raises(NotFound):
            await fetch.content(digest_of(b"nowhere"))


async def test_two_that_want_the_same_share_one_transfer(
    swarm: MakeSwarm, store: Store, full: Store, described: Description, data: bytes
) -> None:
    gate, swarm_ = trio.Event(), None
    swarm_ = swarm(alice=holding_chunks_back(full, described, gate))
    paths: list[Path] = []
    async with fetcher(swarm_, store) as fetch, trio.open_nursery() as nursery:

        async def pull() -> None:
            paths.append(await fetch.content(described.root, hints=[ALICE], name="alice/digits"))

        nursery.start_soon(pull)
        nursery.start_soon(pull)
        while not (states := fetch.transfers()) or not states[0].progress.wanted_bytes:  # noqa: ASYNC110
            await trio.sleep(0.01)
        assert [(state.root, state.name) for state in states] == [(described.root, "alice/digits")]
        gate.set()
    assert [path.read_bytes() for path in paths] == [data, data]
    assert swarm_.opened == [ALICE]


async def test_a_caller_that_gives_up_does_not_end_it_for_the_other_and_the_last_one_does(
    swarm: MakeSwarm, store: Store, full: Store, described: Description, data: bytes
) -> None:
    gate = trio.Event()
    async with fetcher(swarm(alice=holding_chunks_back(full, described, gate)), store) as fetch:
        for ends_well in (False, True):
            async with trio.open_nursery() as nursery:
                with trio.move_on_after(0.05):
                    if ends_well:
                        nursery.start_soon(lambda: fetch.content(described.root, hints=[ALICE]))
                    await fetch.content(described.root, hints=[ALICE])
                assert bool(fetch.transfers()) == ends_well
                gate.set() if ends_well else None
        assert store.path(described.root).read_bytes() == data


async def test_part_of_a_content_is_enough_for_who_wants_no_more(
    swarm: MakeSwarm, store: Store, full: Store, described: Description, data: bytes
) -> None:
    async with fetcher(swarm(alice=honest(full)), store) as fetch:
        part = await fetch.content(described.root, hints=[ALICE], select=lambda _: [3])
        assert part.read_bytes()[3 * 1024 : 4 * 1024] == data[3 * 1024 : 4 * 1024]
        assert sum(fetch.moved(described.root).values()) == 1024
        assert (await fetch.content(described.root, hints=[ALICE])).read_bytes() == data
        assert sum(fetch.moved(described.root).values()) == len(data)


async def test_what_is_larger_than_asked_for_is_not_begun(
    swarm: MakeSwarm, store: Store, full: Store, described: Description, data: bytes
) -> None:
    async with fetcher(swarm(alice=honest(full)), store) as fetch:
        with pytest.raises(QuotaExceeded, match="no more than"):
            await fetch.content(described.root, hints=[ALICE], select=partial(all_within, len(data) - 1))
        assert not sum(fetch.moved(described.root).values())
        whole = await fetch.content(described.root, hints=[ALICE], select=partial(all_within, len(data)))
        assert whole.read_bytes() == data


async def test_what_is_large_is_provided_as_soon_as_it_is_begun(
    swarm: MakeSwarm, store: Store, full: Store, described: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "PROVIDE_PART_BYTES", 1024)
    directory, gate = Directory(), trio.Event()
    swarm_ = swarm(alice=holding_chunks_back(full, described, gate))
    async with fetcher(swarm_, store, directory) as fetch, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: fetch.content(described.root, hints=[ALICE]))
        while not directory.told:  # noqa: ASYNC110 - told by another task
            await trio.sleep(0.01)
        assert not store.stat(described.root).complete
        gate.set()
    assert directory.told == [described.root]


async def test_a_liar_is_penalised_noted_told_of_and_asked_last_from_then_on(
    swarm: MakeSwarm, store: Store, full: Store, described: Description
) -> None:
    lie = answering(lambda digest, n: [Found(digest, full.get(digest) if n < 2 else b"!" * 1024)])
    told = Told()
    block = full.put_block(b"an envelope")
    swarm_ = swarm(alice=lie, bob=honest(full), carol=honest(full))
    async with fetcher(swarm_, store, told=told, doubts={BOB: 2}) as fetch:
        with pytest.raises(NotFound):
            await fetch.content(described.root, hints=[ALICE])
        ((peer, root, digest, reason),) = told.notes
        assert (told.penalised, peer, root, reason) == ([ALICE], ALICE, described.root, "CorruptBlock")
        assert digest in {piece.digest for piece in described.layout()}
        assert [note.peer for note in fetch.notes.all()] == [ALICE]
        swarm_.opened.clear()
        await fetch.block(block, hints=[ALICE, BOB, CAROL])
        assert swarm_.opened == [CAROL]  # Alice lied to us, and others say that Bob did


async def test_a_block_comes_from_a_hint_or_else_from_whom_the_directory_knows(
    swarm: MakeSwarm, store: Store, full: Store, tmp_path: Path
) -> None:
    digest = full.put_block(b"an envelope")
    empty = DiskStore(tmp_path / "empty", QUOTA_BYTES)
    swarm_ = swarm(alice=honest(empty), bob=honest(full))
    async with fetcher(swarm_, store, Directory({digest: (BOB,)})) as fetch:
        assert await fetch.block(digest, hints=[ALICE]) == b"an envelope"
        with pytest.raises(NotFound):
            await fetch.block(digest_of(b"nowhere"), hints=[ALICE])
    empty.close()


def test_notes_are_bounded_and_fade() -> None:
    now, root = 100.0, digest_of(b"root")
    notes = Notes(lambda: now)
    for number in range(MAX_PEERS + 10):
        notes.add(PeerId(f"peer{number}"), root, root, "CorruptBlock")
    assert len(notes.all()) == MAX_PEERS
    assert not notes.suspect(PeerId("peer9"))
    assert notes.suspect(PeerId("peer10"))
    now += NOTE_S
    assert notes.all() == ()
