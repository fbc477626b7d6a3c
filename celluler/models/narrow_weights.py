"""All weights of a spec at once: from float32 to a narrow dtype, and back. Knows no torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from celluler.errors import InvalidSpec
from celluler.models.narrow import NARROW, Bytes, is_narrow, narrowed, stored_as, widened
from celluler.models.spec import Architecture
from celluler.models.weights import Still, Vector


def narrow_weights(architecture: Architecture, vector: Vector, dtype: str) -> tuple[Architecture, Vector, Still]:
    """(the architecture in that dtype, its flat vector, the rest of its file). vector: of float32 weights, finite.

    Raises InvalidSpec for a dtype that nobody knows, for weights that are narrow already, or leave the range of dtype.
    """
    if dtype not in NARROW:
        raise InvalidSpec("dtype", f"is {dtype[:16]!r}, must be one of {', '.join(NARROW)}")
    if architecture.narrow:
        raise InvalidSpec(
            "dtype", f"is {architecture.dtype} already: rounding twice loses twice", hint="start from its parent"
        )
    wide, start = [], 0
    still: dict[str, Bytes] = {}
    for tensor in architecture.planned:
        values = vector[start : start + tensor.elements]
        start += tensor.elements
        if is_narrow(tensor.shape):
            still |= narrowed(dtype, tensor.name, values.reshape(tensor.shape))
        else:
            wide.append(values)
    kept: Vector = np.concatenate(wide) if wide else np.zeros(0, np.float32)
    return replace(architecture, dtype=dtype), kept, still


def wide_tensor(architecture: Architecture, name: str, shape: tuple[int, ...], still: Still) -> Vector:
    """The float32 values that a narrow tensor stands for. Raises InvalidSpec for one that is not finite."""
    return widened(architecture.dtype, shape, bytes_of(architecture, name, shape, still))


def bytes_of(architecture: Architecture, name: str, shape: tuple[int, ...], still: Still) -> tuple[Bytes, ...]:
    """Of a narrow tensor, in the order of `stored_as`."""
    return tuple(still[one.name] for one in stored_as(architecture.dtype, name, shape))


def wide_vector(architecture: Architecture, vector: Vector, still: Still) -> Vector:
    """The flat vector of `architecture.wide`: exactly the values that the narrow ones stand for."""
    if not architecture.narrow:
        return vector
    whole, start = [], 0
    for tensor in architecture.planned:
        if is_narrow(tensor.shape):
            whole.append(wide_tensor(architecture, tensor.name, tensor.shape, still).reshape(-1))
        else:
            whole.append(vector[start : start + tensor.elements])
            start += tensor.elements
    return np.concatenate(whole)
