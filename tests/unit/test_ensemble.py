from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.errors import InvalidSpec
from celluler.inference.ensemble import MAX_MEMBERS, RULES, aggregated, check_rule, quorum_of

HONEST = np.array([[0.1, 0.7, 0.2], [0.9, 0.05, 0.05]], dtype=np.float32)
LIE = np.array([[0.98, 0.01, 0.01], [0.9, 0.05, 0.05]], dtype=np.float32)


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("rule", ["vote", "median"])
def test_one_liar_among_three_changes_neither_a_vote_nor_a_median(rule: str, place: int) -> None:
    answers = [HONEST, HONEST]
    answers.insert(place, LIE)
    found = aggregated(rule, answers)
    assert (found.values == HONEST).all()
    assert found.disagreement[0] > 0.3
    assert found.disagreement[1] == 0.0
    assert found.dissent == tuple(int(one is LIE) for one in answers)


def test_a_mean_is_moved_and_says_how_far_apart_they_are() -> None:
    found = aggregated("mean", [HONEST, LIE, HONEST])
    assert found.values[0] == pytest.approx((2 * HONEST[0] + LIE[0]) / 3, abs=1e-6)
    assert found.dissent == (0, 1, 0)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", RULES)
def test_what_is_no_number_counts_for_nothing(rule: str, wrong: float) -> None:
    poison = HONEST.copy()
    poison[0, 2] = wrong
    found = aggregated(rule, [poison, HONEST, HONEST])
    assert (found.values == HONEST).all()
    assert found.dissent == (1, 0, 0)
    assert np.isnan(aggregated(rule, [poison, poison]).values[0]).all()


def test_labels_and_texts_are_voted_on_whole() -> None:
    labels = [np.array(one, dtype=np.int64) for one in ([3, 1], [3, 2], [5, 2])]
    found = aggregated("vote", labels)
    assert found.values.tolist() == [3, 2]
    assert found.dissent == (1, 0, 1)
    texts = [np.frombuffer(one, dtype=np.uint8)[None] for one in (b"seven", b"no", b"seven")]
    found = aggregated("vote", texts)
    assert found.values.tobytes() == b"seven"
    assert found.disagreement.tolist() == pytest.approx([1 / 3])


def test_of_as_many_votes_the_earlier_member_wins() -> None:
    one, other = (np.array([n], dtype=np.int64) for n in (9, 4))
    assert aggregated("vote", [one, other]).values.tolist() == [9]
    assert aggregated("vote", [other, one]).values.tolist() == [4]


def test_honest_noise_is_no_dissent() -> None:
    noisy = HONEST + np.float32(1e-6)
    for rule in RULES:
        assert aggregated(rule, [HONEST, noisy, HONEST]).dissent == (0, 0, 0)


@pytest.mark.parametrize(
    ("rule", "answers"),
    [
        ("mode", [HONEST]),
        ("mean", [np.array([1], dtype=np.int64)]),
        ("vote", [np.ones((2, 1), dtype=np.float32)]),
        ("vote", [HONEST, HONEST[:1]]),
        ("vote", [HONEST, HONEST.astype(np.int64)]),
        ("vote", []),
        ("vote", [HONEST] * (MAX_MEMBERS + 1)),
    ],
)
def test_what_does_not_go_together_is_refused(rule: str, answers: list[np.ndarray]) -> None:
    with pytest.raises(InvalidSpec):
        aggregated(rule, answers)


def test_more_than_half_are_a_quorum() -> None:
    assert [quorum_of(n) for n in (1, 2, 3, 4, 5)] == [1, 2, 2, 3, 3]
    check_rule("vote", "uint8")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(3, 7), st.sampled_from(["vote", "median"]))
def test_fewer_liars_than_half_stay_within_what_honest_answers_span(seed: int, members: int, rule: str) -> None:
    draws = np.random.default_rng(seed)
    honest = [HONEST + draws.normal(0, 1e-4, HONEST.shape).astype(np.float32) for _ in range(members // 2 + 1)]
    liars = [draws.normal(0, 10, HONEST.shape).astype(np.float32) for _ in range(members - len(honest))]
    answers = [*honest, *liars]
    found = aggregated(rule, [answers[place] for place in draws.permutation(members)])
    if rule == "vote":
        assert found.values.argmax(1).tolist() == HONEST.argmax(1).tolist()
    else:
        assert (found.values >= np.min(honest, axis=0)).all()
        assert (found.values <= np.max(honest, axis=0)).all()
