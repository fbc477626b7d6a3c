"""How far a replay is from what was sent, and what counts as rounding."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celluler.aggregation.q16 import Quantised, decode, encode
from celluler.engines.replay import WORST, deviation
from celluler.learning.audit import TOLERANCE

Vector = npt.NDArray[np.float32]


def updates(seed: int, size: int = 4096) -> tuple[Vector, Vector]:
    """(m, the part of it that the steps added), as in a later round: momentum is ten times larger."""
    rng = np.random.default_rng(seed)
    added = rng.standard_normal(size, dtype=np.float32)
    return added + 10 * rng.standard_normal(size, dtype=np.float32), added


def measure(sent: Vector, exact: Vector, added: Vector) -> float:
    one, other = encode(sent), encode(exact)
    return deviation(decode(one), decode(other), exact, added, 2.0 ** max(one.exponent, other.exponent))


def test_the_same_update_does_not_deviate() -> None:
    exact, added = updates(0)
    assert measure(exact, exact, added) == 0


@given(st.integers(0, 1000), st.sampled_from([1e-7, 1e-6, 1e-5]))
def test_sums_taken_in_another_order_stay_within_the_tolerance(seed: int, noise: float) -> None:
    exact, added = updates(seed)
    rng = np.random.default_rng(seed)
    shaken = exact + added * np.float32(noise) * rng.standard_normal(exact.size, dtype=np.float32)
    assert measure(shaken, exact, added) <= TOLERANCE / 10


@given(st.integers(0, 1000), st.floats(0.01, 1))
def test_steps_left_out_are_above_the_tolerance(seed: int, share: float) -> None:
    exact, added = updates(seed)
    assert measure(exact - np.float32(share) * added, exact, added) > TOLERANCE


def test_a_value_rounded_to_the_neighbouring_mantissa_is_no_difference() -> None:
    exact = np.array([32767.0, 100.5 - 1e-3, 7.0], dtype=np.float32)
    sent, again = decode(Quantised(0, np.array([32767, 101, 7], np.int16))), decode(encode(exact))
    assert (sent != again).sum() == 1
    added = np.array([0, 1e-3, 0], dtype=np.float32)
    assert deviation(sent, again, exact, added, 1.0) == 0
    assert deviation(sent, again, exact, added, 0.0) > 1


def test_where_nothing_was_worked_for_nothing_else_may_be_sent() -> None:
    nothing, something = np.zeros(3, np.float32), np.ones(3, np.float32)
    assert deviation(nothing, nothing, nothing, nothing, 0.0) == 0
    assert deviation(something, nothing, nothing, nothing, 0.0) == WORST


@pytest.mark.parametrize("size", [1, 65_535, 65_537, 200_000])
def test_the_measure_is_a_length_over_the_whole_part(size: int) -> None:
    exact, added = updates(1, size)
    sent = exact + np.float32(0.5) * added
    assert deviation(sent, exact, exact, added, 0.0) == pytest.approx(0.5, rel=1e-3)
