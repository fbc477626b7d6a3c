"""All weights of a model at once: from float32 to a narrow dtype, and back. Knows no torch."""

from __future__ import annotations

import numpy as np

from celluler.errors import InvalidSpec
from celluler.models.body import Body
from celluler.models.narrow import NARROW, SCALE, Bytes, is_narrow, narrowed, stored_as, widened
from celluler.models.weights import NOTHING_STILL, Still, Vector


def narrow_weights(body: Body, vector: Vector, dtype: str, still: Still = NOTHING_STILL) -> tuple[Body, Vector, Still]:
    """(the body in that dtype, its flat vector, the rest of its file). vector: of float32 weights, finite; still: the
    rest of their file.

    Raises InvalidSpec for a dtype that nobody knows, for weights that are narrow already, or leave the range of dtype.
    """
    if dtype not in NARROW:
        raise InvalidSpec("dtype", f"is {dtype[:16]!r}, must be one of {', '.join(NARROW)}")
    if body.narrow:
        raise InvalidSpec("dtype", f"is {body.dtype} already: rounding twice loses twice", hint="start from its parent")
    made = body.stored_as(dtype)
    wide, start = [], 0
    rest: dict[str, Bytes] = dict(still)
    for tensor in body.planned:
        values = vector[start : start + tensor.elements]
        start += tensor.elements
        if is_narrow(tensor.shape):
            parts = narrowed(dtype, tensor.name, values.reshape(tensor.shape))
            if parts.keys() & rest.keys():
                raise InvalidSpec(f"weights.{tensor.name}{SCALE}", "is the name of another tensor already")
            rest |= parts
        else:
            wide.append(values)
    kept: Vector = np.concatenate(wide) if wide else np.zeros(0, np.float32)
    return made, kept, rest


def wide_tensor(body: Body, name: str, shape: tuple[int, ...], still: Still) -> Vector:
    """The float32 values that a narrow tensor stands for. Raises InvalidSpec for one that is not finite."""
    return widened(body.dtype, shape, bytes_of(body, name, shape, still))


def bytes_of(body: Body, name: str, shape: tuple[int, ...], still: Still) -> tuple[Bytes, ...]:
    """Of a narrow tensor, in the order of `stored_as`."""
    return tuple(still[one.name] for one in stored_as(body.dtype, name, shape))


def wide_vector(body: Body, vector: Vector, still: Still) -> Vector:
    """The flat vector of the same in float32: exactly the values that the narrow ones stand for."""
    if not body.narrow:
        return vector
    whole, start = [], 0
    for tensor in body.planned:
        if is_narrow(tensor.shape):
            whole.append(wide_tensor(body, tensor.name, tensor.shape, still).reshape(-1))
        else:
            whole.append(vector[start : start + tensor.elements])
            start += tensor.elements
    return np.concatenate(whole)


def still_beside(body: Body, still: Still) -> Still:
    """What of the rest of the file is no narrow weight."""
    narrow = {part.name for one in body.narrow for part in stored_as(body.dtype, one.name, one.shape)}
    return {name: data for name, data in still.items() if name not in narrow}
