"""Coarser wires: q16 mantissas rounded in blocks to 8 or 4 bits, or to a few of them, and packed for the way.

`round_to` gives int16 mantissas again, so that rules, hashes, momentum and audits know of nothing: whoever trains
rounds its update right after `q16.encode`, whoever reduces rounds the aggregate. What travels is `pack`ed.
A block of 256 values shares one shift: a value is `q << shift` with |q| < 2^(bits - 1), and the shift is the least that
makes the largest fit. A sparse wire keeps the largest 64 of a block, the first among equals, and zeros for all others.
The same mantissas have one packing only; `unpack` refuses every other.

Layout: the shifts of all blocks, u8 each; of a sparse wire then for each block a bit a value, the first in the highest,
set for those that are not zero, and of those alone what follows, 64 a block, zeros behind the last; then q8: every q as
int8; q4: two a byte, two's complement, the first in the low half, and a zero half at the end where the number is odd.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from celluler.aggregation.digests import mantissas_of, wire_bytes
from celluler.aggregation.q16 import Mantissas
from celluler.errors import LocalError, ProtocolViolation

BLOCK = 256
"""Values that share a shift."""
FINEST = "q16"

_MANTISSA_BITS = 15
_LARGEST = (1 << _MANTISSA_BITS) - 1
_AT_A_TIME = 256 * BLOCK  # values: the temporaries stay in the cache

Levels = npt.NDArray[np.int8]
Shifts = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Wire:
    """bits: of a value, its sign among them. kept: values of a block that are not zero, at most."""

    name: str
    bits: int
    kept: int = BLOCK

    @property
    def largest(self) -> int:
        return (1 << (self.bits - 1)) - 1

    @property
    def max_shift(self) -> int:
        return _MANTISSA_BITS + 1 - self.bits


_ALL = (Wire(FINEST, 16), Wire("q8", 8), Wire("q4", 4), Wire("q4-sparse", 4, kept=BLOCK // 4))
WIRES: Mapping[str, Wire] = MappingProxyType({wire.name: wire for wire in _ALL})


def wire_named(name: str) -> Wire:
    """Raises LocalError for a name nobody knows."""
    if name not in WIRES:
        raise LocalError(f"no wire is called {name!r}; there are {', '.join(WIRES)}")
    return WIRES[name]


def packed_bytes(name: str, count: int) -> int:
    """How many bytes that many values take: known before any of them comes."""
    wire = wire_named(name)
    if wire.name == FINEST:
        return 2 * count
    blocks = -(-count // BLOCK)
    if wire.kept < BLOCK:
        return blocks * (1 + BLOCK // 8 + wire.kept * wire.bits // 8)
    return blocks + -(-count * wire.bits // 8)


def round_to(name: str, mantissas: Mantissas) -> Mantissas:
    """The nearest mantissas, (d,) int16, that the wire can say; those it gives back are given back unchanged.

    Each that is kept is off by at most half of 2^shift, by up to 2^shift in a block's very largest. Half goes to even.
    For q16 it is the argument itself.
    """
    wire = wire_named(name)
    if wire.name == FINEST:
        return mantissas
    _check_vector(mantissas)
    rounded = np.empty_like(mantissas)
    for piece in _pieces(mantissas.size):
        rows = _rows(mantissas[piece], np.float32)
        np.clip(rows, -_LARGEST, _LARGEST, out=rows)  # -2^15, which no encoder writes
        if wire.kept < BLOCK:
            rows[~_largest(rows, wire.kept)] = 0
        steps = np.ldexp(np.float32(1), _shifts(wire, rows).astype(np.int32))[:, None]
        rows /= steps
        np.rint(rows, out=rows)
        np.clip(rows, -wire.largest, wire.largest, out=rows)
        rows *= steps
        rounded[piece] = rows.reshape(-1)[: rounded[piece].size]
    return rounded


def pack(name: str, mantissas: Mantissas) -> bytes | bytearray | memoryview:
    """Mantissas, (d,) int16 and rounded to that wire, as they travel; of q16 a view. Raises LocalError for others."""
    wire = wire_named(name)
    if wire.name == FINEST:
        return wire_bytes(mantissas)
    _check_vector(mantissas)
    shifts, marks, levels = bytearray(), bytearray(), bytearray()
    for piece in _pieces(mantissas.size):
        rows = _rows(mantissas[piece], np.int16)
        chosen = _shifts(wire, rows)
        by = chosen.astype(np.int16)[:, None]
        coarse = rows >> by
        exact = np.array_equal(coarse << by, rows) and coarse.min() >= -wire.largest and chosen.max() <= wire.max_shift
        marked = coarse != 0
        if not exact or (wire.kept < BLOCK and marked.sum(axis=1).max() > wire.kept):
            raise LocalError(f"mantissas that were not rounded to {name}")
        shifts += chosen.data
        values = coarse.astype(np.int8)
        if wire.kept < BLOCK:
            marks += np.packbits(marked, axis=1).data
            levels += _halves_joined(_gathered(values, marked, wire.kept)).data
        else:
            values = values.reshape(-1)[: mantissas[piece].size]
            levels += values.data if wire.bits == 8 else _halves_joined(values).data
    return bytes(shifts + marks + levels)


def unpack(name: str, data: bytes | bytearray | memoryview, count: int) -> Mantissas:
    """The inverse of `pack`: (count,) int16. Raises ProtocolViolation for anything that `pack` does not give.

    Of q16 it shares memory with `data`.
    """
    wire, view = wire_named(name), memoryview(data).cast("B")
    if len(view) != packed_bytes(name, count):
        raise ProtocolViolation(f"{len(view)} bytes for {count} values by {name}")
    if wire.name == FINEST:
        return mantissas_of(view)
    blocks = -(-count // BLOCK)
    shifts, body = np.frombuffer(view[:blocks], np.uint8), np.frombuffer(view[blocks:], np.uint8)
    if wire.kept < BLOCK:
        levels = _scattered(wire, body, blocks, count)
    else:
        levels = np.zeros(blocks * BLOCK, np.int8)
        levels[:count] = body.view(np.int8) if wire.bits == 8 else _halves(body, count)
    _check(wire, shifts, levels)
    return _spread(shifts, levels, count)


def _check_vector(mantissas: Mantissas) -> None:
    if mantissas.ndim != 1 or mantissas.dtype != np.int16:
        raise LocalError(f"mantissas are an int16 vector, not {mantissas.dtype} of shape {mantissas.shape}")


def _pieces(size: int) -> list[slice]:
    return [slice(start, min(start + _AT_A_TIME, size)) for start in range(0, size, _AT_A_TIME)]


def _rows(mantissas: Mantissas, dtype: type[Any]) -> npt.NDArray[Any]:
    """A copy, a block a row; zeros fill up the last one."""
    rows = np.empty((-(-mantissas.size // BLOCK), BLOCK), dtype)
    flat = rows.reshape(-1)
    flat[: mantissas.size] = mantissas
    flat[mantissas.size :] = 0
    return rows


def _shifts(wire: Wire, rows: npt.NDArray[Any]) -> Shifts:
    """The least for which the largest of each row fits, rounding up aside."""
    largest = np.maximum(rows.max(axis=1).astype(np.int32), -rows.min(axis=1).astype(np.int32))
    _, lengths = np.frexp(largest.astype(np.float32))
    shifts: Shifts = np.maximum(lengths - (wire.bits - 1), 0).astype(np.uint8)
    return shifts


def _largest(rows: npt.NDArray[Any], count: int) -> npt.NDArray[np.bool_]:
    """Of each row the largest so many, by magnitude, the first among equals."""
    sizes = np.abs(rows)
    least = np.partition(sizes, BLOCK - count, axis=1)[:, BLOCK - count, None]
    above, level = sizes > least, sizes == least
    wanted = count - above.sum(axis=1, keepdims=True)
    chosen: npt.NDArray[np.bool_] = above | (level & (np.cumsum(level, axis=1) <= wanted))
    return chosen


def _gathered(levels: Levels, marked: npt.NDArray[np.bool_], kept: int) -> Levels:
    """Those that are marked, in front of each row; zeros behind them: (blocks · kept,)."""
    order = np.argsort(~marked, axis=1, kind="stable")[:, :kept]
    return np.take_along_axis(levels, order, axis=1).reshape(-1)


def _scattered(wire: Wire, body: npt.NDArray[np.uint8], blocks: int, count: int) -> Levels:
    """The inverse of `_gathered`: (blocks · BLOCK,). Raises ProtocolViolation for marks that other levels have."""
    at = blocks * BLOCK // 8
    marked = np.unpackbits(body[:at]).reshape(blocks, BLOCK).view(np.bool_)
    levels = _halves(body[at:], blocks * wire.kept).reshape(blocks, wire.kept)
    counts = marked.sum(axis=1, keepdims=True)
    said = np.arange(wire.kept) < counts
    if counts.max(initial=0) > wire.kept or marked.reshape(-1)[count:].any() or not np.array_equal(levels != 0, said):
        raise ProtocolViolation("marks that do not fit the values")
    spread = np.zeros((blocks, BLOCK), np.int8)
    spread[marked] = levels[said]
    return spread.reshape(-1)


def _spread(shifts: Shifts, levels: Levels, count: int) -> Mantissas:
    mantissas = levels.astype(np.int16)
    rows = mantissas.reshape(-1, BLOCK)
    np.left_shift(rows, shifts.astype(np.int16)[:, None], out=rows)
    return mantissas[:count]


def _check(wire: Wire, shifts: Shifts, levels: Levels) -> None:
    """Raises ProtocolViolation for a level the wire has not, or a shift that is too large, or larger than needed."""
    rows = levels.reshape(-1, BLOCK)
    highest, lowest = rows.max(axis=1, initial=0), rows.min(axis=1, initial=0)
    if (shifts > wire.max_shift).any() or (lowest < -wire.largest).any() or (highest > wire.largest).any():
        raise ProtocolViolation(f"a value that {wire.name} has not")
    needed = np.maximum(highest, -lowest) > wire.largest >> 1
    if not (needed | (shifts == 0)).all():
        raise ProtocolViolation("a block with a larger shift than it needs")


def _halves_joined(levels: Levels) -> npt.NDArray[np.uint8]:
    even = np.zeros(levels.size + levels.size % 2, np.uint8)
    even[: levels.size] = levels.view(np.uint8) & 0x0F
    joined: npt.NDArray[np.uint8] = np.bitwise_or(even[0::2], even[1::2] << np.uint8(4))
    return joined


def _halves(body: npt.NDArray[np.uint8], count: int) -> Levels:
    spread = np.empty(2 * body.size, np.int8)
    spread[0::2] = (body << 4).view(np.int8) >> 4
    spread[1::2] = body.view(np.int8) >> 4
    if spread[count:].any():
        raise ProtocolViolation("something in the half that pads")
    return spread[:count]
