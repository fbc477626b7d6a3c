from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from celluler.aggregation import rule as rule_module
from celluler.aggregation.digests import mantissas_of, part_hash, wire_bytes
from celluler.aggregation.q16 import (
    MIN_REDUCED_EXPONENT,
    ZERO_EXPONENT,
    Quantised,
    decode,
    decode_parts,
    encode,
    encode_parts,
    is_exponent,
)
from celluler.aggregation.q16 import part_slices as slices_of
from celluler.aggregation.rules import RULES
from celluler.errors import LocalError
from tests.support.slow_rules import SLOW_RULES, has_tie

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = arrays.arrays(np.float32, st.integers(1, 40), elements=finite)
mantissas = st.one_of(st.integers(-(2**15), 2**15 - 1), st.sampled_from([-(2**15), -1, 0, 1, 2**15 - 1]))


@st.composite
def inputs(draw: st.DrawFn) -> tuple[NDArray[np.int16], NDArray[np.int16], int]:
    """Rows of any mantissas; exponents mostly near each other, some absurd, some zero."""
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    centre = draw(st.integers(-120, 90))
    near = st.integers(centre - 20, centre + 20)
    exponent = st.one_of(near, near, st.sampled_from([ZERO_EXPONENT, -163, 113]))
    exponents = draw(arrays.arrays(np.int16, rows, elements=exponent))
    matrix = draw(arrays.arrays(np.int16, (rows, columns), elements=mantissas))
    return exponents, matrix, draw(st.integers(0, rows))


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=60, deadline=None)
@given(case=inputs(), width=st.integers(1, 64))
def test_a_rule_equals_its_slow_reference_bit_for_bit(name: str, case, width: int) -> None:
    exponents, matrix, f = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rule_module, "BLOCK_CELLS", width)
        reduced = RULES[name](exponents, matrix, f)
    exponent, values, weights = SLOW_RULES[name](exponents.tolist(), matrix.tolist(), f)
    assert (reduced.exponent, reduced.mantissas.tolist(), reduced.weights) == (exponent, values, weights)
    assert reduced.mantissas.dtype == np.int16


@st.composite
def edges(draw: st.DrawFn) -> tuple[NDArray[np.int16], NDArray[np.int16], int]:
    """Exponents on the borders between kept, shifted and lost; mantissas at the ends; rows that tie; any f."""
    centre = draw(st.integers(-120, 90))
    step = st.sampled_from([-1, 0, 0, 0, 1, 5, 6, 7, 14, -7, -8, -9, -15, -22, -23, -24, -40])
    exponent = st.one_of(step.map(lambda by: centre + by), st.sampled_from([ZERO_EXPONENT, -163, 113]))
    rows = draw(st.sampled_from([1, 2, 3, 4, 5, 8, 16, 33, 64]))
    end = st.sampled_from([-(2**15), -(2**15) + 1, -1, 0, 1, 2**15 - 1])
    few = draw(st.lists(arrays.arrays(np.int16, 3, elements=end), min_size=1, max_size=4))
    matrix = np.stack([draw(st.sampled_from(few)) for _ in range(rows)])
    exponents = np.array([draw(exponent) for _ in range(rows)], dtype=np.int16)
    return exponents, matrix, draw(st.sampled_from([0, 1, (rows - 1) // 3, (rows - 1) // 2, rows, 1000]))


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=10, deadline=None)
@given(case=edges())
def test_a_rule_equals_its_slow_reference_at_the_edges_too(name: str, case) -> None:
    exponents, matrix, f = case
    reduced = RULES[name](exponents, matrix, f)
    assert (reduced.exponent, reduced.mantissas.tolist(), reduced.weights) == SLOW_RULES[name](
        exponents.tolist(), matrix.tolist(), f
    )


@settings(max_examples=80, deadline=None)
@given(case=edges())
def test_nk_equals_its_slow_reference_at_many_edges(case) -> None:
    exponents, matrix, f = case
    reduced = RULES["nk"](exponents, matrix, f)
    assert (reduced.exponent, reduced.mantissas.tolist(), reduced.weights) == SLOW_RULES["nk"](
        exponents.tolist(), matrix.tolist(), f
    )


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=25, deadline=None)
@given(case=inputs())
def test_a_rule_gives_what_the_wire_can_carry(name: str, case) -> None:
    exponents, matrix, f = case
    reduced = RULES[name](exponents, matrix, f)
    assert len(reduced.weights) == len(exponents)
    assert all(0 <= weight < 2**16 for weight in reduced.weights)
    assert reduced.exponent == ZERO_EXPONENT or MIN_REDUCED_EXPONENT <= reduced.exponent <= 113
    assert np.abs(reduced.mantissas.astype(int)).max() < 2**15


@settings(max_examples=60, deadline=None)
@given(case=inputs(), seed=st.integers(0, 2**32 - 1))
def test_the_order_of_the_inputs_does_not_matter_to_rules_by_coordinate(case, seed: int) -> None:
    exponents, matrix, f = case
    order = np.random.default_rng(seed).permutation(len(exponents))
    for name in ("median", "trimmed-mean", "mean"):
        straight, shuffled = RULES[name](exponents, matrix, f), RULES[name](exponents[order], matrix[order], f)
        assert shuffled.exponent == straight.exponent
        assert np.array_equal(shuffled.mantissas, straight.mantissas)
        assert [straight.weights[row] for row in order] == list(shuffled.weights)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 12))
def test_the_order_of_the_inputs_matters_to_nk_only_in_a_tie(seed: int, count: int) -> None:
    """Different neighbourhoods can score exactly the same; then the place decides, as it must to be one answer."""
    random = np.random.default_rng(seed)
    matrix = random.integers(-(2**15), 2**15, (count, 16), dtype=np.int16)
    exponents, order = random.integers(-22, -18, count, dtype=np.int16), random.permutation(count)
    f = int(random.integers(0, count))
    assume(not has_tie(exponents.tolist(), matrix.tolist(), f))
    straight, shuffled = RULES["nk"](exponents, matrix, f), RULES["nk"](exponents[order], matrix[order], f)
    assert shuffled.exponent == straight.exponent
    assert np.array_equal(shuffled.mantissas, straight.mantissas)
    assert [straight.weights[row] for row in order] == list(shuffled.weights)


@pytest.mark.parametrize("name", sorted(RULES.keys() - {"clipping"}))  # which makes large updates smaller
@settings(max_examples=40, deadline=None)
@given(values=vectors, count=st.integers(1, 9), f=st.integers(0, 4))
def test_equal_inputs_are_given_back(name: str, values: NDArray[np.float32], count: int, f: int) -> None:
    part = encode(values)
    exponents = np.full(count, part.exponent, dtype=np.int16)
    reduced = RULES[name](exponents, np.tile(part.mantissas, (count, 1)), f)
    assert reduced.exponent == part.exponent
    assert np.array_equal(reduced.mantissas, part.mantissas)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(3, 15), factor=st.sampled_from([-1000.0, 1000.0, 1e30]))
def test_f_colluders_who_multiply_get_no_weight(seed: int, count: int, factor: float) -> None:
    random = np.random.default_rng(seed)
    f = (count - 1) // 2
    honest = 1 + 0.1 * random.standard_normal((count, 50)).astype(np.float32)
    liars = random.permutation(count)[:f]
    honest[liars] *= np.float32(factor)
    parts = [encode(row) for row in honest]
    exponents = np.array([part.exponent for part in parts], dtype=np.int16)
    reduced = RULES["nk"](exponents, np.stack([part.mantissas for part in parts]), f)
    assert all(reduced.weights[liar] == 0 for liar in liars)
    assert np.abs(decode_reduced(reduced) - 1).max() < 0.6


@pytest.mark.parametrize("name", ["nk", "krum", "multi-krum"])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(7, 15), factor=st.sampled_from([-3.0, 5.0, -20.0]))
def test_f_colluders_of_a_plausible_size_get_no_weight_either(name: str, seed: int, count: int, factor: float) -> None:
    """Small enough for their exponent to be kept: distances must find them."""
    random = np.random.default_rng(seed)
    f = (count - 1) // 2
    updates = 1 + 0.1 * random.standard_normal((count, 50)).astype(np.float32)
    liars = random.permutation(count)[:f]
    updates[liars] *= np.float32(factor)
    parts = [encode(row) for row in updates]
    exponents = np.array([part.exponent for part in parts], dtype=np.int16)
    reduced = RULES[name](exponents, np.stack([part.mantissas for part in parts]), f)
    assert all(reduced.weights[liar] == 0 for liar in liars)


@pytest.mark.parametrize("name", ["winsorised-nk", "nnm-cc", "geometric-median", "median", "trimmed-mean"])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(7, 15), factor=st.sampled_from([-3.0, 5.0, -20.0]))
def test_a_third_of_liars_moves_a_robust_rule_little(name: str, seed: int, count: int, factor: float) -> None:
    random = np.random.default_rng(seed)
    f = (count - 1) // 3
    updates = 1 + 0.1 * random.standard_normal((count, 50)).astype(np.float32)
    updates[random.permutation(count)[:f]] *= np.float32(factor)
    parts = [encode(row) for row in updates]
    exponents = np.array([part.exponent for part in parts], dtype=np.int16)
    reduced = RULES[name](exponents, np.stack([part.mantissas for part in parts]), f)
    assert np.abs(decode_reduced(reduced) - 1).max() < 0.6


@settings(max_examples=200, deadline=None)
@given(values=vectors)
def test_what_is_encoded_comes_back_within_one_unit(values: NDArray[np.float32]) -> None:
    part = encode(values)
    error = np.abs(decode(part).astype(np.float64) - values.astype(np.float64))
    assert is_exponent(part.exponent)
    if part.exponent == ZERO_EXPONENT:
        assert not values.any()
        return
    unit = 2.0**part.exponent
    assert error.max() <= unit
    clamped = np.abs(part.mantissas) == 2**15 - 1
    assert (error[~clamped] <= unit / 2 + 2.0**-150).all()  # below 2^-149 float32 itself rounds
    assert np.abs(part.mantissas).max() >= 2**14  # nothing is wasted


@settings(max_examples=60, deadline=None)
@given(values=vectors)
def test_encoding_what_was_decoded_changes_nothing(values: NDArray[np.float32]) -> None:
    part = encode(values)
    if part.exponent == ZERO_EXPONENT or part.exponent > -149:  # a float32 that small has fewer than 15 bits
        again = encode(decode(part))
        assert again.exponent == part.exponent
        assert np.array_equal(again.mantissas, part.mantissas)


@settings(max_examples=60, deadline=None)
@given(values=vectors, bad=st.sampled_from([np.nan, np.inf, -np.inf]), place=st.integers(0, 1 << 30))
def test_no_value_that_is_not_finite_is_ever_encoded(values: NDArray[np.float32], bad: float, place: int) -> None:
    values[place % values.size] = bad
    with pytest.raises(LocalError):
        encode(values)


@settings(max_examples=60, deadline=None)
@given(dimension=st.integers(1, 10_000), parts=st.integers(1, 64))
def test_parts_cover_the_whole_without_gaps_and_differ_by_at_most_one(dimension: int, parts: int) -> None:
    if parts > dimension:
        with pytest.raises(LocalError):
            slices_of(dimension, parts)
        return
    pieces = slices_of(dimension, parts)
    assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces[:-1])]
    assert pieces[-1].stop == dimension
    sizes = {piece.stop - piece.start for piece in pieces}
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=40, deadline=None)
@given(values=vectors, parts=st.integers(1, 5))
def test_an_update_cut_into_parts_is_its_parts(values: NDArray[np.float32], parts: int) -> None:
    parts = min(parts, values.size)
    exponents, matrix = encode_parts(values, parts)
    for exponent, piece in zip(exponents, slices_of(values.size, parts), strict=True):
        alone = encode(values[piece])
        assert (alone.exponent, alone.mantissas.tolist()) == (exponent, matrix[piece].tolist())
    assert decode_parts(exponents, matrix).shape == values.shape


@settings(max_examples=40, deadline=None)
@given(
    matrix=arrays.arrays(np.int16, st.integers(1, 30), elements=mantissas),
    changed=st.sampled_from(["run", "round_number", "author", "part", "exponent", "mantissas"]),
)
def test_a_part_hash_binds_every_field(matrix: NDArray[np.int16], changed: str) -> None:
    fields: dict[str, Any] = {
        "run": bytes(32),
        "round_number": 3,
        "author": b"a" * 32,
        "part": 1,
        "exponent": -20,
        "mantissas": matrix,
    }
    other = {**fields, changed: _another(fields[changed])}
    assert part_hash(**fields) == part_hash(**fields)
    assert part_hash(**fields) != part_hash(**other)
    assert np.array_equal(mantissas_of(wire_bytes(matrix)), matrix)


def _another(value: object) -> object:
    match value:
        case int():
            return value + 1
        case bytes():
            return bytes([value[0] ^ 1]) + value[1:]
        case np.ndarray():
            return value ^ 1
    raise AssertionError(value)


def decode_reduced(reduced: rule_module.Reduced) -> NDArray[np.float32]:
    return decode(Quantised(reduced.exponent, reduced.mantissas))
