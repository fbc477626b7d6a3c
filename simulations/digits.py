"""scikit-learn's digits as celluler content: 1,797 images of 8×8, ten classes, in the wheel, no download.

A dataset is a safetensors file of `x` (n, 64) float32 in 0…1 and `y` (n,) int64.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

HELD_OUT = 360


@dataclass(frozen=True, slots=True)
class Digits:
    """train: path of the dataset file. x, y: the held-out images and labels, which no trainer sees."""

    train: Path
    x: NDArray[np.float32]
    y: NDArray[np.int64]

    def accuracy(self, logits: NDArray[np.float32]) -> float:
        """Share of the held-out labels that the largest logit names. logits: (held out, 10)."""
        return float((logits.argmax(axis=1) == self.y).mean())


def write_digits(folder: Path, *, seed: int = 7) -> Digits:
    """Write the training part into `folder`; keep `HELD_OUT` images back, chosen by seed."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - an extra; this module is imported without it too

    bunch: Any = load_digits()
    order = np.random.default_rng(seed).permutation(len(bunch.target))
    x = (bunch.data[order] / 16.0).astype(np.float32)
    y = bunch.target[order].astype(np.int64)
    path = folder / "digits-train.safetensors"
    save_file({"x": x[HELD_OUT:], "y": y[HELD_OUT:]}, path)
    return Digits(path, x[:HELD_OUT], y[:HELD_OUT])


MLP: dict[str, Any] = {
    "spec": 1,
    "input": {"dtype": "float32", "shape": [64]},
    "layers": [
        {"kind": "dense", "width": 128},
        {"kind": "activation", "function": "relu"},
        {"kind": "dense", "width": 64},
        {"kind": "activation", "function": "relu"},
        {"kind": "dense", "width": 10},
    ],
    "objective": {"kind": "classification", "classes": 10},
}
"""The demo's untrained model, as declaration."""
