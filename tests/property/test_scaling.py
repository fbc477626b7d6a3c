"""Replicas: as many as are wanted, where they are wanted, whatever peers do."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.identity import PeerId
from celluler.inference.deployments import Scale
from celluler.inference.scaling import Candidate, Demand, Scaler, place
from celluler.inference.scaling_replicas import (
    AGAIN_S,
    FIRST_REST_S,
    FOR_S,
    LOADING_S,
    RENEW_S,
    Keep,
    LetGo,
    Replicas,
)

quick = settings(max_examples=60, deadline=None)
PEERS = [PeerId(f"peer-{place}") for place in range(12)]
REGIONS = ["eu", "us", ""]


def peers(*regions: str) -> list[Candidate]:
    return [Candidate(PEERS[place], region) for place, region in enumerate(regions)]


def busy(demand: Demand, count: int) -> None:
    for _ in range(count):
        demand.begin()


def done(demand: Demand, count: int, took_s: float, now: float) -> None:
    for _ in range(count):
        demand.end(took_s, now)


# --- how many --------------------------------------------------------------------------------------------------------


def test_what_is_asked_makes_replicas_at_once_and_what_is_not_asked_lets_them_go_late() -> None:
    scale, demand, scaler = Scale(0, 4, in_flight=2, keep_warm_s=60), Demand(), Scaler()
    assert scaler.decide(scale, demand, 0.0) == 0
    busy(demand, 5)
    assert scaler.decide(scale, demand, 1.0) == 3
    done(demand, 5, 0.1, 2.0)
    assert scaler.decide(scale, demand, 3.0) == 3  # five were under way since the last decision
    assert scaler.decide(scale, demand, 60.0) == 3
    assert scaler.decide(scale, demand, 64.0) == 0


def test_a_request_that_came_and_went_between_two_decisions_counts() -> None:
    scale, demand, scaler = Scale(0, 4, keep_warm_s=10), Demand(), Scaler()
    busy(demand, 1)
    done(demand, 1, 0.01, 0.5)
    assert scaler.decide(scale, demand, 1.0) == 1
    assert scaler.decide(scale, demand, 12.0) == 0


def test_slow_answers_make_one_more_at_a_time() -> None:
    scale, demand, scaler = Scale(1, 4, in_flight=100, latency_ms=200), Demand(), Scaler()
    busy(demand, 20)
    done(demand, 19, 0.5, 1.0)
    assert scaler.decide(scale, demand, 1.0) == 2
    assert scaler.decide(scale, demand, 2.0) == 2
    assert scaler.decide(scale, demand, 12.0) == 3
    assert scaler.decide(scale, demand, 50.0) == 3  # by now nothing recent is slow


@quick
@given(
    st.integers(0, 3),
    st.integers(0, 5),
    st.lists(st.tuples(st.integers(0, 40), st.floats(0.1, 30)), max_size=20),
    st.integers(1, 8),
)
def test_it_stays_within_its_bounds_and_serves_what_is_under_way(
    least: int, more: int, steps: list[tuple[int, float]], in_flight: int
) -> None:
    scale = Scale(least, max(1, least + more), in_flight=in_flight, keep_warm_s=20)
    demand, scaler, now = Demand(), Scaler(), 0.0
    for count, pause_s in steps:
        now += pause_s
        busy(demand, count)
        wanted = scaler.decide(scale, demand, now)
        assert scale.least <= wanted <= scale.most
        assert wanted * in_flight >= count or wanted == scale.most
        done(demand, count, 0.01, now)
    scaler.decide(scale, demand, now + 1)
    assert scaler.decide(scale, demand, now + 1000) == scale.least


# --- where -----------------------------------------------------------------------------------------------------------


def test_replicas_are_spread_over_regions_before_they_share_one() -> None:
    found = place(4, peers("eu", "eu", "eu", "us", "us", "eu"), {})
    assert Counter("us" if int(peer[-1]) in (3, 4) else "eu" for peer in found) == {"eu": 2, "us": 2}


def test_who_holds_the_weights_goes_before_who_has_more_memory() -> None:
    rich = Candidate(PEERS[0], memory_mb=1 << 20)
    holder = Candidate(PEERS[1], holds=True, memory_mb=1 << 10)
    assert place(1, [rich, holder], {}) == (PEERS[1],)


@quick
@given(
    st.integers(0, 8),
    st.lists(st.sampled_from(REGIONS), max_size=12),
    st.sets(st.sampled_from(["eu", "us"]), max_size=2),
    st.integers(0, 3),
)
def test_no_peer_gets_two_and_no_region_that_is_not_allowed_gets_one(
    count: int, regions: list[str], allowed: set[str], taken: int
) -> None:
    candidates = peers(*regions)
    had = {one.peer: one.region for one in candidates[:taken]}
    found = place(count, candidates, had, regions=allowed)
    free = [one for one in candidates[taken:] if not allowed or one.region in allowed]
    assert len(found) == len(set(found)) == min(count, len(free))
    assert set(found) <= {one.peer for one in free}
    random.Random(1).shuffle(candidates)
    assert place(count, candidates, had, regions=allowed) == found


# --- keeping them ----------------------------------------------------------------------------------------------------


def asked(replicas: Replicas, wanted: int, candidates: list[Candidate], now: float) -> list[PeerId]:
    return [action.peer for action in replicas.plan(wanted, candidates, now) if isinstance(action, Keep)]


def test_a_replica_is_asked_again_before_its_word_ends() -> None:
    replicas, candidates = Replicas(), peers("eu")
    assert asked(replicas, 1, candidates, 0.0) == [PEERS[0]]
    assert asked(replicas, 1, candidates, 1.0) == []  # it is being asked
    replicas.kept(PEERS[0], 1.0, ready=False, for_s=FOR_S)
    assert not replicas.ready
    assert asked(replicas, 1, candidates, 1.0 + AGAIN_S) == [PEERS[0]]
    replicas.kept(PEERS[0], 2.0, ready=True, for_s=FOR_S)
    assert list(replicas.ready) == [PEERS[0]]
    assert asked(replicas, 1, candidates, 2.0 + RENEW_S - 1) == []
    assert asked(replicas, 1, candidates, 2.0 + RENEW_S) == [PEERS[0]]


def test_a_peer_that_dies_is_replaced() -> None:
    replicas, candidates = Replicas(), peers("eu", "us")
    (first,) = asked(replicas, 1, candidates, 0.0)
    replicas.kept(first, 0.0, ready=True, for_s=FOR_S)
    left = [one for one in candidates if one.peer != first]
    assert asked(replicas, 1, left, 1.0) == [left[0].peer]
    assert not replicas.ready


def test_a_peer_that_fails_is_replaced_and_left_alone_longer_each_time() -> None:
    replicas, candidates = Replicas(), peers("eu", "us")
    first, second = asked(replicas, 2, candidates, 0.0)
    replicas.failed(first, 0.0)
    replicas.kept(second, 0.0, ready=True, for_s=FOR_S)
    assert asked(replicas, 2, candidates, 0.1) == []
    assert asked(replicas, 2, candidates, FIRST_REST_S) == [first]
    replicas.failed(first, FIRST_REST_S)
    assert asked(replicas, 2, candidates, 2 * FIRST_REST_S) == []
    assert asked(replicas, 2, candidates, 3 * FIRST_REST_S) == [first]


def test_a_peer_that_is_never_ready_is_left() -> None:
    replicas, candidates, now = Replicas(), peers("eu", "us"), 0.0
    (first,) = asked(replicas, 1, candidates, now)
    while now < LOADING_S + 2 and [peer for peer, _, _ in replicas.all] == [first]:
        replicas.kept(first, now, ready=False, for_s=FOR_S)
        now += 1.0
        asked(replicas, 1, candidates, now)
    assert LOADING_S < now < LOADING_S + 2
    assert [peer for peer, _, _ in replicas.all] == [one.peer for one in candidates if one.peer != first]


def test_a_doubtful_one_is_asked_nothing_until_it_has_said_so_anew() -> None:
    replicas, candidates = Replicas(), peers("eu")
    asked(replicas, 1, candidates, 0.0)
    replicas.kept(PEERS[0], 0.0, ready=True, for_s=FOR_S)
    replicas.doubt(PEERS[0], 1.0)
    assert not replicas.ready
    assert asked(replicas, 1, candidates, 1.0) == [PEERS[0]]
    replicas.kept(PEERS[0], 1.5, ready=True, for_s=FOR_S)
    assert list(replicas.ready) == [PEERS[0]]


def test_what_is_too_much_is_let_go_from_the_fullest_region() -> None:
    replicas, candidates = Replicas(), peers("eu", "eu", "us")
    for peer in asked(replicas, 3, candidates, 0.0):
        replicas.kept(peer, 0.0, ready=True, for_s=FOR_S)
    (gone,) = replicas.plan(2, candidates, 1.0)
    assert isinstance(gone, LetGo)
    assert {region for _, region, _ in replicas.all} == {"eu", "us"}
    assert {action.peer for action in replicas.plan(0, candidates, 2.0)} == {*PEERS[:3]} - {gone.peer}
    assert not replicas.all


@quick
@given(st.integers(0, 2**32), st.integers(0, 6))
def test_in_the_end_there_are_as_many_as_wanted_and_never_more(seed: int, wanted: int) -> None:
    rng, replicas, now = random.Random(seed), Replicas(), 0.0
    candidates = peers(*rng.choices(REGIONS, k=8))
    under_way: set[PeerId] = set()
    for step in range(400):
        now += rng.uniform(0.1, 2.0)
        calm = step > 150
        living = candidates if calm else rng.sample(candidates, rng.randint(2, 8))
        for action in replicas.plan(wanted, living, now):
            if isinstance(action, Keep):
                under_way.add(action.peer)
        assert len(replicas.all) <= wanted
        for peer in sorted(under_way):
            if calm or rng.random() < 0.5:
                under_way.discard(peer)
                if calm or rng.random() < 0.6:
                    replicas.kept(peer, now, ready=calm or rng.random() < 0.5, for_s=FOR_S)
                else:
                    replicas.failed(peer, now)
    assert len(replicas.ready) == min(wanted, len(candidates))
