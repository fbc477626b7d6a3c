"""An update in the form in which it travels: q16 mantissas, rounded part by part to what the run's wire can say."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from celluler.aggregation.q16 import Mantissas, Values, encode_parts, part_slices
from celluler.aggregation.wires import BLOCK, FINEST, round_to, wire_named


def encode_update(update: Values, parts: int, wire: str) -> tuple[tuple[int, ...], Mantissas]:
    """(exponent of each part, mantissas (d,) int16 of all of them in order)."""
    exponents, mantissas = encode_parts(update, parts)
    if wire != FINEST:
        for piece in part_slices(mantissas.size, parts):
            mantissas[piece] = round_to(wire, mantissas[piece])
    return exponents, mantissas


def steps_of(wire: str, mantissas: Mantissas) -> npt.NDArray[np.float32]:
    """Between neighbouring values that the wire can say, around each mantissa of a part: (d,) float32, in mantissas."""
    blocks = -(-mantissas.size // BLOCK)
    largest = np.zeros(blocks * BLOCK, dtype=np.float32)
    np.abs(mantissas, out=largest[: mantissas.size], casting="unsafe", dtype=np.float32)
    _, lengths = np.frexp(largest.reshape(blocks, BLOCK).max(axis=1))
    shifts = np.maximum(lengths - (wire_named(wire).bits - 1), 0)
    return np.repeat(np.ldexp(np.float32(1), shifts), BLOCK)[: mantissas.size]


def steps_between(wire: str, sent: Mantissas, again: Mantissas) -> npt.NDArray[np.float32]:
    """As `steps_of`, around both. Of a sparse wire, where one kept a value and the other did not, and it was the least
    that was kept of its block: from there to zero and as far on the other side."""
    steps = np.maximum(steps_of(wire, sent), steps_of(wire, again))
    if wire_named(wire).kept < BLOCK:
        for kept, other in ((sent, again), (again, sent)):
            sizes = np.abs(kept.astype(np.float32))
            border = (sizes > 0) & (other == 0) & (sizes <= _least_of_blocks(sizes))
            steps[border] += 2 * sizes[border]
    return steps


def _least_of_blocks(sizes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The least that is not zero in the block of each value."""
    rows = np.full((-(-sizes.size // BLOCK), BLOCK), np.inf, dtype=np.float32)
    rows.reshape(-1)[: sizes.size] = np.where(sizes > 0, sizes, np.inf)
    return np.repeat(rows.min(axis=1), BLOCK)[: sizes.size]
