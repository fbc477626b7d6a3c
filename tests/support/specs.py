"""Architectures for tests, and digits as a dataset."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from celluler.models.templates import TEMPLATES

MLP, CNN = TEMPLATES["mlp"].document, TEMPLATES["cnn"].document
RELU: dict[str, Any] = {"kind": "activation", "function": "relu"}
TINY: dict[str, Any] = {
    "spec": 1,
    "input": {"dtype": "float32", "shape": [3]},
    "layers": [{"kind": "dense", "width": 4}, RELU, {"kind": "dense", "width": 2}],
    "objective": {"kind": "classification", "classes": 2},
}
WORDS: dict[str, Any] = {
    "spec": 1,
    "input": {"dtype": "int64", "shape": [5]},
    "layers": [{"kind": "embedding", "vocabulary": 7, "width": 3}, {"kind": "flatten"}, {"kind": "dense", "width": 1}],
    "objective": {"kind": "regression"},
}


def dense(width: int) -> dict[str, Any]:
    return {"kind": "dense", "width": width}


def regression(*layers: dict[str, Any], shape: tuple[int, ...] = (8,), dtype: str = "float32") -> dict[str, Any]:
    """A document around layers that promises nothing about their output."""
    return {
        "spec": 1,
        "input": {"dtype": dtype, "shape": list(shape)},
        "layers": list(layers),
        "objective": {"kind": "regression"},
    }


def as_bytes(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


def save_tensors(path: Path, tensors: dict[str, npt.NDArray[Any]]) -> Path:
    save_file(tensors, str(path))
    return path


@functools.cache
def digits() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """scikit-learn's digits, shuffled, scaled to 0…1: (1797, 64) and (1797,). The last 360 are for holding out."""
    from sklearn.datasets import load_digits  # noqa: PLC0415  most tests need no scikit-learn

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return (x[order] / 16).astype(np.float32), y[order].astype(np.int64)
