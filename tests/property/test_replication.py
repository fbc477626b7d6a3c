"""Any swarm, any aim, any regions: all decide alike, copies meet their aim, and nobody makes one too many."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.content.replication import (
    DEFAULT_AIM,
    NOTHING_SEEN,
    Candidate,
    Decision,
    Policy,
    Replicated,
    Seen,
    Verdict,
    attention,
    plan,
    rank,
    shares,
)
from celluler.identity import PeerId

pytestmark = pytest.mark.thorough

REGIONS = ("eu", "us", "asia")
POLICY = Policy()
LONG = 10 * 24 * 3600.0

candidates = st.builds(
    Candidate, st.integers(0, 40).map(lambda n: PeerId(f"peer{n}")), st.sampled_from(("", *REGIONS)), st.booleans()
)
swarms = st.lists(candidates, min_size=1, max_size=25, unique_by=lambda one: one.peer)
wants = st.builds(
    Replicated,
    st.binary(min_size=32, max_size=32),
    st.integers(0, 1000),
    st.integers(0, 6),
    st.lists(st.sampled_from(REGIONS), max_size=3, unique=True).map(tuple),
)


def decide(
    swarm: list[Candidate],
    own: Candidate,
    want: Replicated,
    holders: set[PeerId],
    now: float,
    *,
    room: int = 10**9,
    seen: Seen = NOTHING_SEEN,
) -> Decision:
    others = [one for one in swarm if one.peer != own.peer]
    return plan(now, want, others, holders, own, room, held=own.peer in holders, seen=seen, policy=POLICY)


def settle(swarm: list[Candidate], want: Replicated, holders: set[PeerId]) -> set[PeerId]:
    """Everybody acts as soon as it may, one at a time, and sees at once what the others did."""
    holders, seen, now = set(holders), dict.fromkeys((one.peer for one in swarm), NOTHING_SEEN), 0.0
    for _ in range(200):
        waits, before = [], set(holders)
        for one in swarm:
            decision = decide(swarm, one, want, holders, now, seen=seen[one.peer])
            seen[one.peer] = decision.seen
            if decision.verdict is Verdict.PULL:
                holders.add(one.peer)
            elif decision.verdict is Verdict.RELEASE:
                holders.discard(one.peer)
            elif decision.verdict is Verdict.WAIT:
                waits.append(decision.until_s)
        if not waits and holders == before:
            return holders
        now = max(now, min(waits, default=now))
    raise AssertionError("they never come to rest")


@settings(max_examples=40, deadline=None)
@given(swarms, wants, st.data())
def test_a_swarm_comes_to_rest_with_its_aim_met_and_hardly_exceeded(
    swarm: list[Candidate], want: Replicated, data: st.DataObject
) -> None:
    author = data.draw(st.sampled_from(swarm))
    holders = settle(swarm, want, {author.peer})
    able = {one.peer for one in swarm if one.stores} | {author.peer}
    assert len(holders) >= min(want.copies, len(able))
    assert holders <= able
    out_of_place = len(want.regions) + 1 if want.regions else 0
    assert len(holders) <= max(want.copies, 1) + min(out_of_place, 1)
    if want.regions:
        by_region = Counter(one.region for one in swarm if one.peer in holders)
        for region, share in shares(want.copies, want.regions).items():
            there = sum(one.peer in able for one in swarm if one.region == region)
            assert by_region[region] >= min(share, there)


@settings(max_examples=40, deadline=None)
@given(swarms, wants, st.data())
def test_too_many_copies_become_fewer_and_never_too_few(
    swarm: list[Candidate], want: Replicated, data: st.DataObject
) -> None:
    before = data.draw(st.sets(st.sampled_from([one.peer for one in swarm]), min_size=1))
    after = settle(swarm, want, before)
    assert len(after) >= min(want.copies, len(before))
    if len(before) > want.copies + POLICY.slack and not want.regions:
        assert len(after) == want.copies + POLICY.slack
    assert settle(swarm, want, after) == after, "at rest is at rest"


@settings(max_examples=40, deadline=None)
@given(swarms, wants, st.data())
def test_as_many_are_called_at_once_as_copies_are_missing(
    swarm: list[Candidate], want: Replicated, data: st.DataObject
) -> None:
    holder = data.draw(st.sampled_from(swarm))
    called = []
    for one in swarm:
        first = decide(swarm, one, want, {holder.peer}, 0.0)
        assert first.verdict is not Verdict.PULL, "a lack must last"
        if first.verdict is Verdict.WAIT and first.until_s <= POLICY.patience_s + POLICY.jitter_s:
            called.append(one)
        lacking = first.lacking
    able = sum(one.stores for one in swarm if one != holder)
    assert len(called) == min(lacking, able)
    assert len({round(decide(swarm, one, want, {holder.peer}, 0.0).until_s, 6) for one in called}) == len(called)


@settings(max_examples=40, deadline=None)
@given(swarms, wants, st.data())
def test_what_is_decided_depends_on_what_is_seen_and_not_on_its_order(
    swarm: list[Candidate], want: Replicated, data: st.DataObject
) -> None:
    mixed = data.draw(st.permutations(swarm))
    holders = data.draw(st.sets(st.sampled_from([one.peer for one in swarm])))
    for one in swarm:
        assert decide(swarm, one, want, holders, 5.0) == decide(mixed, one, want, holders, 5.0)


@settings(max_examples=40, deadline=None)
@given(swarms, wants, st.data())
def test_nobody_pulls_what_it_holds_has_no_room_for_or_would_not_store(
    swarm: list[Candidate], want: Replicated, data: st.DataObject
) -> None:
    holders = data.draw(st.sets(st.sampled_from([one.peer for one in swarm])))
    for one in swarm:
        seen = Seen(0.0, 0.0)
        verdict = decide(swarm, one, want, holders, LONG, seen=seen).verdict
        if verdict is Verdict.PULL:
            assert one.stores
            assert one.peer not in holders
            assert holders
            full = decide(swarm, one, want, holders, LONG, seen=seen, room=want.size_bytes - 1)
            assert full.verdict is Verdict.FULL
        if verdict is Verdict.RELEASE:
            assert one.peer in holders


@settings(max_examples=40, deadline=None)
@given(swarms, wants, st.data())
def test_a_provider_that_is_no_live_member_does_not_count(
    swarm: list[Candidate], want: Replicated, data: st.DataObject
) -> None:
    holders = data.draw(st.sets(st.sampled_from([one.peer for one in swarm])))
    ghosts = {PeerId(f"ghost{number}") for number in range(5)}
    for one in swarm:
        assert decide(swarm, one, want, holders | ghosts, 5.0) == decide(swarm, one, want, holders, 5.0)


@settings(max_examples=40, deadline=None)
@given(swarms, st.binary(min_size=32, max_size=32))
def test_who_joins_or_leaves_changes_nobody_elses_order(swarm: list[Candidate], root: bytes) -> None:
    order = sorted(swarm, key=lambda one: rank(root, one.peer))
    assert [one for one in order if one != swarm[0]] == sorted(swarm[1:], key=lambda one: rank(root, one.peer))


def test_the_load_of_many_contents_is_spread_over_all_peers() -> None:
    swarm = [Candidate(PeerId(f"peer{number}")) for number in range(20)]
    kept: Counter[PeerId] = Counter()
    for number in range(300):
        kept.update(settle_first(swarm, Replicated(number.to_bytes(32, "big"), 1)))
    assert len(kept) == 20
    assert max(kept.values()) < 3 * min(kept.values())


def settle_first(swarm: list[Candidate], want: Replicated) -> list[PeerId]:
    return sorted((one.peer for one in swarm), key=lambda peer: rank(want.root, peer))[:DEFAULT_AIM]


def test_a_few_watch_closely_and_the_many_now_and_then() -> None:
    swarm = [Candidate(PeerId(f"peer{number}")) for number in range(1000)]
    want = Replicated(b"r" * 32, 1)
    often = [attention(want, [other for other in swarm if other != one], one) for one in swarm]
    assert often.count(1) == 2 * DEFAULT_AIM + 2
    assert sum(1 / every for every in often) < 30
    assert max(often) == 120
