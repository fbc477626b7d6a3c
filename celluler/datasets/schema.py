"""What stands in a dataset: its columns, how many rows, and figures that tell its quality.

A summary is made by whoever adds a dataset, where its file may be read, and is checked against itself wherever it
comes from. Nothing here reads a file or an array.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from celluler.errors import InvalidSpec
from celluler.models.names import check_printable
from celluler.wire import Length, Range

MAX_ROWS = 1 << 30
MAX_COLUMNS = 1024
MAX_DIMENSIONS = 4
MAX_SIDE = 1 << 24
MAX_DISTINCT = 1024
"""Distinct values of a column are counted so far; of one that has more nobody says how many."""
MAX_LABELS = 256
"""A label column with more distinct values has no balance."""
MAX_NAME_BYTES = 128

FORMATS = ("safetensors", "parquet", "arrow")
WHOLE = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
NUMBERS = (*WHOLE, "float16", "float32", "float64")
TIMES = ("date", "timestamp")
WORDS = ("text", "bytes")
DTYPES = (*NUMBERS, *TIMES, *WORDS)

ColumnName = Annotated[str, Length(1, MAX_NAME_BYTES)]
RowCount = Annotated[int, Range(1, MAX_ROWS)]


@dataclass(frozen=True, slots=True)
class Column:
    """dtype: one of DTYPES. shape: of one row's value, empty for a single one; only numbers have another."""

    name: ColumnName
    dtype: Annotated[str, Length(1, 16)]
    shape: Annotated[tuple[Annotated[int, Range(1, MAX_SIDE)], ...], Length(0, MAX_DIMENSIONS)]


@dataclass(frozen=True, slots=True)
class ColumnQuality:
    """Figures about the values of a column.

    missing: rows in which the value, or any number of it, is null, NaN or infinite. minimum, maximum, mean: of all
    other numbers; of dates and timestamps in seconds since 1970; None where there is none. distinct: None when there
    are more than MAX_DISTINCT, and for values that have a shape.
    """

    name: ColumnName
    missing: Annotated[int, Range(0, MAX_ROWS)]
    minimum: float | None
    maximum: float | None
    mean: float | None
    distinct: Annotated[int, Range(0, MAX_DISTINCT)] | None


@dataclass(frozen=True, slots=True)
class LabelCount:
    """Rows with this label. label: a whole number in decimal, or text."""

    label: Annotated[str, Length(0, MAX_NAME_BYTES)]
    rows: RowCount


Schema = Annotated[tuple[Column, ...], Length(1, MAX_COLUMNS)]
Quality = Annotated[tuple[ColumnQuality, ...], Length(1, MAX_COLUMNS)]
Balance = Annotated[tuple[LabelCount, ...], Length(0, MAX_LABELS)]


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything a manifest says that follows from the file.

    quality: of every column, in the order of the schema. label: the column to predict, or empty. balance: rows by
    label, ascending by its text; empty when the labels are too many, or no labels but measurements.
    """

    format: Annotated[str, Length(1, 16)]
    rows: RowCount
    schema: Schema
    quality: Quality
    label: Annotated[str, Length(0, MAX_NAME_BYTES)]
    balance: Balance


@dataclass(frozen=True, slots=True)
class Selection:
    """Which columns of a table, or tensors of a file, are what to whoever trains on it.

    features: of a table all but label and key when none is named; of tensors one, by default `x`. label: by default
    the column `label`, or the tensor `y`. key: to shard by, or empty.
    """

    features: Annotated[tuple[ColumnName, ...], Length(0, MAX_COLUMNS)] = ()
    label: Annotated[str, Length(0, MAX_NAME_BYTES)] = ""
    key: Annotated[str, Length(0, MAX_NAME_BYTES)] = ""


USUAL = Selection()
"""What is taken when nothing is said."""


def check_summary(summary: Summary) -> None:
    """Everything a summary says about itself is so. Raises InvalidSpec with the field that is wrong."""
    if summary.format not in FORMATS:
        raise InvalidSpec("format", f"is {summary.format!r}, must be {', '.join(FORMATS)}")
    check_columns(summary.schema)
    if [one.name for one in summary.quality] != [one.name for one in summary.schema]:
        raise InvalidSpec("quality", "must be of the columns of the schema, in their order")
    for place, (column, figures) in enumerate(zip(summary.schema, summary.quality, strict=True)):
        _check_figures(column, figures, summary.rows, f"quality[{place}]")
    _check_balance(summary)


def check_columns(schema: Sequence[Column]) -> None:
    """Names that can be shown and told apart, values of known kinds. Raises InvalidSpec."""
    for place, column in enumerate(schema):
        check_printable(column.name, f"schema[{place}].name")
        if column.dtype not in DTYPES:
            raise InvalidSpec(f"schema[{place}].dtype", f"is {column.dtype!r}, must be one of {', '.join(DTYPES)}")
        if column.shape and column.dtype not in NUMBERS:
            raise InvalidSpec(f"schema[{place}].shape", "only numbers have one")
    if len({column.name for column in schema}) != len(schema):
        raise InvalidSpec("schema", "has two columns of one name")


def _check_figures(column: Column, figures: ColumnQuality, rows: int, path: str) -> None:
    if figures.missing > rows:
        raise InvalidSpec(f"{path}.missing", f"is {figures.missing}, of {rows} rows")
    match figures.minimum, figures.mean, figures.maximum:
        case None, None, None:
            pass
        case float(low), float(mean), float(high) if column.dtype not in WORDS and low <= mean <= high:
            pass
        case _:
            raise InvalidSpec(path, "minimum ≤ mean ≤ maximum of numbers, or none of the three")
    if figures.distinct is None:
        return
    if column.shape or not min(1, rows - figures.missing) <= figures.distinct <= rows - figures.missing:
        raise InvalidSpec(f"{path}.distinct", f"is {figures.distinct}, of {rows - figures.missing} values")


def _check_balance(summary: Summary) -> None:
    if not summary.label:
        if summary.balance:
            raise InvalidSpec("balance", "must be empty without a label column")
        return
    figures = next((one for one in summary.quality if one.name == summary.label), None)
    if figures is None:
        raise InvalidSpec("label", f"{summary.label!r} is no column")
    for place, one in enumerate(summary.balance):
        check_printable(one.label, f"balance[{place}].label")
    if any(later.label <= earlier.label for earlier, later in itertools.pairwise(summary.balance)):
        raise InvalidSpec("balance", "must be sorted by label, each once")
    if not summary.balance:
        return
    if figures.distinct != len(summary.balance):
        raise InvalidSpec("balance", f"has {len(summary.balance)} labels, the column {figures.distinct} values")
    if sum(one.rows for one in summary.balance) != summary.rows - figures.missing:
        raise InvalidSpec("balance", "does not add up to the rows that have a label")
