"""Hidden states as bytes between two stages: (places, width) float32 in, and back.

`float32` loses nothing: greedy tokens are those of the whole model. `bfloat16` halves that and keeps the range.
`int8` has blocks of 64 along the width, each with its own scale: smallest, and the last block of a width that is no
multiple of 64 is shorter; of each place first the scales, float32, then the codes. All little-endian, and place by
place, so that the bytes of places one behind another may be put together and cut. What comes from another peer is
checked here: its size and that every value is a number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from celluler.errors import LocalError, ProtocolViolation

FLOAT32, BFLOAT16, INT8 = "float32", "bfloat16", "int8"
WIRES = (FLOAT32, BFLOAT16, INT8)
BLOCK = 64
_SCALE_BYTES = 4

Hidden = npt.NDArray[np.float32]


def hidden_bytes(wire: str, places: int, width: int) -> int:
    """Of so many places. Raises LocalError for a wire that there is not."""
    match wire:
        case "float32":
            return 4 * places * width
        case "bfloat16":
            return 2 * places * width
        case "int8":
            return places * (width + _SCALE_BYTES * -(-width // BLOCK))
    raise LocalError(f"hidden states as {wire[:16]!r}: must be one of {', '.join(WIRES)}")


def encode_hidden(wire: str, hidden: Hidden) -> bytes:
    """hidden: (places, width) float32."""
    match wire:
        case "float32":
            return hidden.astype("<f4", copy=False).tobytes()
        case "bfloat16":
            return _halved(hidden).tobytes()
        case "int8":
            codes, scales = _codes(hidden)
            return np.concatenate((scales.astype("<f4").view(np.uint8), codes.view(np.uint8)), axis=1).tobytes()
    raise LocalError(f"hidden states as {wire[:16]!r}: must be one of {', '.join(WIRES)}")


def decode_hidden(wire: str, data: bytes | bytearray | memoryview, places: int, width: int) -> Hidden:
    """(places, width) float32, writable. Raises ProtocolViolation for another size, or a value that is no number."""
    check_hidden(wire, data, places, width)
    hidden: Hidden
    match wire:
        case "float32":
            hidden = np.frombuffer(data, dtype="<f4").reshape(places, width).copy()
            return hidden
        case "bfloat16":
            wide = np.frombuffer(data, dtype="<u2").astype(np.uint32) << np.uint32(16)
            hidden = wide.view(np.float32).reshape(places, width)
            return hidden
    scales, codes = _parted(data, places, width)
    hidden = codes.astype(np.float32) * np.repeat(scales, BLOCK, axis=1)[:, :width]
    return hidden


def check_hidden(wire: str, data: bytes | bytearray | memoryview, places: int, width: int) -> None:
    """Without making floats of them. Raises ProtocolViolation."""
    wanted = hidden_bytes(wire, places, width)
    if len(data) != wanted:
        raise ProtocolViolation(f"hidden states of {len(data)} bytes, must be {wanted}")
    match wire:
        case "float32":
            finite = _finite(np.frombuffer(data, dtype="<u4"), 0x7F800000)
        case "bfloat16":
            finite = _finite(np.frombuffer(data, dtype="<u2"), 0x7F80)
        case _:
            finite = bool(np.isfinite(_parted(data, places, width)[0]).all())
    if not finite:
        raise ProtocolViolation("hidden states with a value that is no number")


def _parted(data: bytes | bytearray | memoryview, places: int, width: int) -> tuple[Hidden, npt.NDArray[np.int8]]:
    """((places, blocks) scales, (places, width) codes)"""
    at = _SCALE_BYTES * -(-width // BLOCK)
    raw = np.frombuffer(data, dtype=np.uint8).reshape(places, at + width)
    scales: Hidden = np.ascontiguousarray(raw[:, :at]).view("<f4")
    return scales, np.ascontiguousarray(raw[:, at:]).view(np.int8)


def _finite(words: npt.NDArray[Any], exponent: int) -> bool:
    return not bool(((words & exponent) == exponent).any())


def _halved(hidden: Hidden) -> npt.NDArray[np.uint16]:
    """To the nearest, ties to even; what would leave the range is the largest that there is."""
    words = np.ascontiguousarray(hidden, dtype="<f4").view(np.uint32)
    rounded = words + np.uint32(0x7FFF) + ((words >> np.uint32(16)) & np.uint32(1))
    halves = (rounded >> np.uint32(16)).astype("<u2")
    over = (halves & 0x7F80) == 0x7F80
    if over.any():
        largest = (halves & np.uint16(0x8000)) | np.uint16(0x7F7F)
        halves = np.where(over & np.isfinite(hidden), largest, halves).astype("<u2")
    return halves


def _codes(hidden: Hidden) -> tuple[npt.NDArray[np.int8], Hidden]:
    """((places, width) int8, (places, blocks) float32)"""
    places, width = hidden.shape
    blocks = -(-width // BLOCK)
    whole = np.zeros((places, blocks * BLOCK), dtype=np.float32)
    whole[:, :width] = hidden
    parts = whole.reshape(places, blocks, BLOCK)
    scales: Hidden = (np.abs(parts).max(axis=2) / np.float32(127)).astype(np.float32)
    divisors = np.where(scales > 0, scales, np.float32(1))[:, :, None]
    codes = np.rint(np.clip(parts / divisors, -127, 127)).astype(np.int8)
    return np.ascontiguousarray(codes.reshape(places, blocks * BLOCK)[:, :width]), scales
