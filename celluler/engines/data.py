"""A dataset's file as what a model learns from: `x` (n, *input) and `y`, checked against its architecture.

Of a safetensors file the tensors are mapped and not copied. Of a table the columns named as features are laid side by
side, in that order, and read as the input's shape.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from celluler.datasets.schema import NUMBERS, USUAL, WHOLE, Column, Selection
from celluler.engines.columns import MAX_WORD_BYTES, Numbers, Words
from celluler.engines.tables import Batch, Table, file_format, open_table
from celluler.errors import InvalidSpec
from celluler.models.body import Body
from celluler.models.layers import Shape
from celluler.models.objectives import Classification
from celluler.models.weights import TensorView, read_header

_DTYPES = {"float32": ("F32", "<f4"), "int64": ("I64", "<i8")}
_CHECKED_ROWS = 1 << 14


@dataclass(frozen=True, slots=True)
class Dataset:
    """x: (n, *input). y: (n,) int64 classes, (n, *output) float32 for regression, or x itself where that is what the
    model is asked for. keys: (n,) int64, when asked for; of text its `key_numbers`."""

    x: Tensor
    y: Tensor
    keys: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return self.x.shape[0]


def load_dataset(architecture: Body, path: Path, chosen: Selection = USUAL) -> Dataset:
    """Raises InvalidSpec (`dataset.x: …`) for a file that does not fit the model."""
    if file_format(path) == "safetensors":
        x, y, keys = _from_tensors(architecture, path, chosen)
    else:
        with open_table(path) as table:
            x, y, keys = _from_table(architecture, table, chosen)
    objective = architecture.objective
    if isinstance(objective, Classification):
        _check_range(y, objective.classes, "dataset.y")
    elif y is not None:
        _check_finite(y, "dataset.y")
    check_values(architecture, x, "dataset.x")
    samples = torch.from_numpy(x)
    return Dataset(samples, samples if y is None else torch.from_numpy(y), keys)


def check_values(architecture: Body, x: Any, path: str) -> None:
    """x: (n, *input) of the input's dtype. Raises InvalidSpec for NaN, infinity, or numbers no embedding knows."""
    if architecture.input.dtype == "int64":
        _check_range(x, architecture.vocabulary, path)
    else:
        _check_finite(x, path)


def _answers(architecture: Body, sample: Shape) -> tuple[str, Shape] | None:
    """(dtype, shape of one row) of y; None when x is what is asked for. sample: one that fits."""
    if architecture.objective.FROM_INPUT:
        return None
    if isinstance(architecture.objective, Classification):
        return "int64", ()
    return "float32", architecture.answer_shape(sample)


def _sample(architecture: Body, rows: Shape) -> Shape:
    """Of rows of this shape, when the model takes such samples; else of one that it would take."""
    with contextlib.suppress(InvalidSpec):
        architecture.answer_shape(rows[1:])
        return rows[1:]
    return architecture.input.shape


# --- tensors --------------------------------------------------------------------------------------------------------


def _from_tensors(architecture: Body, path: Path, chosen: Selection) -> tuple[Any, Any, Any]:
    views = read_header(path, "dataset")
    if len(chosen.features) > 1:
        raise InvalidSpec("features", "of a file of tensors can be one only")
    x, y = (*chosen.features, "x")[0], chosen.label or "y"
    sample = _sample(architecture, views[x].shape) if x in views else architecture.input.shape
    answers = _answers(architecture, sample)
    wanted = {x, *([] if answers is None else [y]), *([chosen.key] if chosen.key else [])}
    if set(views) != wanted and (answers is not None or set(views) != wanted | {y}):
        names = " and ".join(sorted(wanted))
        raise InvalidSpec("dataset", f"must hold the tensors {names}, holds {', '.join(sorted(views))[:128] or 'none'}")
    count = views[x].shape[0] if views[x].shape else 0
    if not count:
        raise InvalidSpec("dataset.x", "holds no sample")
    return (
        _array(path, views[x], architecture.input.dtype, (count, *sample), "dataset.x"),
        None if answers is None else _array(path, views[y], answers[0], (count, *answers[1]), "dataset.y"),
        _array(path, views[chosen.key], "int64", (count,), "dataset.key") if chosen.key else None,
    )


def _array(path: Path, view: TensorView, dtype: str, shape: tuple[int, ...], where: str) -> Any:
    name, code = _DTYPES[dtype]
    if view.dtype != name or view.shape != shape:
        raise InvalidSpec(where, f"is {view.dtype} {view.shape}, must be {name} {shape}")
    flat = np.memmap(path, dtype=code, mode="c", offset=view.start, shape=(math.prod(shape),))
    return flat.reshape(shape)


# --- tables ---------------------------------------------------------------------------------------------------------


def _from_table(architecture: Body, table: Table, chosen: Selection) -> tuple[Any, Any, Any]:
    answers = _answers(architecture, architecture.input.shape)
    labels = () if answers is None else (table.column(chosen.label or "label"),)
    key = table.column(chosen.key) if chosen.key else None
    features = _features(table, chosen)
    x = _room(table.rows, features, architecture.input.dtype, architecture.input.shape, "dataset.x")
    y = None if answers is None else _room(table.rows, labels, *answers, "dataset.y")
    keys = None if key is None else np.empty(table.rows, dtype=np.int64)
    used = dict.fromkeys(column.name for column in (*features, *labels, key) if column is not None)
    start = 0
    for batch in table.batches(tuple(used)):
        end = start + len(batch[features[0].name])
        _fill(x[start:end], features, batch)
        if y is not None:
            _fill(y[start:end], labels, batch)
        if key is not None and keys is not None:
            keys[start:end] = _keys(batch[key.name], key)
        start = end
    if y is not None and answers is not None:
        y = y.reshape(-1, *answers[1])
    return x.reshape(-1, *architecture.input.shape), y, keys


def _features(table: Table, chosen: Selection) -> tuple[Column, ...]:
    label = chosen.label or "label"
    if label in chosen.features:
        raise InvalidSpec("features", f"hold the label {label[:64]!r}")
    if chosen.features:
        return tuple(table.column(name) for name in chosen.features)
    return tuple(column for column in table.columns if column.name not in (label, chosen.key))


def _room(rows: int, columns: tuple[Column, ...], dtype: str, shape: tuple[int, ...], where: str) -> Any:
    """(rows, numbers a row), to be filled from these columns. Raises InvalidSpec when they do not fit."""
    if not rows:
        raise InvalidSpec(where, "holds no sample")
    allowed = WHOLE if dtype == "int64" else NUMBERS
    for column in columns:
        if column.dtype not in allowed:
            needed = "whole numbers" if dtype == "int64" else "numbers"
            raise InvalidSpec(f"dataset.{column.name[:64]}", f"holds {column.dtype}, must hold {needed}")
    width, wanted = sum(math.prod(column.shape) for column in columns), math.prod(shape)
    if width != wanted:
        names = ", ".join(column.name for column in columns)[:128] or "no column"
        raise InvalidSpec(where, f"{names}: {width} numbers a row, the model's shape {shape} takes {wanted}")
    return np.empty((rows, width), dtype=dtype)


def _fill(room: Any, columns: tuple[Column, ...], batch: Batch) -> None:
    start = 0
    for column in columns:
        numbers = batch[column.name]
        assert isinstance(numbers, Numbers), "_room has looked at its dtype"
        if numbers.valid is not None and not numbers.valid.all():
            raise InvalidSpec(f"dataset.{column.name[:64]}", "has rows without a value")
        end = start + math.prod(column.shape)
        with np.errstate(over="ignore"):  # what no float32 holds becomes infinite and is refused with the rest
            room[:, start:end] = numbers.values.reshape(len(room), -1)
        start = end


def _keys(values: Numbers | Words, column: Column) -> npt.NDArray[np.int64]:
    if isinstance(values, Words):
        numbers = values.numbers()
    else:
        whole = column.dtype in WHOLE and not column.shape and values.valid is None
        numbers = values.values.astype(np.int64) if whole else None
    if numbers is None:
        raise InvalidSpec(
            f"dataset.{column.name[:64]}", f"is no key: whole numbers or text to {MAX_WORD_BYTES} bytes in every row"
        )
    return numbers


# --- values ---------------------------------------------------------------------------------------------------------


def _check_finite(values: Any, path: str) -> None:
    for start in range(0, values.shape[0], _CHECKED_ROWS):
        if not np.isfinite(values[start : start + _CHECKED_ROWS]).all():
            raise InvalidSpec(path, "holds values that are not finite")


def _check_range(values: Any, end: int, path: str) -> None:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= end:
        raise InvalidSpec(path, f"holds {low if low < 0 else high}, allowed 0…{end - 1}")
