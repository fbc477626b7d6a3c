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
