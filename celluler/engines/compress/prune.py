"""Pruning by magnitude: single weights become zero where they are. Nothing gets smaller by it but what compresses
zeros; `structure` takes whole units out. Source: Han et al. 2015, section 3.
"""

from __future__ import annotations

import numpy as np

from celluler.engines.compress.tensors import put_together, taken_apart
from celluler.errors import InvalidSpec
from celluler.models.body import Body
from celluler.models.narrow import is_narrow
from celluler.models.weights import Vector, need_float32

MOST = 0.99


def check_share(share: float) -> None:
    if not 0 < share <= MOST:
        raise InvalidSpec("share", f"is {share:g}, must be more than 0 and at most {MOST:g}")


def prune(body: Body, vector: Vector, share: float) -> Vector:
    """The vector with that share of each matrix zero, its smallest weights. (dimension,) float32, a copy.

    Raises InvalidSpec for a share that is none, or weights that are no longer float32.
    """
    check_share(share)
    need_float32(body, "pruned")
    tensors = taken_apart(body, vector.copy())
    roles = {tensor.name: tensor.role for tensor in body.tensors}
    for name, values in tensors.items():
        if is_narrow(values.shape) and roles[name] == "weight":
            values.reshape(-1)[_smallest(values, int(share * values.size))] = 0
    return put_together(body, tensors)


def _smallest(values: Vector, count: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Places of the `count` smallest; of equal ones the first: the same on any machine."""
    return np.argsort(np.abs(values).reshape(-1), kind="stable")[:count]


def zeros(body: Body, vector: Vector) -> float:
    """Share of the values of all matrices that is zero."""
    matrices = [values for values in taken_apart(body, vector).values() if is_narrow(values.shape)]
    total = sum(values.size for values in matrices)
    return sum(int((values == 0).sum()) for values in matrices) / total if total else 0.0
