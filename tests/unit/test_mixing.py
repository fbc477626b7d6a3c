"""Self-centred clipping: what it lets in, and what a liar can do with it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from celluler.engines.mixing import LARGEST_DEVIATION, averaged, clipped, length_between
from celluler.errors import LocalError

Vector = NDArray[np.float32]
OWN = np.array([1, 0, 0, 0], dtype=np.float32)


def vector(*values: float) -> Vector:
    return np.array(values, dtype=np.float32)


def test_neighbours_equally_far_are_mixed_in_whole() -> None:
    rows = [vector(1, 1, 0, 0), vector(1, 0, 1, 0)]
    found = clipped(OWN, rows, [0.25, 0.25], trusted=1, step=0.0)
    assert np.allclose(found.vector, averaged(OWN, rows, [0.25, 0.25]).vector)
    assert found.pulls == (1.0, 1.0)
    assert found.deviations == pytest.approx((1.0, 1.0))


def test_a_far_row_pulls_no_farther_than_a_near_one() -> None:
    found = clipped(OWN, [vector(1, 0.1, 0, 0), vector(1, 0, 1e30, 0)], [0.3, 0.3], trusted=1, step=0.0)
    assert np.allclose(found.vector, [1, 0.03, 0.03, 0])


def test_an_only_neighbour_undoes_no_more_than_our_own_step() -> None:
    found = clipped(OWN, [vector(-1000, 0, 0, 0)], [0.5], trusted=None, step=0.2)
    assert np.allclose(found.vector, [0.9, 0, 0, 0])
    assert clipped(OWN, [vector(1, 0.1, 0, 0)], [0.5], trusted=None, step=0.2).pulls == (1.0,)


def test_nobody_there_leaves_us_where_we_are() -> None:
    found = clipped(OWN, [], [], trusted=None, step=1.0)
    assert (found.vector == OWN).all()
    assert found.vector is not OWN


def test_lengths_that_float32_cannot_hold_are_finite() -> None:
    large = np.full(4, 3e38, dtype=np.float32)
    assert length_between(large, -large) == pytest.approx(1.2e39, rel=0.01)
    found = clipped(np.zeros(4, dtype=np.float32), [large], [0.5], trusted=None, step=1.0)
    assert np.isfinite(found.vector).all()
    assert found.deviations == (LARGEST_DEVIATION,)


@given(
    st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=4), min_size=2, max_size=8),
    st.integers(1, 8),
    st.floats(0.01, 1.0),
)
@settings(max_examples=100, deadline=None)
def test_no_row_moves_us_farther_than_its_weight_times_the_radius(
    drawn: list[list[float]], trusted: int, share: float
) -> None:
    rows = [vector(*values) for values in drawn]
    weights = [share / len(rows)] * len(rows)
    trusted = min(trusted, len(rows))
    found = clipped(OWN, rows, weights, trusted=trusted, step=0.0)
    nearest = sorted(length_between(row, OWN) for row in rows)[:trusted]
    assert length_between(found.vector, OWN) <= share * nearest[-1] * 1.001 + 1e-3


@pytest.mark.parametrize("weights", [[0.5], [0.8, 0.8], [-0.1, 0.2], [float("nan"), 0.1]])
def test_weights_that_are_no_convex_combination_are_refused(weights: list[float]) -> None:
    with pytest.raises(LocalError):
        clipped(OWN, [OWN, OWN], weights, trusted=1, step=0.0)
