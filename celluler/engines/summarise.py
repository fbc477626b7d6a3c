"""What a manifest says of a dataset's file, computed from the file in one pass. For the worker alone.

Knows neither names nor versions, nor what a model would make of the data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from celluler.datasets.quality import Figures
from celluler.datasets.schema import (
    MAX_DIMENSIONS,
    MAX_DISTINCT,
    MAX_ROWS,
    Column,
    Summary,
    check_columns,
    check_summary,
)
from celluler.engines.columns import Numbers, place_of
from celluler.engines.tables import BATCH_NUMBERS, Batch, Table, file_format, open_table
from celluler.errors import InvalidSpec
from celluler.models.weights import TensorView, read_header

_TENSORS = {"F32": ("float32", "<f4"), "I64": ("int64", "<i8")}
_LABELS = {"safetensors": "y", "parquet": "label", "arrow": "label"}
"""The column that is taken for the label when none is named."""


def summarise(path: Path, form: str = "", label: str = "") -> Summary:
    """form: what the file must be, or empty. label: the column to predict; empty for the usual one, if it is there.

    Raises InvalidSpec for a file that is no dataset, or another than was said.
    """
    found = file_format(path)
    if form and form != found:
        raise InvalidSpec("format", f"is {form!r}, but the file is {found}")
    if found == "safetensors":
        return _summary(_Tensors(path), label)
    with open_table(path) as table:
        return _summary(table, label)


def _summary(table: Table | _Tensors, label: str) -> Summary:
    if not table.rows:
        raise InvalidSpec("dataset", "holds no row")
    names = [column.name for column in table.columns]
    if label and label not in names:
        raise InvalidSpec("label", f"{label!r} is no column; there are {', '.join(names)[:128]}")
    label = label or next((name for name in names if name == _LABELS[table.format]), "")
    figures = {column.name: Figures(column) for column in table.columns}
    for batch in table.batches(names):
        for name, values in batch.items():
            _add(figures[name], values)
    summary = Summary(
        format=table.format,
        rows=table.rows,
        schema=table.columns,
        quality=tuple(figures[name].quality() for name in names),
        label=label,
        balance=figures[label].balance() if label else (),
    )
    check_summary(summary)
    return summary


def _add(figures: Figures, values: Any) -> None:
    if isinstance(values, Numbers):
        figures.add_numbers(values.values, values.valid)
    else:
        figures.add_words(values.missing, values.counts(MAX_DISTINCT) if figures.counting else None)


@dataclass(frozen=True, slots=True)
class _Source:
    column: Column
    view: TensorView
    code: str


class _Tensors:
    """A safetensors file as a table: every tensor is a column, its first axis the rows."""

    format = "safetensors"

    def __init__(self, path: Path) -> None:
        views = read_header(path, "dataset")
        counts = {view.shape[0] if view.shape else 0 for view in views.values()}
        if len(counts) != 1 or max(counts) > MAX_ROWS:
            raise InvalidSpec("dataset", f"must hold tensors with one number of rows, at most {MAX_ROWS}")
        self.rows = counts.pop()
        self._path = path
        self._sources = tuple(_source(name, view) for name, view in views.items())
        self.columns = tuple(source.column for source in self._sources)
        check_columns(self.columns)

    def batches(self, _names: list[str]) -> Iterator[Batch]:
        for source in self._sources:
            shape = source.view.shape
            whole = np.memmap(self._path, dtype=source.code, mode="r", offset=source.view.start, shape=shape)
            step = max(1, BATCH_NUMBERS // math.prod(shape[1:]))
            for start in range(0, self.rows, step):
                yield {source.column.name: Numbers(whole[start : start + step], None)}


def _source(name: str, view: TensorView) -> _Source:
    where = place_of(name)
    if not 1 <= len(name.encode("utf-8", "replace")) <= 128:
        raise InvalidSpec(where, "a tensor has a name of 1…128 bytes")
    if len(view.shape) > 1 + MAX_DIMENSIONS or 0 in view.shape[1:]:
        raise InvalidSpec(where, f"has the shape {view.shape}, at most {MAX_DIMENSIONS} sides behind the rows, none 0")
    dtype, code = _TENSORS[view.dtype]
    return _Source(Column(name, dtype, view.shape[1:]), view, code)
