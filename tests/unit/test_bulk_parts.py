"""The parts of the bulk process and of its node's side that can be had without either."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

import celluler
import celluler_node as node
import celluler_protocols as protocols
from celluler.content.bulk_frames import ABSENT, REFUSED_BUSY
from celluler.content.digest import Digest, digest_of
from celluler.content.disk import DiskStore
from celluler.content.movers import Chunk, Falsified, Lacking, Placed
from celluler.content.reader import StoreReader
from celluler.errors import Busy, LocalError, ProtocolViolation, QuotaExceeded, Unavailable
from celluler.identity import Identity
from celluler_node.bulk import server, words
from celluler_node.bulk.mover import BulkMover
from celluler_node.bulk.news import BATCH_OUTCOMES, Bulletin
from celluler_node.bulk.server import Serving
from celluler_node.bulk.service import MAX_PEERS, BulkMeter, _Traffic
from celluler_node.bulk.throttle import Throttle
from celluler_node.bulk.words import (
    Admitted,
    Carried,
    Declined,
    Ended,
    Fetch,
    News,
    Patience,
    unpack_chunks,
    unpack_outcomes,
)
from celluler_node.processes.words import Reply

pytestmark = pytest.mark.thorough

WAIT_S = 10.0
ROOT = digest_of(b"root")


# --- news ------------------------------------------------------------------------------------------------------


class Reader:
    """Takes one batch of news at a time."""

    def __init__(self, bulletin: Bulletin) -> None:
        self._bulletin = bulletin
        threading.Thread(target=bulletin.tell, daemon=True).start()

    def next(self) -> tuple[News, list[words.Outcome]]:
        told, came = list[Reply](), threading.Event()

        def take(reply: Reply) -> None:
            told.append(reply)
            came.set()

        self._bulletin.wanted(take)
        assert came.wait(WAIT_S)
        return told[0].record, list(unpack_outcomes(told[0].blobs[0]))


def test_outcomes_come_together_and_an_end_comes_after_them() -> None:
    bulletin = Bulletin()
    for number in range(5):
        bulletin.outcome(1, number, words.PLACED)
    bulletin.ended(1, words.GONE, "closed")
    bulletin.released(7)
    news, outcomes = Reader(bulletin).next()
    assert outcomes == [(1, number, words.PLACED) for number in range(5)]
    assert (news.ended, news.released) == ((Ended(1, words.GONE, "closed"),), (7,))


def test_nothing_is_lost_however_much_there_is_to_tell() -> None:
    bulletin, count = Bulletin(), 40_000
    for number in range(count):
        bulletin.outcome(1, number, words.LACKING)
    for number in range(1000):
        bulletin.ended(number, words.GONE, "")
        bulletin.released(number)
    reader, outcomes, ended, released = Reader(bulletin), list[words.Outcome](), list[int](), list[int]()
    while len(ended) < 1000:
        news, more = reader.next()
        assert not (more and news.ended) or len(outcomes) + len(more) == count
        outcomes += more
        ended += [one.transfer for one in news.ended]
        released += news.released
    assert [number for _, number, _ in outcomes] == list(range(count))
    assert ended == list(range(1000))
    assert released == list(range(1000))


def test_a_reader_that_waits_is_told_of_a_single_outcome() -> None:
    bulletin = Bulletin()
    reader = Reader(bulletin)
    for number in range(BATCH_OUTCOMES + 3):
        bulletin.outcome(1, number, words.PLACED)
        assert reader.next()[1] == [(1, number, words.PLACED)]


def test_bytes_that_were_sent_are_told_in_the_end() -> None:
    bulletin = Bulletin()
    alice = Identity(bytes(32)).peer_id
    bulletin.carried(alice, 3)
    bulletin.carried(alice, 4)
    assert Reader(bulletin).next()[0].carried == (Carried(alice, 7),)


def test_the_process_carries_no_identity_and_no_network_library() -> None:
    code = "import celluler_node.bulk.process, sys; print(*sys.modules)"
    paths = os.pathsep.join(str(Path(package.__path__[0]).parent) for package in (celluler, protocols, node))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env={"PYTHONPATH": paths})
    loaded = set(done.stdout.decode().split())
    assert "celluler_node.bulk.process" in loaded
    assert not loaded & {"trio", "asyncio", "libp2p", "hivemind", "torch", "numpy", "celluler.identity"}


# --- who is let in ---------------------------------------------------------------------------------------------


class FakeWire:
    """A client that asks nothing until it is cut."""

    def __init__(self) -> None:
        self.gone = threading.Event()

    def receive_into(self, _view: memoryview, _deadline_s: float) -> int:
        assert self.gone.wait(WAIT_S)
        return 0

    def cut(self) -> None:
        self.gone.set()

    close = cut


@pytest.fixture
def serving(tmp_path: Path):
    store = DiskStore(tmp_path / "store", 1 << 20)
    (tmp_path / "file").write_bytes(b"content")
    root = store.add(tmp_path / "file", "blob")
    with StoreReader(tmp_path / "store") as reader:
        yield Serving(reader, Bulletin(), Throttle(0), Patience()), root
    store.close()


def peer(number: int) -> str:
    return Identity(number.to_bytes(32, "big")).peer_id


def come_in(serving: Serving, root: bytes, number: int) -> FakeWire | None:
    admitted, wire = serving.admit(peer(number), root), FakeWire()
    if isinstance(admitted, Declined):
        assert admitted.reason == REFUSED_BUSY
        return None
    return wire if serving.redeem(admitted.ticket, wire) else None  # type: ignore[arg-type]


def test_what_is_not_here_is_declined(serving) -> None:
    assert serving[0].admit(peer(1), ROOT) == Declined(ABSENT)


def test_a_whole_content_is_admitted_without_a_bitmap(serving) -> None:
    admitted = serving[0].admit(peer(1), serving[1])
    assert isinstance(admitted, Admitted)
    assert admitted.have == b""


def test_a_peer_takes_no_more_than_its_places(serving) -> None:
    wires = [come_in(*serving, 1) for _ in range(4)]
    assert [wire is not None for wire in wires] == [True, True, False, False]
    late = come_in(*serving, 2)
    assert late is not None
    for wire in (*wires[:2], late):
        wire.cut()


def test_when_all_places_are_taken_the_one_that_asks_nothing_makes_room(serving, monkeypatch) -> None:
    monkeypatch.setattr(server, "MAX_SERVED", 3)
    wires = [come_in(*serving, number) for number in range(3)]
    assert come_in(*serving, 4) is None, "nobody has been idle for long"
    monkeypatch.setattr(server, "SPARE_IDLE_S", 0.0)
    late = come_in(*serving, 5)
    assert late is not None
    assert [wire.gone.is_set() for wire in wires] == [True, False, False]
    for wire in (*wires, late):
        wire.cut()


# --- the node's half -------------------------------------------------------------------------------------------


class Process:
    """Answers every call, and remembers it."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, Chunk]] = []

    async def call(self, request: Any, *blobs: Any) -> Reply:
        assert isinstance(request, Fetch)
        self.asked += unpack_chunks(bytearray(blobs[0]))
        return Reply(words.Done())


CHUNKS = [Chunk(digest_of(bytes([n])), n + 1, tuple(range(n + 1))) for n in range(3)]


async def test_a_mover_tells_what_became_of_each_chunk() -> None:
    process, placed = Process(), list[int]()
    mover = BulkMover(1, "alice", process.call, placed.append)
    await mover.ask(CHUNKS)
    assert process.asked == list(enumerate(CHUNKS))
    for number, outcome in ((2, words.PLACED), (0, words.LACKING), (1, words.FALSIFIED), (1, words.PLACED), (9, 0)):
        mover.came(number, outcome)
    expected = [Placed(CHUNKS[2].digest), Lacking(CHUNKS[0].digest), Falsified(CHUNKS[1].digest)]
    assert list(await mover.receive()) == expected
    assert placed == [3]


async def test_a_mover_waits_until_there_is_something(autojump_clock) -> None:
    mover = BulkMover(1, "alice", Process().call, lambda count: None)
    await mover.ask(CHUNKS)

    async def later() -> None:
        await trio.sleep(5)
        mover.came(0, words.PLACED)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(later)
        assert await mover.receive() == (Placed(CHUNKS[0].digest),)
    assert trio.current_time() >= 5


@pytest.mark.parametrize(
    ("why", "error"),
    [
        (words.BUSY, Busy),
        (words.VIOLATION, ProtocolViolation),
        (words.DISK, LocalError),
        (words.FULL, QuotaExceeded),
    ],
)
async def test_the_end_of_a_transfer_says_what_to_do(why: int, error: type[Exception]) -> None:
    mover = BulkMover(1, "alice", Process().call, lambda count: None)
    await mover.ask(CHUNKS)
    mover.came(0, words.PLACED)
    mover.end(Ended(1, why, "reason"))
    assert await mover.receive() == (Placed(CHUNKS[0].digest),)
    for _ in range(2):
        with pytest.raises(error):
            await mover.receive()
    with pytest.raises(error):
        await mover.ask(CHUNKS)


async def test_a_source_that_went_away_gives_nothing_more_and_cannot_be_asked() -> None:
    mover = BulkMover(1, "alice", Process().call, lambda count: None)
    mover.end(Ended(1, words.GONE, "closed"))
    assert await mover.receive() == ()
    with pytest.raises(Unavailable):
        await mover.ask(CHUNKS)


class NoProcess:
    running = None


@pytest.mark.parametrize("up", [True, False])
async def test_the_meter_holds_the_limit_when_there_is_no_process(up: bool, autojump_clock) -> None:
    meter = BulkMeter(NoProcess(), 1 << 20, 1 << 20)  # type: ignore[arg-type]
    passes: Callable[[int], Any] = meter.send if up else meter.receive
    for _ in range(10):
        await passes(1 << 20)
    assert 9.5 <= trio.current_time() <= 10.5


async def test_without_limits_the_meter_lets_everything_pass(autojump_clock) -> None:
    meter = BulkMeter(NoProcess(), 0, 0)  # type: ignore[arg-type]
    await meter.send(1 << 40)
    await meter.receive(1 << 40)
    assert trio.current_time() == 0


def test_the_traffic_of_so_many_peers_is_remembered_and_no_more() -> None:
    traffic = _Traffic()
    for number in range(MAX_PEERS + 5):
        traffic.sent(f"peer {number}", 1)
        traffic.received("peer 0", 2)
    assert len(traffic.all()) == MAX_PEERS
    assert traffic.all()["peer 0"] == (1, 2 * (MAX_PEERS + 5))
    assert "peer 1" not in traffic.all()


def test_chunks_travel_to_the_process_as_they_are() -> None:
    many = Chunk(Digest(bytes(32)), 1 << 20, tuple(range(0, 1 << 34, 1 << 20)))
    packed = words.pack_chunks([(7, many), *enumerate(CHUNKS)])
    assert list(unpack_chunks(bytearray(packed))) == [(7, many), *enumerate(CHUNKS)]
