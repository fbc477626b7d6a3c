"""When our records are put again: a rate that holds, due times of their own, and no storm for any neighbour."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from celluler.errors import LocalError, TimedOut
from celluler.identity import Identity, PeerId
from celluler_protocols.directory import Directory, DirectoryTiming, open_directory
from celluler_protocols.renewal import SPREAD, Key, Renewal

DAY_S = 24 * 3600.0
ALICE = Identity(b"a" * 32)


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def peers(*numbers: int) -> frozenset[PeerId]:
    return frozenset(PeerId(f"peer{number}") for number in numbers)


def drive(
    renewal: Renewal, until: float, *, reach: int, now: float = 0.0, put_s: float = 0.0
) -> list[tuple[float, Key]]:
    """Put whatever comes due until a virtual time."""
    puts: list[tuple[float, Key]] = []
    while now <= until:
        taken = renewal.take(now)
        if taken is None:
            now += max(renewal.wait_s(now), 1e-3)
            continue
        puts.append((now, taken))
        now += put_s
        renewal.done(taken, now, reach=reach)
    return puts


def a_renewal(**timing: float) -> Renewal:
    return Renewal(DirectoryTiming(**timing), random.Random(1), 0.0)  # type: ignore[arg-type]


def test_a_content_costs_one_record_and_some_puts_a_day_however_many_chunks_it_has() -> None:
    renewal = a_renewal()
    renewal.add(key(1), 0.0)
    puts = drive(renewal, DAY_S, reach=50)
    assert 5 <= len(puts) <= 6
    assert len(renewal) == 1


def test_a_thousand_contents_are_put_at_the_rate_allowed_and_drift_apart() -> None:
    renewal = a_renewal()
    for number in range(1000):
        renewal.add(key(number), 0.0)
    puts = drive(renewal, DAY_S, reach=50)
    assert len({taken for _, taken in puts}) == 1000
    assert 4000 <= len(puts) <= 6000
    assert max(Counter(int(at // 10) for at, _ in puts if at > 1000).values()) <= 20 + 16
    last_round = [at for at, _ in puts if at > DAY_S - 4 * 3600]
    busiest = max(Counter(int(at // 60) for at in last_round).values())
    assert busiest < 120 / 4, "by then the due times of the records have spread over hours"


def test_no_record_waits_longer_than_its_time() -> None:
    renewal = a_renewal(every_s=100.0)
    for number in range(10):
        renewal.add(key(number), 0.0)
    last: dict[Key, float] = {}
    for at, taken in drive(renewal, 2000.0, reach=50):
        assert at - last.get(taken, 0.0) <= 110.0
        last[taken] = at


def test_new_neighbours_make_nothing_due_where_records_lie_at_twenty_peers() -> None:
    renewal = a_renewal()
    for number in range(16):
        renewal.add(key(number), 0.0)
    assert len(drive(renewal, 100.0, reach=SPREAD)) == 16
    renewal.see(peers(*range(40)), 60, 101.0)
    assert renewal.take(200.0) is None
    assert renewal.wait_s(200.0) > 3600


def test_what_reached_nobody_is_put_again_when_somebody_comes() -> None:
    renewal = a_renewal()
    renewal.add(key(1), 0.0)
    assert len(drive(renewal, 10.0, reach=0)) == 1
    renewal.see(peers(1), 1, 20.0)
    assert renewal.take(20.0) == key(1)


def test_a_small_network_that_grows_to_twenty_costs_a_dozen_puts_a_record() -> None:
    renewal = a_renewal()
    renewal.add(key(1), 0.0)
    puts, now = drive(renewal, 10.0, reach=0), 10.0
    for count in range(1, 40):
        now += 60.0
        renewal.see(peers(*range(count)), count, now)
        puts += drive(renewal, now + 50.0, reach=count, now=now)
    assert 4 <= len(puts) <= 14


def test_a_neighbour_that_comes_and_goes_for_ever_costs_ever_less() -> None:
    renewal = a_renewal()
    renewal.add(key(1), 0.0)
    puts, now = drive(renewal, 1.0, reach=1), 1.0
    while now < 6 * 3600:
        now += 7.0
        renewal.see(peers(), 1, now)
        renewal.see(peers(1), 1, now)
        puts += drive(renewal, now + 6.9, reach=1, now=now)
    assert len(puts) <= 2 + math.log2(6 * 3600 / 5.0)


def test_new_records_do_not_queue_behind_a_thousand_old_ones() -> None:
    renewal = a_renewal(every_s=100.0)
    for number in range(1000):
        renewal.add(key(number), 0.0)
    drive(renewal, 600.0, reach=50)
    renewal.add(key(5000), 600.5)
    assert drive(renewal, 602.0, reach=50, now=600.5)[0][1] == key(5000)


def test_due_records_leave_in_the_order_of_the_key_space() -> None:
    renewal = a_renewal(every_s=1000.0, burst=100)
    for number in range(50):
        renewal.add(key(number), 0.0)
    drive(renewal, 1.0, reach=50)
    renewal.wait_s(2000.0)
    again = [renewal.take(2000.0) for _ in range(50)]
    places = [hashed(taken) for taken in again]
    turns = sum(one > other for one, other in pairwise(places))
    assert turns <= 1, "one round of the ring, from wherever it began"


def hashed(taken: Key | None) -> bytes:
    assert isinstance(taken, bytes)
    return hashlib.sha256(taken).digest()


def test_what_failed_is_tried_again_after_pauses_that_double() -> None:
    renewal, now, pauses = a_renewal(), 0.0, []
    renewal.add(key(1), 0.0)
    for _ in range(5):
        assert renewal.take(now) == key(1)
        renewal.done(key(1), now, reach=50, stored=False)
        pauses.append(renewal.wait_s(now))
        now += pauses[-1]
    assert all(15.0 * 2**place <= pause <= 30.0 * 2**place for place, pause in enumerate(pauses))


def test_what_is_withdrawn_is_never_put_again() -> None:
    renewal = a_renewal()
    for number in range(3):
        renewal.add(key(number), 0.0)
    renewal.drop(key(0))
    assert renewal.take(0.0) == key(1)
    renewal.drop(key(1))
    renewal.done(key(1), 0.0, reach=0)
    assert {taken for _, taken in drive(renewal, DAY_S, reach=50)} == {key(2)}


# --- the service ---------------------------------------------------------------------------------------------------


class Network:
    """A DHT that remembers what was put."""

    def __init__(self) -> None:
        self.provided: list[tuple[float, bytes]] = []
        self.values: list[str] = []
        self.withdrawn: list[bytes] = []
        self.fails = False
        self.routing_peers = 50
        self.addresses: tuple[str, ...] = ("/ip4/192.0.2.1/tcp/1",)

    @property
    def dht(self) -> Network:
        return self

    def connected(self) -> frozenset[PeerId]:
        return frozenset()

    async def put(self, name: str, _value: bytes) -> None:
        self.values.append(name)

    async def get(self, _name: str) -> bytes | None:
        return None

    async def provide(self, digest: bytes) -> None:
        await trio.sleep(0.2)
        if self.fails:
            raise TimedOut("nobody answers")
        self.provided.append((trio.current_time(), digest))

    def withdraw(self, digest: bytes) -> None:
        self.withdrawn.append(digest)

    async def providers(self, _digest: bytes) -> tuple[PeerId, ...]:
        return ()


async def in_directory(act: Callable[[Network, Directory], object]) -> None:
    network = Network()
    async with open_directory(network, ALICE, rng=random.Random(1)) as directory:
        await act(network, directory)  # type: ignore[misc]


async def test_provide_returns_when_it_was_told_and_once_is_enough(autojump_clock: MockClock) -> None:
    async def act(network: Network, directory: Directory) -> None:
        for _ in range(3):
            await directory.provide(key(1))
        assert [digest for _, digest in network.provided] == [key(1)]

    await in_directory(act)


async def test_a_thousand_asked_for_at_once_wait_for_their_turns(autojump_clock: MockClock) -> None:
    async def act(network: Network, directory: Directory) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(1000):
                nursery.start_soon(directory.provide, key(number))
        assert len({digest for _, digest in network.provided}) == len(network.provided) == 1000
        times = [at for at, _ in network.provided]
        assert max(Counter(int(at - times[0]) // 10 for at in times).values()) <= 20 + 16

    await in_directory(act)


async def test_who_gives_up_waiting_does_not_take_it_back(autojump_clock: MockClock) -> None:
    async def act(network: Network, directory: Directory) -> None:
        with trio.move_on_after(0.1):
            await directory.provide(key(1))
        assert network.provided == []
        await trio.sleep(1)
        assert len(network.provided) == 1

    await in_directory(act)


async def test_a_failure_reaches_who_asked_and_is_made_good_later(autojump_clock: MockClock) -> None:
    async def act(network: Network, directory: Directory) -> None:
        network.fails = True
        with pytest.raises(TimedOut):
            await directory.provide(key(1))
        network.fails = False
        await trio.sleep(31)
        assert len(network.provided) == 1

    await in_directory(act)


async def test_what_is_withdrawn_while_it_is_told_is_taken_back(autojump_clock: MockClock) -> None:
    async def act(network: Network, directory: Directory) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(directory.provide, key(1))
            await trio.sleep(0.1)
            directory.withdraw(key(1))
        await trio.sleep(7 * 3600)
        assert len(network.provided) == 1
        assert network.withdrawn == [key(1), key(1)]

    await in_directory(act)


async def test_heads_are_kept_alive_beside_contents_and_put_at_once(autojump_clock: MockClock) -> None:
    async def act(network: Network, directory: Directory) -> None:
        await directory.publish_head("digits", 1, b"i" * 32)
        assert len(network.values) == 1
        await trio.sleep(12 * 3600)
        assert 3 <= len(network.values) <= 4
        assert directory.puts == len(network.values)

    await in_directory(act)


async def test_who_cannot_be_reached_provides_nothing(autojump_clock: MockClock) -> None:
    async def act(network: Network, directory: Directory) -> None:
        network.addresses = ()
        with pytest.raises(LocalError):
            await directory.provide(key(1))

    await in_directory(act)
