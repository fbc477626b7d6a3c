"""The replicator on a clock that leaps, the machine that tells it where to look, and the swarm that is simulated."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from celluler.content.digest import digest_of
from celluler.content.replication import Candidate, Policy, Replicated, Verdict
from celluler.content.replication_watch import MAX_WATCHED, Wanted, Watch
from celluler.errors import NotFound, PeerViolation, QuotaExceeded, Unavailable
from celluler.identity import PeerId
from celluler_node.replicator import Replicator, answers_for, candidates, open_replicator
from celluler_protocols import content
from celluler_protocols.membership import Capabilities, Member, Status
from simulations.replication import Scenario, provision, simulate

OWN = PeerId("own")
ROOT = digest_of(b"manifest")


def others(count: int, *, stores: bool = False) -> list[Candidate]:
    return [Candidate(PeerId(f"peer{number}"), "", stores) for number in range(count)]


class Swarm:
    """What the replicator sees of it, and what it did."""

    def __init__(self) -> None:
        self.members: list[Candidate] = others(3)
        self.holders: list[PeerId] = [PeerId("peer0")]
        self.held: dict[bytes, bool] = {}  # root -> spare
        self.contents = [Replicated(ROOT, 100)]
        self.pulls: list[tuple[float, bytes]] = []
        self.released: list[bytes] = []
        self.lookups = 0
        self.room = 1000
        self.fails: Exception | None = None
        self.lookup_fails: Exception | None = None
        self.liars: set[PeerId] = set()
        self.asked: list[PeerId] = []
        self.pulling = self.most_pulling = 0

    def catalogue(self) -> Sequence[Wanted]:
        return [Wanted(one, b"m" * 32, one.root in self.held, self.held.get(one.root, False)) for one in self.contents]

    async def providers(self, _root: bytes) -> tuple[PeerId, ...]:
        self.lookups += 1
        await trio.sleep(1)
        if self.lookup_fails is not None:
            raise self.lookup_fails
        return tuple(self.holders)

    async def pull(self, root: bytes, manifest: bytes) -> None:
        assert manifest == b"m" * 32
        self.pulls.append((trio.current_time(), root))
        self.pulling += 1
        self.most_pulling = max(self.most_pulling, self.pulling)
        await trio.sleep(30)
        self.pulling -= 1
        if self.fails is not None:
            raise self.fails
        self.held[root] = True

    async def release(self, root: bytes) -> None:
        self.released.append(root)
        del self.held[root]

    async def confirm(self, peer: PeerId, _root: bytes) -> bool:
        self.asked.append(peer)
        await trio.sleep(0.5)
        if peer == PeerId("silent"):
            raise Unavailable("no answer")
        return peer not in self.liars


@asynccontextmanager
async def replicating(swarm: Swarm, *, confirms: bool = False, stores: bool = True) -> AsyncIterator[Replicator]:
    async with open_replicator(
        catalogue=swarm.catalogue,
        members=lambda: swarm.members,
        providers=swarm.providers,
        pull=swarm.pull,
        room=lambda: swarm.room,
        own=OWN,
        region="",
        stores=stores,
        confirm=swarm.confirm if confirms else None,
        release=swarm.release,
        rng=random.Random(1),
    ) as replicator:
        yield replicator


async def test_what_lacks_copies_is_pulled_once_after_some_patience(autojump_clock: MockClock) -> None:
    swarm, began = Swarm(), trio.current_time()
    async with replicating(swarm) as replicator:
        await trio.sleep(3600)
    ((at, root),) = swarm.pulls
    assert root == ROOT
    assert Policy().patience_s <= at - began <= 120
    assert replicator.pulled == 1


async def test_what_has_enough_copies_is_left_and_seldom_asked_about(autojump_clock: MockClock) -> None:
    swarm = Swarm()
    swarm.holders = [PeerId(f"peer{number}") for number in range(3)]
    async with replicating(swarm) as replicator:
        await trio.sleep(3600)
        (seen,) = replicator.watched()
    assert swarm.pulls == []
    assert (seen.decision.copies, seen.decision.verdict) == (3, Verdict.ENOUGH)
    assert swarm.lookups <= 3600 / 200


async def test_a_holder_that_dies_is_noticed_without_asking_and_replaced(autojump_clock: MockClock) -> None:
    swarm = Swarm()
    swarm.holders = [member.peer for member in swarm.members]
    async with replicating(swarm):
        await trio.sleep(45)
        swarm.members = swarm.members[1:]
        died = trio.current_time()
        await trio.sleep(600)
    ((at, _),) = swarm.pulls
    assert at - died < 10 + 2 + 30 + 10 + 3


async def test_one_that_comes_back_in_time_is_not_replaced(autojump_clock: MockClock) -> None:
    swarm = Swarm()
    swarm.holders = [member.peer for member in swarm.members]
    everybody = swarm.members
    async with replicating(swarm):
        for _ in range(20):
            await trio.sleep(100)
            swarm.members = everybody[1:]
            await trio.sleep(20)
            swarm.members = everybody
    assert swarm.pulls == []


async def test_nothing_is_pulled_without_room_or_when_nobody_has_it_or_by_who_stores_nothing(
    autojump_clock: MockClock,
) -> None:
    for change in ("full", "absent", "deaf"):
        swarm = Swarm()
        swarm.room = 99 if change == "full" else 1000
        swarm.holders = [PeerId("gone")] if change == "absent" else swarm.holders
        async with replicating(swarm, stores=change != "deaf"):
            await trio.sleep(3600)
        assert swarm.pulls == []


@pytest.mark.parametrize("error", [NotFound("x"), QuotaExceeded("full"), PeerViolation("false")])
async def test_a_pull_that_fails_is_tried_ever_more_rarely(autojump_clock: MockClock, error: Exception) -> None:
    swarm = Swarm()
    swarm.fails = error
    async with replicating(swarm) as replicator:
        await trio.sleep(2 * 3600)
    times = [at for at, _ in swarm.pulls]
    assert 5 <= len(times) <= 9
    assert times[-1] - times[-2] > 900
    assert replicator.failed == len(times)


async def test_providers_that_cannot_be_found_out_are_asked_for_again(autojump_clock: MockClock) -> None:
    swarm = Swarm()
    swarm.lookup_fails = Unavailable("no DHT")
    async with replicating(swarm):
        await trio.sleep(300)
        assert swarm.pulls == []
        swarm.lookup_fails = None
        await trio.sleep(300)
    assert len(swarm.pulls) == 1


async def test_two_pulls_at_a_time_however_many_are_wanted(autojump_clock: MockClock) -> None:
    swarm = Swarm()
    swarm.contents = [Replicated(digest_of(bytes([number])), 1) for number in range(20)]
    async with replicating(swarm):
        await trio.sleep(900)
    assert len(swarm.pulls) == 20
    assert swarm.most_pulling == 2


async def test_a_copy_too_many_is_given_up_after_long_if_it_is_kept_for_others_alone(
    autojump_clock: MockClock,
) -> None:
    for spare in (True, False):
        swarm = Swarm()
        swarm.members = others(40)
        swarm.holders = [member.peer for member in swarm.members]
        swarm.held[ROOT] = spare
        async with replicating(swarm):
            await trio.sleep(Policy().release_s)
            assert swarm.released == []
            await trio.sleep(3 * 3600)
        assert swarm.released == ([ROOT] if spare else [])


async def test_a_claim_that_proves_empty_does_not_count(autojump_clock: MockClock) -> None:
    swarm = Swarm()
    swarm.holders = [PeerId("peer0"), PeerId("peer1"), PeerId("silent")]
    swarm.members = [*others(3), Candidate(PeerId("silent"))]
    async with replicating(swarm, confirms=True):
        await trio.sleep(500)
        assert swarm.pulls == [], "who cannot be asked keeps the benefit of the doubt"
        swarm.liars = {PeerId("peer1")}
        await trio.sleep(3600)
    assert len(swarm.pulls) == 1
    assert len(swarm.asked) < 50


# --- asking who says that it holds something -----------------------------------------------------------------------


async def answering(*frames: object) -> bool:
    near, far = trio.testing.memory_stream_pair()
    words = content.frames()
    for frame in frames:
        await far.send_all(words.encode(frame))
    await far.send_eof()
    return await answers_for(near, PeerId("peer0"), ROOT)


async def test_a_peer_that_has_the_manifest_answers_for_the_content() -> None:
    assert await answering(content.Found(ROOT, b"manifest"))
    assert not await answering(content.Absent(ROOT))


async def test_no_answer_is_no_verdict_and_a_false_one_is_a_violation() -> None:
    for frames in ([], [content.Busy()]):
        with pytest.raises(Unavailable):
            await answering(*frames)
    for frame in (content.Found(ROOT, b"other"), content.Absent(b"x" * 32), content.Want((ROOT,))):
        with pytest.raises(PeerViolation):
            await answering(frame)


# --- the machine ---------------------------------------------------------------------------------------------------


def a_watch(**changes: object) -> Watch:
    return Watch(Candidate(OWN), 30.0, random.Random(1), **changes)  # type: ignore[arg-type]


def test_what_has_the_fewest_copies_is_looked_at_first() -> None:
    watch, roots = a_watch(), [bytes([number]) * 32 for number in range(3)]
    watch.update([Wanted(Replicated(root, 1), b"m" * 32, False) for root in roots], others(5), 0.0)
    for copies, root in enumerate(roots, 1):
        while (wanted := watch.due(1000.0 * copies)) and wanted.content.root != root:
            watch.unanswered(wanted.content.root, 1000.0 * copies)
        watch.judge(root, [PeerId(f"peer{number}") for number in range(copies)], 0, 0.0)
    looked_at = [watch.due(1e6) for _ in roots]
    assert [wanted.content.root for wanted in looked_at if wanted] == roots


def test_what_leaves_the_catalogue_is_forgotten_even_while_it_is_pulled() -> None:
    watch = a_watch()
    watch.update([Wanted(Replicated(ROOT, 1), b"m" * 32, False)], others(2), 0.0)
    assert watch.due(100.0)
    watch.update([], others(2), 100.0)
    assert watch.judge(ROOT, [PeerId("peer0")], 10, 100.0).verdict is Verdict.ENOUGH
    watch.pulled(ROOT, 100.0, done=True)
    assert watch.wait_s(100.0) == float("inf")


def test_a_catalogue_without_end_is_watched_up_to_a_bound() -> None:
    watch = a_watch()
    many = (Wanted(Replicated(number.to_bytes(32, "big"), 1), b"m" * 32, False) for number in range(MAX_WATCHED + 10))
    watch.update(many, [], 0.0)
    due = 0
    while watch.due(30.0):
        due += 1
        if due > 20:
            break
    assert len(watch._lines) == MAX_WATCHED


def test_members_stand_where_they_say_and_store_if_they_say_so() -> None:
    def member(name: str, *roles: str, region: str = "") -> Member:
        return Member(PeerId(name), (), "", Capabilities(1, 1, "cpu", roles, region), Status.ALIVE, 1, None)

    found = candidates([member("a", "store", "train", region="eu"), member("b", "train")])
    assert found == (Candidate(PeerId("a"), "eu", True), Candidate(PeerId("b"), "", False))


# --- the small swarm, as `make simulate` runs it large -------------------------------------------------------------

SMALL = Scenario(peers=15, contents=5, seed=3, hours=1.5, kills=4, joins=2, parted_s=600.0, quiet_s=2400.0)


def test_fifteen_peers_restore_what_dies_without_a_storm_and_the_same_seed_does_the_same() -> None:
    result = simulate(SMALL)
    assert result.below_aim_at_the_end == 0
    assert result.restorations > 0
    assert result.restored_longest_s < 900
    assert result.most_above_aim <= 1
    assert result.wasted <= result.pulls // 10
    assert simulate(SMALL) == result
    assert simulate(replace(SMALL, seed=4)).trace != result.trace


def test_the_simulation_would_notice_a_storm() -> None:
    """With no order among those who are not called, all of them come at once."""
    eager = Policy(patience_s=0.0, jitter_s=0.0, step_s=0.0)
    result = simulate(replace(SMALL, policy=eager))
    assert result.wasted > result.pulls // 10
    assert result.most_above_aim > 1


def test_a_content_is_one_record_whatever_number_of_chunks_it_has() -> None:
    assert provision(1, 10_000).puts == provision(1, 1).puts <= 6
    many = provision(200, 10_000)
    assert many.puts <= 200 * 6
    assert many.busiest_in_10_s <= 20 + 16
