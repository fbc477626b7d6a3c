"""A flat vector as tensors by name, and back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from celluler.models.body import Body
from celluler.models.weights import Vector

Tensors = dict[str, Vector]


def taken_apart(body: Body, vector: Vector) -> Tensors:
    """Views of the vector, each of its tensor's shape, in the order of the vector."""
    tensors, start = {}, 0
    for tensor in body.tensors:
        tensors[tensor.name] = vector[start : start + tensor.elements].reshape(tensor.shape)
        start += tensor.elements
    return tensors


def put_together(body: Body, tensors: Mapping[str, Vector]) -> Vector:
    """The flat vector of tensors that have the shapes of this body."""
    assert all(tensors[one.name].shape == one.shape for one in body.tensors)
    flat = [tensors[one.name].reshape(-1) for one in body.tensors]
    return np.concatenate(flat).astype(np.float32, copy=False) if flat else np.zeros(0, np.float32)
