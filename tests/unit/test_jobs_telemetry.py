"""What is told of a round is bounded, and comes back as it went."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celluler.errors import ProtocolViolation
from celluler.jobs.checkpoints import checkpoint_name, checkpoint_version, rounds_in
from celluler.jobs.states import JobLife, JobState
from celluler.jobs.telemetry import (
    MAX_MEMBERS,
    MAX_ROUND_BYTES,
    MAX_ROUNDS,
    MAX_SUSPECTED,
    MAX_SUSPICION_BYTES,
    Amount,
    Audits,
    RoundFigures,
    Traffic,
    amounts,
    suspicions,
)
from celluler.learning import roster
from celluler.models.names import check_word
from celluler.models.version import parse_version
from celluler.wire import pack, unpack

PLACES = st.lists(st.integers(0, MAX_MEMBERS - 1), max_size=MAX_MEMBERS, unique=True).map(tuple)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
AMOUNTS = st.dictionaries(st.integers(0, MAX_MEMBERS - 1), FLOATS, max_size=MAX_MEMBERS).map(amounts)
FIGURES = st.builds(
    RoundFigures,
    round=st.integers(1, MAX_ROUNDS),
    views=st.integers(0, 65535),
    seconds=FLOATS,
    contributed=PLACES,
    absent=PLACES,
    suspected=st.lists(st.tuples(st.integers(0, 63), st.text()), max_size=20).map(suspicions),
    norms=AMOUNTS,
    traffic=st.lists(st.builds(Traffic, st.integers(0, 63), st.integers(0, 2**64 - 1), st.just(0)), max_size=8).map(
        tuple
    ),
    audits=st.builds(Audits, st.integers(0, 65535), PLACES, PLACES),
    loss=st.none() | FLOATS,
)


@given(FIGURES)
def test_what_is_told_comes_back(figures: RoundFigures) -> None:
    assert unpack(RoundFigures, pack(figures), limit=MAX_ROUND_BYTES) == figures


def test_the_most_that_can_be_told_fits() -> None:
    everybody, most = tuple(range(MAX_MEMBERS)), 2**64 - 1
    each = amounts(dict.fromkeys(everybody, 0.1))
    largest = RoundFigures(
        round=MAX_ROUNDS,
        views=65535,
        seconds=0.1,
        contributed=everybody,
        no_weight=everybody,
        absent=everybody,
        expelled=everybody,
        suspended=everybody,
        suspected=suspicions((63, "é" * 500) for _ in range(99)),
        norms=each,
        traffic=tuple(Traffic(place, most, most) for place in everybody),
        credits=each,
        audits=Audits(65535, everybody, everybody),
        loss=0.1,
        metric="m" * 32,
        value=0.1,
    )
    assert len(largest.suspected) == MAX_SUSPECTED
    assert len(largest.suspected[0].reason.encode()) == MAX_SUSPICION_BYTES
    assert MAX_ROUND_BYTES * 0.7 < len(pack(largest)) <= MAX_ROUND_BYTES


@pytest.mark.parametrize(
    "wrong",
    [
        {"round": 0},
        {"contributed": (64,)},
        {"norms": (Amount(0, float("nan")),)},
        {"absent": tuple([0] * 65)},
        {"loss": float("inf")},
    ],
)
def test_what_is_out_of_bounds_does_not_travel(wrong: dict[str, Any]) -> None:
    told: dict[str, Any] = {"round": 1, "views": 1, "seconds": 1.0, "contributed": (0,)}
    with pytest.raises(ProtocolViolation):
        pack(RoundFigures(**told | wrong))


def test_the_bounds_are_those_of_a_roster() -> None:
    assert (MAX_MEMBERS, MAX_ROUNDS) == (roster.MAX_MEMBERS, roster.MAX_ROUNDS)


def test_a_measurement_carries_its_round() -> None:
    life = JobLife(0.0)
    life.move(JobState.FETCHING, 1.0)
    life.move(JobState.RUNNING, 2.0)
    figures = RoundFigures(1, 1, 0.5, (0, 1, 2))
    assert life.measure(3.0, {"round": 1.0}, figures).round is figures
    assert [event.round for event in life.events] == [None, None, None, figures]


def test_a_checkpoint_is_a_pre_release_under_a_name_of_its_own() -> None:
    versions = [checkpoint_version("1.0.0+gpu", rounds) for rounds in (9, 10)]
    assert versions == ["1.0.0-round.9", "1.0.0-round.10"]
    assert parse_version(versions[0]) < parse_version(versions[1]) < parse_version("1.0.0")
    assert checkpoint_version("2.0.0-rc.1", 3) == "2.0.0-rc.1.round.3"
    assert [rounds_in(text) for text in (*versions, "2.0.0-rc.1.round.3", "2.0.0-rc.1", "1.0.0")] == [
        9,
        10,
        3,
        None,
        None,
    ]
    check_word(checkpoint_name("a" * 64), "name")
    assert checkpoint_name("digits") == "digits-checkpoint"
