"""What may be asked of a model, told from its body alone: a node refuses the rest without waking a worker."""

from __future__ import annotations

import math

from celluler.errors import InvalidSpec
from celluler.models.body import Body
from celluler.models.objectives import Classification

OUTPUTS = ("raw", "probabilities", "labels")
"""raw: what the last layer gives (logits, or a regression's numbers). The others are a classification's only."""

_ITEM_BYTES = {"float32": 4, "int64": 8}


def check_call(architecture: Body, dtype: str, shape: tuple[int, ...], output: str) -> None:
    """A batch of that dtype and shape (with the batch axis) fits the model, and it gives that output.

    Raises InvalidSpec: `input.dtype`, `input.shape`, `output`. The values themselves are the worker's to check.
    """
    wanted = architecture.input
    if dtype != wanted.dtype:
        raise InvalidSpec("input.dtype", f"is {dtype[:32]}, must be {wanted.dtype}")
    if len(shape) != len(wanted.shape) + 1 or shape[0] < architecture.batch[0]:
        sides = ", ".join(map(str, wanted.shape))
        least = f", n at least {architecture.batch[0]}" if architecture.batch[0] > 1 else ""
        raise InvalidSpec("input.shape", f"is {shape}, must be (n, {sides}){least}")
    architecture.answer_shape(shape[1:])
    allowed = OUTPUTS if isinstance(architecture.objective, Classification) else OUTPUTS[:1]
    if output not in allowed:
        raise InvalidSpec("output", f"is {output[:32]!r}; this model gives {', '.join(allowed)}")


def answer_of(architecture: Body, samples: int, output: str) -> tuple[str, tuple[int, ...], int]:
    """(dtype, shape, bytes) of the answer to a call that fits, at most: known before it is computed."""
    dtype, shape = ("int64", (samples,)) if output == "labels" else ("float32", (samples, *architecture.output))
    return dtype, shape, math.prod(shape) * _ITEM_BYTES[dtype]
