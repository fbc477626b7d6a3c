"""What is drawn from logits, and where an answer stops."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.errors import InvalidSpec
from celluler.inference.sampling import (
    GREEDY,
    LOWEST_LOGPROB,
    Sampling,
    UndefinedLogits,
    choose,
    draw,
    likeliest,
    log_probabilities,
)
from celluler.inference.stops import StopFilter

_FLOATS = st.floats(-20, 20, width=32)
LOGITS = st.lists(_FLOATS, min_size=1, max_size=40).map(lambda one: np.array(one, dtype=np.float32))
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.floats(0.05, 2.0),
    top_p=st.floats(0.05, 1.0),
    top_k=st.integers(0, 12),
    seed=st.integers(0, (1 << 64) - 1),
    choice=st.integers(0, 3),
)


@given(LOGITS, SAMPLINGS, st.integers(0, 1000))
def test_what_is_drawn_is_a_function_of_logits_request_and_place_and_within_the_cuts(
    logits: Any, sampling: Sampling, place: int
) -> None:
    chosen = choose(logits, sampling, place)
    assert chosen == choose(logits.copy(), replace(sampling), place)
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if sampling.top_k:
        order = order[: sampling.top_k]
    weights = np.exp((logits[order].astype(np.float64) - logits.max()) / sampling.temperature)
    before = np.cumsum(weights) - weights
    assert chosen.token in order
    # A token is kept while those before it do not hold the share yet.
    assert before[order.index(chosen.token)] <= sampling.top_p * weights.sum() * (1 + 1e-9)


@given(LOGITS, st.integers(0, 5))
def test_no_temperature_takes_the_likeliest_and_so_does_a_cut_to_one(logits: Any, place: int) -> None:
    token = int(logits.argmax())
    assert choose(logits, GREEDY, place).token == token
    assert choose(logits, Sampling(top_k=1, seed=place), place).token == token
    if np.count_nonzero(logits == logits.max()) == 1:
        assert choose(logits, Sampling(temperature=1e-300), place).token == token


def test_draws_are_as_frequent_as_they_are_probable() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    cases = {
        Sampling(): (0.5, 0.3, 0.15, 0.05),
        Sampling(temperature=0.5): tuple(p * p / 0.365 for p in (0.5, 0.3, 0.15, 0.05)),
        Sampling(top_k=2): (0.625, 0.375, 0, 0),
        Sampling(top_p=0.9): (0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0),
        Sampling(top_k=2, top_p=0.6): (1, 0, 0, 0),
    }
    for sampling, wanted in cases.items():
        told = Counter(choose(logits, replace(sampling, seed=seed), seed % 7).token for seed in range(3000))
        for token, share in enumerate(wanted):
            assert abs(told[token] / 3000 - share) <= 5 * math.sqrt(share * (1 - share) / 3000)


def test_a_share_of_many_tokens_is_cut_where_it_is_reached() -> None:
    logits = np.zeros(5000, dtype=np.float32)
    told = {choose(logits, Sampling(top_p=0.2, seed=seed), 0).token for seed in range(1500)}
    assert max(told) < 1000 + 1
    assert len(told) > 700


def test_places_choices_and_seeds_draw_numbers_of_their_own() -> None:
    drawn = [draw(seed, choice, place) for seed in range(10) for choice in range(10) for place in range(10)]
    assert len(set(drawn)) == 1000
    assert all(0 <= one < 1 for one in drawn)
    assert abs(sum(drawn) / 1000 - 0.5) < 0.05
    assert draw(7, 0, 3) == 0.37861838983373397


@given(LOGITS, st.integers(0, 20))
def test_logprobs_are_those_of_the_model_whatever_is_cut_and_the_likeliest_come_first(logits: Any, count: int) -> None:
    wanted = log_probabilities(logits)
    assert float(np.exp(wanted).sum()) == pytest.approx(1.0)
    chosen = choose(logits, Sampling(temperature=1.7, top_k=3, logprobs=count), 0)
    assert chosen.logprob == wanted[chosen.token]
    assert len(chosen.top) == min(count, len(logits))
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    assert list(chosen.top) == [(token, float(wanted[token])) for token in order[:count]]
    assert choose(logits, Sampling(), 0).logprob is None


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 30))
def test_the_likeliest_are_found_without_sorting_all(values: list[int], count: int) -> None:
    told = likeliest(np.array(values, dtype=np.float64), count)
    assert told.tolist() == sorted(range(len(values)), key=lambda place: (-values[place], place))[:count]


def test_logits_that_are_no_numbers_are_never_drawn_and_all_of_them_are_an_error() -> None:
    logits = np.array([math.nan, 1.0, math.inf, -math.inf, 0.5], dtype=np.float32)
    told = {choose(logits, Sampling(seed=seed, temperature=2.0), 0).token for seed in range(50)}
    assert told == {1, 4}
    assert choose(logits, replace(GREEDY, logprobs=3), 0).top[2] == (0, LOWEST_LOGPROB)
    for nothing in (np.array([math.nan]), np.array([]), np.array([-math.inf, -math.inf])):
        with pytest.raises(UndefinedLogits):
            choose(nothing, Sampling(), 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1}, {"temperature": 2.1}, {"temperature": math.nan}, {"top_p": 0.0}, {"top_p": 1.1},
        {"top_k": -1}, {"seed": -1}, {"seed": 1 << 64}, {"choice": 99}, {"logprobs": 21}, {"logprobs": -1},
    ],
)  # fmt: skip
def test_parameters_out_of_range_name_themselves(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec) as told:
        Sampling(**wrong)
    assert told.value.path == next(iter(wrong))


# --- stop sequences --------------------------------------------------------------------------------------------------


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """The text before the stop that is complete first; of several that end there, the one that began first."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@settings(max_examples=200)
@given(
    st.text("abc", max_size=20),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 5), min_size=1, max_size=20),
)
def test_what_is_told_ends_before_the_first_complete_stop_however_the_text_is_cut(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    wanted = cut(text, stops)
    of_text: StopFilter[str] = StopFilter(tuple(stops), "")
    of_tokens: StopFilter[tuple[int, ...]] = StopFilter(tuple(tuple(map(ord, stop)) for stop in stops), ())
    told, stopped, at = "", False, 0
    for size in sizes * 20:
        piece, at = text[at : at + size], at + size
        passed, same = of_text.feed(piece), of_tokens.feed(tuple(map(ord, piece)))
        assert tuple(map(ord, passed.told)) == same.told
        assert passed.stopped == same.stopped
        told, stopped = told + passed.told, passed.stopped
        assert wanted[0].startswith(told)
    assert (told + of_text.end(), stopped) == wanted


def test_what_cannot_become_a_stop_is_told_at_once() -> None:
    ours = StopFilter(("\n\n", "END"), "")
    assert [ours.feed(one).told for one in ("a\n", "b", "E", "x", "EN", "D!")] == ["a", "\nb", "", "Ex", "", ""]


@given(st.lists(st.text(max_size=3), min_size=17, max_size=20))
def test_too_many_stops_are_refused(stops: list[str]) -> None:
    with pytest.raises(InvalidSpec):
        StopFilter(tuple(stops), "")


def test_an_empty_stop_and_one_without_end_are_refused() -> None:
    for stop in ("", "x" * 257):
        with pytest.raises(InvalidSpec):
            StopFilter((stop,), "")
