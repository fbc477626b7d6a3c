"""What fits into a worker's memory. By sizes alone, so that it is told before torch is loaded and anything allocated.

The samples of a step never depend on it: a batch that does not fit is worked through in pieces, and their gradients are
summed. The sum is rounded otherwise than that of the whole, so who replays another's work must cut as it did.
"""

from __future__ import annotations

from celluler.errors import InvalidSpec, LocalError
from celluler.models.body import Body
from celluler.models.graph_body import GraphBody, check_trainable

RUNTIME_BYTES = 1 << 30
"""Address space that a worker takes with torch and no model."""
VECTORS = 16
"""Vectors of the model's dimension that a member holds at most: public state, local copy, gradient, optimizer, wires,
and once more what a replay beside its own training takes."""
LEAST_VECTORS = 8
"""Without which no member trains, however small its batches."""
COPIES = 3
"""Of a sample's activations: kept for the way back, their gradients, and what a layer works with."""
WORKING = 2
"""Of what a layer that answers takes and makes: what it does so with, or the answer on its way out."""
_FLOAT_BYTES = 4


class DoesNotFit(LocalError):
    """A model needs more memory than its worker may take; nothing of it was allocated. Both in bytes."""

    def __init__(self, what: str, needed_bytes: int, memory_bytes: int) -> None:
        super().__init__(
            f"{what} takes {needed_bytes >> 20} MiB of memory at least, its worker may take {memory_bytes >> 20} MiB"
        )
        self.needed_bytes, self.memory_bytes = needed_bytes, memory_bytes


def check_room(body: Body, memory_bytes: int | None, *, training: bool) -> None:
    """A worker can hold the model and as few samples as it takes. Raises DoesNotFit.

    memory_bytes: what the worker may take, torch included; None for no limit.
    """
    if memory_bytes is None:
        return
    sample = COPIES * body.activation_bytes if training else WORKING * body.working_bytes
    vectors = LEAST_VECTORS if training else 0
    needed = _weights_bytes(body) + vectors * _FLOAT_BYTES * body.dimension + body.batch[0] * sample
    if needed + RUNTIME_BYTES > memory_bytes:
        what = "training this model" if training else "this model"
        raise DoesNotFit(what, needed + RUNTIME_BYTES, memory_bytes)


def _weights_bytes(body: Body) -> int:
    """Of narrow weights also what they become where nothing computes on them as they are stored."""
    return body.parameter_bytes + (body.stored_as("float32").parameter_bytes if body.narrow else 0)


def micro_batch(architecture: Body, batch: int, memory_bytes: int | None) -> int:
    """Samples whose activations are held at once: the whole batch, or the largest power of two that fits, and that the
    model takes at once; at least 1.

    memory_bytes: what the worker may take, None for no limit; half of what is left of it beside the model is for the
    data. A model with batch norms takes its batch whole, since the batch is part of what it computes.
    """
    if architecture.whole_batch:
        return batch
    room = architecture.batch[1]
    if memory_bytes is not None:
        held = RUNTIME_BYTES + VECTORS * _FLOAT_BYTES * architecture.dimension
        sample = COPIES * max(_FLOAT_BYTES, architecture.activation_bytes)
        room = min(room, max(1, (memory_bytes - held) // 2 // sample))
    return batch if batch <= room else 1 << (room.bit_length() - 1)


def check_training(body: Body, batch: int) -> None:
    """Members can train the model by steps of so many samples, whatever memory they have. Raises InvalidSpec."""
    check_batch(body, batch, micro_batch(body, batch, None))
    if isinstance(body, GraphBody):
        check_trainable(body)


def check_batch(body: Body, batch: int, micro: int) -> None:
    """A step's batch, cut into pieces of `micro` samples, is what the model takes. Raises InvalidSpec."""
    least, most = body.batch
    if not (least <= min(micro, batch % micro or micro) and micro <= most):
        pieces = f"{batch} in pieces of {micro}"
        raise InvalidSpec("train.batch", f"{pieces}: this model takes {least}…{most} samples at once")
