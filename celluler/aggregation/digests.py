"""The hash by which a member commits to a part, and the digest by which members vote on an aggregate.

Both are BLAKE3 over fields of fixed length in front of the one of variable length, so that no two different
inputs are the same bytes. Neither holds the view: a part sent again in a later view is the same part.
"""

from __future__ import annotations

import struct

import numpy as np
from blake3 import blake3

from celluler.aggregation.q16 import WIRE_DTYPE, Mantissas
from celluler.errors import LocalError

_PART = struct.Struct(">16s32sQ32sHh")
_PART_DOMAIN = b"celluler-part-1\0"
_REDUCED = struct.Struct(">19s32sQ32sHhQH")
_REDUCED_DOMAIN = b"celluler-reduced-1\0"


def part_hash(
    run: bytes,
    round_number: int,
    author: bytes,
    *,
    part: int,
    exponent: int,
    mantissas: Mantissas | bytes | bytearray | memoryview,
) -> bytes:
    """The commitment to one part of one member's update in one round, 32 bytes.

    run: 32 bytes. author: the 32-byte public key of the member's node. part: 0-based. mantissas: int16, or their
    little-endian bytes.
    Layout: "celluler-part-1" NUL, run, round u64, author, part u16, exponent i16 (all big-endian), mantissas.
    """
    _check_lengths(run, author)
    prefix = _PART.pack(_PART_DOMAIN, run, round_number, author, part, exponent)
    return blake3(prefix).update(wire_bytes(mantissas)).digest()


def reduced_digest(
    run: bytes,
    round_number: int,
    set_hash: bytes,
    *,
    part: int,
    exponent: int,
    used: int,
    weights: tuple[int, ...],
    mantissas: Mantissas | bytes | bytearray | memoryview,
) -> bytes:
    """What members vote on for one part, 32 bytes: everything a checker must find again when it reduces the part anew.

    set_hash: 32 bytes, the set of inputs the members agreed on. used: bit k is set when input k was there.
    Layout: "celluler-reduced-1" NUL, run, round u64, set hash, part u16, exponent i16, used u64, number of weights
    u16, each weight u16 (all big-endian), mantissas.
    """
    _check_lengths(run, set_hash)
    prefix = _REDUCED.pack(_REDUCED_DOMAIN, run, round_number, set_hash, part, exponent, used, len(weights))
    listed = struct.pack(f">{len(weights)}H", *weights)
    return blake3(prefix + listed).update(wire_bytes(mantissas)).digest()


def wire_bytes(mantissas: Mantissas | bytes | bytearray | memoryview) -> bytes | bytearray | memoryview:
    """Mantissas as they travel, int16 little-endian; not copied on a little-endian machine."""
    if isinstance(mantissas, np.ndarray):
        return np.ascontiguousarray(mantissas, dtype=WIRE_DTYPE).data.cast("B")
    return mantissas


def mantissas_of(data: bytes | bytearray | memoryview) -> Mantissas:
    """The inverse of `wire_bytes`; shares memory with `data` on a little-endian machine."""
    return np.frombuffer(data, dtype=WIRE_DTYPE).astype(np.int16, copy=False)


def _check_lengths(*names: bytes) -> None:
    if any(len(name) != 32 for name in names):
        raise LocalError("a run, an author and a set are named by 32 bytes")
