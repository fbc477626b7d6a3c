"""Whom to ask: the cheapest that nothing speaks against, spread over those that are as good, and when somebody else."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.inference.hedging import HedgeConfig, Hedging
from celluler.inference.placement import Candidate, Load, Placement, PlacementConfig

MODEL, OTHER = b"m" * 32, b"o" * 32
PEERS = tuple(f"peer-{n}" for n in range(6))
TIMES = st.floats(0.0, 100.0)
HAPPENINGS = st.lists(
    st.one_of(
        st.tuples(st.just("answered"), st.sampled_from(PEERS), TIMES),
        st.tuples(st.just("failed"), st.sampled_from(PEERS), st.floats(0.0, 3.0)),
        st.tuples(st.just("busy"), st.sampled_from(PEERS)),
        st.tuples(st.just("told"), st.sampled_from(PEERS), st.builds(Load, *[st.integers(0, 65535)] * 3)),
        st.tuples(st.just("began"), st.sampled_from(PEERS)),
        st.tuples(st.just("ended"), st.sampled_from(PEERS)),
        st.tuples(st.just("distrust"), st.sampled_from(PEERS), st.floats(0.0, 2.0), TIMES),
        st.tuples(st.just("measured"), st.sampled_from(PEERS), TIMES),
    ),
    max_size=40,
)
CANDIDATES = st.lists(
    st.builds(
        Candidate,
        st.sampled_from(PEERS),
        holds=st.booleans(),
        loaded=st.none() | st.booleans(),
        region=st.sampled_from(["", "eu", "us"]),
        round_trip_s=st.none() | st.floats(0.0, 1.0),
    ),
    max_size=8,
)


def after(happenings: list[tuple[Any, ...]], seed: int = 0) -> tuple[Placement, float]:
    placement, now = Placement(region="eu", seed=seed), 0.0
    for happening in happenings:
        now += 0.5
        match happening:
            case ("answered", peer, seconds):
                placement.answered(peer, MODEL, seconds, now)
            case ("failed", peer, weight):
                placement.failed(peer, now, weight)
            case ("busy", peer):
                placement.busy(peer, now)
            case ("told", peer, load):
                placement.told(peer, MODEL, load, now)
            case (what, *rest):
                getattr(placement, what)(*rest)
    return placement, now


@settings(max_examples=100, deadline=None)
@given(HAPPENINGS, CANDIDATES)
def test_every_candidate_is_ranked_once_whatever_happened(
    happenings: list[tuple[Any, ...]], candidates: list[Candidate]
) -> None:
    placement, now = after(happenings)
    ranked = placement.rank(MODEL, candidates, now)
    assert sorted(ranked) == sorted({one.peer for one in candidates})


@settings(max_examples=100, deadline=None)
@given(HAPPENINGS, CANDIDATES, st.integers(0, 100))
def test_whoever_is_distrusted_comes_behind_all_who_are_not(
    happenings: list[tuple[Any, ...]], candidates: list[Candidate], seed: int
) -> None:
    placement, now = after(happenings, seed)
    ranked = placement.rank(MODEL, candidates, now)
    distrusted = [placement.distrusted(peer, now) >= 1.0 for peer in ranked]
    assert distrusted == sorted(distrusted)


@settings(max_examples=100, deadline=None)
@given(HAPPENINGS, CANDIDATES, st.integers(0, 100))
def test_equal_seeds_rank_equally(happenings: list[tuple[Any, ...]], candidates: list[Candidate], seed: int) -> None:
    assert [after(happenings, seed)[0].rank(MODEL, candidates, 20.0) for _ in range(2)] == [
        after(happenings, seed)[0].rank(MODEL, candidates, 20.0) for _ in range(2)
    ]


def test_the_quicker_the_nearer_and_the_emptier_is_asked_first() -> None:
    placement = Placement(region="eu")
    quick, slow = Candidate("quick"), Candidate("slow")
    for _ in range(5):
        placement.answered("quick", MODEL, 0.1, 0.0)
        placement.answered("slow", MODEL, 0.5, 0.0)
    assert placement.rank(MODEL, [slow, quick], 1.0) == ("quick", "slow")
    placement.told("quick", MODEL, Load(16, 200, 16), 1.0)
    assert placement.rank(MODEL, [slow, quick], 1.0) == ("slow", "quick")
    assert placement.rank(MODEL, [slow, quick], 20.0) == ("quick", "slow")  # what it said is too old
    here, there = Candidate("here", region="eu"), Candidate("there", region="us")
    assert Placement(region="eu").rank(MODEL, [there, here], 0.0) == ("here", "there")


def test_who_loaded_the_model_for_us_is_not_taken_to_be_slow_and_who_was_slow_is_tried_again() -> None:
    placement = Placement()
    both = [Candidate("a", holds=True), Candidate("b", holds=True)]
    placement.answered("a", MODEL, 20.0, 0.0)
    assert placement.rank(MODEL, both, 0.0)[0] == "a"
    for _ in range(5):
        placement.answered("a", MODEL, 20.0, 0.0)
        placement.answered("b", MODEL, 0.2, 0.0)
    assert placement.rank(MODEL, both, 0.0)[0] == "b"
    assert placement.cost(MODEL, both[0], 600.0) == pytest.approx(0.1, abs=0.05)


def test_what_is_under_way_there_counts_until_it_has_ended() -> None:
    placement = Placement()
    both = [Candidate("a"), Candidate("b")]
    for name in ("a", "b"):
        placement.answered(name, MODEL, 0.1, 0.0)
    for _ in range(20):
        placement.began("a")
    assert placement.rank(MODEL, both, 0.0)[0] == "b"
    for _ in range(20):
        placement.ended("a")
    assert placement.in_flight("a") == 0


def test_whoever_holds_the_model_is_asked_before_who_must_fetch_it() -> None:
    told = [Candidate("none"), Candidate("holds", holds=True), Candidate("has", holds=True, loaded=True)]
    assert Placement().rank(MODEL, told, 0.0) == ("has", "holds", "none")


def test_a_failure_puts_a_peer_behind_and_is_forgotten() -> None:
    placement = Placement()
    both = [Candidate("a"), Candidate("b")]
    for name, seconds in (("a", 0.1), ("b", 0.4)):
        placement.answered(name, MODEL, seconds, 0.0)
    placement.failed("a", 1.0)
    assert placement.rank(MODEL, both, 1.0) == ("b", "a")
    assert placement.rank(MODEL, both, 300.0) == ("a", "b")


def test_whoever_refused_for_want_of_room_comes_last_for_a_moment() -> None:
    placement = Placement()
    both = [Candidate("a", round_trip_s=0.0), Candidate("b", round_trip_s=0.5)]
    placement.busy("a", 1.0)
    assert placement.rank(MODEL, both, 1.5) == ("b", "a")
    assert placement.rank(MODEL, both, 2.5) == ("a", "b")


def test_this_node_itself_is_asked_unless_another_is_clearly_better() -> None:
    own, other = Candidate("own", own=True, loaded=True), Candidate("other", loaded=True)
    placement = Placement()
    placement.answered("own", MODEL, 0.2, 0.0)
    placement.answered("other", MODEL, 0.1, 0.0)
    assert placement.rank(MODEL, [other, own], 0.0)[0] == "own"
    placement.told("own", MODEL, Load(16, 64, 16), 0.0)
    assert placement.rank(MODEL, [other, own], 0.0)[0] == "other"


def herded(config: PlacementConfig) -> int:
    """The most that one of 20 peers, nearly equal, is asked by 100 who all know the same."""
    peers = [Candidate(f"p{n}", round_trip_s=0.01 + n * 1e-4) for n in range(20)]
    asked = Counter(Placement(seed=seed, config=config).rank(MODEL, peers, 0.0)[0] for seed in range(100))
    return max(asked.values())


def test_many_who_know_the_same_do_not_all_ask_the_same_peer() -> None:
    assert herded(PlacementConfig()) <= 20
    assert herded(PlacementConfig(near=1.0, near_s=0.0)) == 100


def test_what_is_remembered_is_bounded_and_keeps_whom_is_being_asked() -> None:
    placement = Placement(config=PlacementConfig(peers=4, models=3))
    placement.began("first")
    for n in range(50):
        placement.failed(f"p{n}", 0.0)
        placement.answered("first", bytes([n]) * 32, 1.0, 0.0)
        placement.told("first", bytes([n]) * 32, Load(1, 1, 1), 0.0)
    assert placement.in_flight("first") == 1
    assert len(placement._peers) == 4
    assert len(placement._peers["first"].service) == len(placement._peers["first"].loads) == 3


# --- hedging ---------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.0, 1000.0), max_size=60))
def test_the_deadline_of_a_hedge_is_bounded_and_comes_of_history(seconds: list[float]) -> None:
    hedging: Hedging[bytes] = Hedging(HedgeConfig(enough=20))
    for one in seconds:
        hedging.answered(MODEL, one)
    after_s = hedging.hedge_after(MODEL)
    assert (after_s is None) == (len(seconds) < 20)
    assert hedging.hedge_after(OTHER) is None
    if after_s is not None:
        assert 0.05 <= after_s <= 10.0
        assert sum(one > after_s for one in seconds) <= max(0.05 * len(seconds), sum(one > 10.0 for one in seconds))


def test_at_most_a_tenth_of_many_requests_is_hedged() -> None:
    hedging: Hedging[bytes] = Hedging()
    hedged = 0
    for _ in range(1000):
        hedging.asked()
        hedged += hedging.spend()
    assert 100 <= hedged <= 111


def test_what_is_no_duration_is_passed_over() -> None:
    hedging: Hedging[bytes] = Hedging(HedgeConfig(enough=1))
    for seconds in (float("nan"), float("inf"), -1.0):
        hedging.answered(MODEL, seconds)
    assert hedging.hedge_after(MODEL) is None


@pytest.mark.parametrize(("pause", "expected"), [(0.01, 5.0), (1.0, 8.0), (100.0, 60.0)])
def test_a_stall_is_measured_by_the_usual_pauses_within_bounds(pause: float, expected: float) -> None:
    hedging: Hedging[bytes] = Hedging()
    assert hedging.stall_after(MODEL) == 20.0
    for _ in range(30):
        hedging.paused(MODEL, pause)
    assert hedging.stall_after(MODEL) == pytest.approx(expected)
