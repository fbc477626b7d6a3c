"""What is trained to measure a machine by: small tasks that stand in for real ones, or a model and data of one's own.

The same samples from the same seed everywhere. Ten classes that overlap, so that there is something to learn and
something left to learn in every round.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from celluler.models.spec import parse_spec
from celluler.models.weights import initial_weights

CLASSES, FEATURES, SAMPLES = 10, 64, 2000
SEED = b"celluler-calibrate".ljust(32, b"\0")
_RELU = {"kind": "activation", "function": "relu"}
_CONV = {"kind": "conv2d", "channels": 16, "kernel": 3, "padding": 1}
_HEAD = {"objective": {"kind": "classification", "classes": CLASSES}}
_INPUT = {"dtype": "float32", "shape": [FEATURES]}
MLP: dict[str, Any] = {
    "spec": 1,
    "input": _INPUT,
    "layers": [
        *({"kind": "dense", "width": 128}, _RELU, {"kind": "dense", "width": 64}, _RELU),
        {"kind": "dense", "width": CLASSES},
    ],
    **_HEAD,
}
CNN: dict[str, Any] = {
    "spec": 1,
    "input": _INPUT,
    "layers": [
        {"kind": "reshape", "shape": [1, 8, 8]},
        *(_CONV, {"kind": "batch_norm"}, _RELU, _CONV, {"kind": "batch_norm"}, _RELU),
        {"kind": "global_avg_pool"},
        {"kind": "dense", "width": CLASSES},
    ],
    **_HEAD,
}


@dataclass(frozen=True, slots=True)
class Task:
    """One training: a model, data, and how a member works at it. spec: the architecture's JSON."""

    name: str
    spec: bytes
    weights: Path
    data: Path
    optimizer: str
    learning_rate: float
    steps: int
    batch: int

    @property
    def files(self) -> tuple[Path, Path]:
        return self.weights, self.data


def usual_tasks(folder: Path, *, steps: int, batch: int) -> tuple[Task, ...]:
    """An MLP and a small CNN with batch norms, by both optimizers."""
    data = _samples(folder / "data")
    tasks = []
    for name, document, sgd in (("mlp", MLP, 0.2), ("cnn", CNN, 0.1)):
        spec = json.dumps(document).encode()
        weights = _weights(spec, folder / name)
        for optimizer, rate in (("sgd", sgd), ("adam", 1e-3)):
            tasks.append(Task(f"{name}, {optimizer}", spec, weights, data, optimizer, rate, steps, batch))
    return tuple(tasks)


def own_task(
    folder: Path, spec: bytes, data: Path | None, *, optimizer: str, learning_rate: float, steps: int, batch: int
) -> Task:
    """A model of the user's from initial weights, on the user's data or on ours. Raises InvalidSpec."""
    weights = _weights(spec, folder / "own")
    return Task(
        f"own, {optimizer}", spec, weights, data or _samples(folder / "data"), optimizer, learning_rate, steps, batch
    )


def _weights(spec: bytes, path: Path) -> Path:
    initial_weights(parse_spec(spec), SEED, path)
    return path


def _samples(path: Path) -> Path:
    """(n, 64) float32 around ten centres, and their classes."""
    draw = np.random.default_rng(int.from_bytes(SEED, "little"))
    centres = draw.standard_normal((CLASSES, FEATURES))
    y = draw.integers(0, CLASSES, SAMPLES)
    x = centres[y] + 1.5 * draw.standard_normal((SAMPLES, FEATURES))
    save_file({"x": (x / 4).astype(np.float32), "y": y.astype(np.int64)}, path)
    return path
