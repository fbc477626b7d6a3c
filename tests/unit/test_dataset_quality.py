"""Figures about columns: the same in one batch or in many, and never what is not there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from celluler.datasets.quality import Figures
from celluler.datasets.schema import MAX_DISTINCT, MAX_LABELS, Column, ColumnQuality, LabelCount
from celluler.errors import InvalidSpec


def figures(column: Column, *batches: Any) -> Figures:
    made = Figures(column)
    for values in batches:
        made.add_numbers(np.asarray(values, dtype=column.dtype))
    return made


def test_nan_and_infinity_are_missing_and_do_not_count() -> None:
    quality = figures(Column("x", "float32", ()), [1.0, np.nan, 3.0], [np.inf, -np.inf, 2.0, 2.0]).quality()
    assert quality == ColumnQuality("x", 3, 1.0, 3.0, 2.0, 3)


def test_a_row_misses_its_value_when_any_number_of_it_is_missing() -> None:
    quality = figures(Column("x", "float64", (2,)), [[1.0, np.nan], [3.0, 5.0], [np.nan, np.nan]]).quality()
    assert quality == ColumnQuality("x", 2, 1.0, 5.0, 3.0, None)


def test_what_is_not_valid_is_missing_whatever_stands_there() -> None:
    made = Figures(Column("x", "int64", ()))
    made.add_numbers(np.array([1, 0, 3]), np.array([True, False, True]))
    assert made.quality() == ColumnQuality("x", 1, 1.0, 3.0, 2.0, 2)


def test_a_column_of_nothing_has_no_figures() -> None:
    assert figures(Column("x", "float32", ()), [np.nan, np.nan]).quality() == ColumnQuality("x", 2, None, None, None, 0)
    assert figures(Column("x", "float32", ()), []).quality().missing == 0


def test_the_mean_of_the_largest_numbers_does_not_overflow() -> None:
    largest = np.finfo(np.float64).max
    quality = figures(Column("x", "float64", ()), [largest] * 3, [largest]).quality()
    assert quality.minimum == quality.mean == quality.maximum == largest


def test_distinct_values_are_counted_up_to_the_limit() -> None:
    column = Column("x", "int64", ())
    assert figures(column, range(MAX_DISTINCT), range(MAX_DISTINCT)).quality().distinct == MAX_DISTINCT
    for batches in ([range(MAX_DISTINCT + 1)], [range(MAX_DISTINCT), [-1]]):
        made = figures(column, *batches)
        assert made.quality().distinct is None
        assert not made.counting


def test_the_balance_is_of_labels() -> None:
    assert figures(Column("y", "int64", ()), [10, 9, 9]).balance() == (LabelCount("10", 1), LabelCount("9", 2))
    assert figures(Column("y", "bool", ()), [True, False, True]).balance() == (LabelCount("0", 1), LabelCount("1", 2))
    assert figures(Column("y", "float32", ()), [1.0, 2.0]).balance() == ()
    assert figures(Column("y", "int64", ()), range(MAX_LABELS + 1)).balance() == ()
    words = Figures(Column("y", "text", ()))
    words.add_words(1, {"cat": 2, "Änne": 1})
    words.add_words(0, {"cat": 1})
    assert words.balance() == (LabelCount("cat", 3), LabelCount("Änne", 1))
    assert words.quality() == ColumnQuality("y", 1, None, None, None, 2)


@pytest.mark.parametrize("label", ["two\nlines", "x" * 129, "\u202egnp"])
def test_text_that_cannot_be_shown_is_no_label(label: str) -> None:
    words = Figures(Column("y", "text", ()))
    words.add_words(0, {label: 1})
    with pytest.raises(InvalidSpec, match="printable"):
        words.balance()


@given(
    arrays.arrays(np.float64, st.tuples(st.integers(1, 40), st.integers(1, 3)), elements=st.floats(width=64)),
    st.lists(st.integers(0, 40), max_size=4),
)
@settings(max_examples=100)
def test_how_values_are_cut_into_batches_changes_nothing_that_is_exact(values, cuts) -> None:
    column = Column("x", "float64", (values.shape[1],))
    whole = figures(column, values).quality()
    cut = figures(column, *np.split(values, sorted(cut for cut in cuts if cut < len(values)))).quality()
    assert (cut.missing, cut.minimum, cut.maximum) == (whole.missing, whole.minimum, whole.maximum)
    finite = values[np.isfinite(values)]
    assert whole.missing == int((~np.isfinite(values)).any(axis=1).sum())
    if finite.size:
        assert (whole.minimum, whole.maximum) == (finite.min(), finite.max())
        assert whole.minimum <= whole.mean <= whole.maximum
