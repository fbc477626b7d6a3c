"""How much of a batch fits into a worker's memory at once. By sizes alone, so that it is told before torch is loaded.

The samples of a step never depend on it: a batch that does not fit is worked through in pieces, and their gradients are
summed. The sum is rounded otherwise than that of the whole, so who replays another's work must cut as it did.
"""

from __future__ import annotations

from celluler.models.body import Body

RUNTIME_BYTES = 1 << 30
"""Address space that a worker takes with torch and no model."""
VECTORS = 16
"""Vectors of the model's dimension that a member holds at most: public state, local copy, gradient, optimizer, wires,
and once more what a replay beside its own training takes."""
COPIES = 3
"""Of a sample's activations: kept for the way back, their gradients, and what a layer works with."""
_FLOAT_BYTES = 4


def micro_batch(architecture: Body, batch: int, memory_bytes: int | None) -> int:
    """Samples whose activations are held at once: the whole batch, or the largest power of two that fits; at least 1.

    memory_bytes: what the worker may take, None for no limit; half of what is left of it beside the model is for the
    data. A model with batch norms takes its batch whole, since the batch is part of what it computes.
    """
    if memory_bytes is None or architecture.whole_batch:
        return batch
    held = RUNTIME_BYTES + VECTORS * _FLOAT_BYTES * architecture.dimension
    sample = COPIES * max(_FLOAT_BYTES, architecture.activation_bytes)
    room = max(1, (memory_bytes - held) // 2 // sample)
    return batch if batch <= room else 1 << (room.bit_length() - 1)
