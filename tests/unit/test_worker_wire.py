"""Updates on coarser wires, and replays held against them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celluler.aggregation.q16 import Quantised, Values, decode, part_slices
from celluler.aggregation.wires import WIRES, round_to
from celluler.engines.replay import deviation
from celluler.learning.audit import TOLERANCE
from celluler_node.processes.worker_replay import _steps, _unit
from celluler_node.processes.worker_wire import encode_update, steps_of

SIZE = 5000
COARSE = [name for name in WIRES if name != "q16"]


def updates(seed: int) -> tuple[Values, Values]:
    """(m, the part of it that the steps added), as in a later round."""
    rng = np.random.default_rng(seed)
    added = rng.standard_normal(SIZE, dtype=np.float32) * rng.choice([1e-3, 1], SIZE).astype(np.float32)
    return added + 4 * rng.standard_normal(SIZE, dtype=np.float32), added


def measure(wire: str, sent: Values, exact: Values, added: Values) -> float:
    one, other = (Quantised(e[0], m) for e, m in (encode_update(values, 1, wire) for values in (sent, exact)))
    return deviation(decode(one), decode(other), exact, added, _unit(one, other), _steps(wire, one, other))


@pytest.mark.parametrize("wire", WIRES)
@given(seed=st.integers(0, 1000), parts=st.integers(1, 7))
def test_an_update_is_rounded_part_by_part(wire: str, seed: int, parts: int) -> None:
    update, _ = updates(seed)
    _, mantissas = encode_update(update, parts, wire)
    for piece in part_slices(SIZE, parts):
        assert np.array_equal(round_to(wire, mantissas[piece]), mantissas[piece])


@pytest.mark.parametrize("wire", COARSE)
@given(seed=st.integers(0, 1000))
def test_neighbours_on_a_wire_are_a_step_apart(wire: str, seed: int) -> None:
    mantissas = encode_update(updates(seed)[0], 1, wire)[1]
    steps = steps_of(wire, mantissas)
    assert (mantissas % steps == 0).all()
    assert (np.abs(mantissas) / steps < 2 ** (WIRES[wire].bits - 1)).all()


@pytest.mark.parametrize("wire", WIRES)
@given(seed=st.integers(0, 1000), noise=st.sampled_from([0, 1e-7, 1e-6]))
def test_honest_noise_stays_within_the_tolerance_and_laziness_does_not(wire: str, seed: int, noise: float) -> None:
    exact, added = updates(seed)
    shaken = exact + added * np.float32(noise) * np.random.default_rng(seed).standard_normal(SIZE, dtype=np.float32)
    assert measure(wire, shaken, exact, added) <= TOLERANCE / 10
    assert measure(wire, exact - np.float32(0.05) * added, exact, added) > TOLERANCE
