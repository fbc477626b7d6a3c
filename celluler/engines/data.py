"""A dataset file: safetensors with `x` (n, *input) and `y`, checked against an architecture, mapped and not copied."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from celluler.errors import InvalidSpec
from celluler.models.spec import Architecture, Classification
from celluler.models.weights import TensorView, read_header

_DTYPES = {"float32": ("F32", "<f4"), "int64": ("I64", "<i8")}
_CHECKED_ROWS = 1 << 14


@dataclass(frozen=True, slots=True)
class Dataset:
    """x: (n, *input). y: (n,) int64 classes, or (n, *output) float32 for regression."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return self.x.shape[0]


def load_dataset(architecture: Architecture, path: Path) -> Dataset:
    """Raises InvalidSpec (`dataset.x: …`) for a file that does not fit the architecture."""
    views = read_header(path, "dataset")
    if set(views) != {"x", "y"}:
        raise InvalidSpec("dataset", f"must hold the tensors x and y, holds {', '.join(sorted(views))[:128] or 'none'}")
    count = views["x"].shape[0] if views["x"].shape else 0
    if not count:
        raise InvalidSpec("dataset.x", "holds no sample")
    x = _array(path, views["x"], architecture.input.dtype, (count, *architecture.input.shape), "dataset.x")
    objective = architecture.objective
    if isinstance(objective, Classification):
        y = _array(path, views["y"], "int64", (count,), "dataset.y")
        _check_range(y, objective.classes, "dataset.y")
    else:
        y = _array(path, views["y"], "float32", (count, *architecture.output), "dataset.y")
        _check_finite(y, "dataset.y")
    check_values(architecture, x, "dataset.x")
    return Dataset(torch.from_numpy(x), torch.from_numpy(y))


def check_values(architecture: Architecture, x: Any, path: str) -> None:
    """x: (n, *input) of the input's dtype. Raises InvalidSpec for NaN, infinity, or numbers no embedding knows."""
    if architecture.input.dtype == "int64":
        _check_range(x, architecture.vocabulary, path)
    else:
        _check_finite(x, path)


def _array(path: Path, view: TensorView, dtype: str, shape: tuple[int, ...], where: str) -> Any:
    name, code = _DTYPES[dtype]
    if view.dtype != name or view.shape != shape:
        raise InvalidSpec(where, f"is {view.dtype} {view.shape}, must be {name} {shape}")
    flat = np.memmap(path, dtype=code, mode="c", offset=view.start, shape=(math.prod(shape),))
    return flat.reshape(shape)


def _check_finite(values: Any, path: str) -> None:
    for start in range(0, values.shape[0], _CHECKED_ROWS):
        if not np.isfinite(values[start : start + _CHECKED_ROWS]).all():
            raise InvalidSpec(path, "holds values that are not finite")


def _check_range(values: Any, end: int, path: str) -> None:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= end:
        raise InvalidSpec(path, f"holds {low if low < 0 else high}, allowed 0…{end - 1}")
