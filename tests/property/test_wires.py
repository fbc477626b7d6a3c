from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from celluler.aggregation.wires import BLOCK, WIRES, pack, packed_bytes, round_to, unpack
from celluler.errors import LocalError, ProtocolViolation

COARSE = ("q8", "q4", "q4-sparse")
DENSE = ("q8", "q4")
Int16 = NDArray[np.int16]

sizes = st.integers(1, 3 * BLOCK + 1)
mantissas = sizes.flatmap(
    lambda size: st.one_of(
        arrays.arrays(np.int16, size),
        arrays.arrays(np.int16, size, elements=st.integers(-9, 9)),
        arrays.arrays(np.int16, size, elements=st.sampled_from([-32768, -32767, -32512, 0, 127, 128, 32767])),
    )
)


@settings(max_examples=60, deadline=None)
@given(wire=st.sampled_from(tuple(WIRES)), values=mantissas)
def test_what_was_rounded_is_packed_and_comes_back(wire: str, values: Int16) -> None:
    rounded = round_to(wire, values)
    assert (rounded.dtype, rounded.shape) == (np.dtype(np.int16), values.shape)
    assert np.array_equal(round_to(wire, rounded), rounded)
    packed = bytes(pack(wire, rounded))
    assert len(packed) == packed_bytes(wire, values.size)
    assert np.array_equal(unpack(wire, packed, values.size), rounded)


@settings(max_examples=60, deadline=None)
@given(values=mantissas)
def test_a_sparse_wire_keeps_the_largest_of_each_block(values: Int16) -> None:
    kept, dense = round_to("q4-sparse", values), round_to("q4", values)
    for start in range(0, values.size, BLOCK):
        block = slice(start, start + BLOCK)
        sizes = np.abs(values[block].astype(int))
        first = sorted(range(sizes.size), key=lambda at: (-min(sizes[at], 32767), at))[: BLOCK // 4]
        wanted = np.zeros_like(dense[block])
        wanted[first] = dense[block][first]
        assert np.array_equal(kept[block], wanted)


@settings(max_examples=60, deadline=None)
@given(wire=st.sampled_from(DENSE), values=mantissas)
def test_no_value_is_off_by_more_than_a_step_of_its_block(wire: str, values: Int16) -> None:
    rounded, bits = round_to(wire, values), WIRES[wire].bits
    for start in range(0, values.size, BLOCK):
        block = values[start : start + BLOCK].astype(int)
        errors = np.abs(rounded[start : start + BLOCK] - block)
        step = 1 << max(0, min(int(np.abs(block).max()), 32767).bit_length() - (bits - 1))
        assert errors.max() <= step
        inner = np.abs(block) <= (WIRES[wire].largest) * step
        assert (errors[inner] <= step // 2).all()


@settings(max_examples=150, deadline=None)
@given(wire=st.sampled_from(COARSE), count=st.integers(1, 2 * BLOCK + 1), data=st.data())
def test_hostile_bytes_are_refused_or_are_the_one_packing_there_is(wire: str, count: int, data: st.DataObject) -> None:
    shifts = data.draw(st.lists(st.integers(0, 14), min_size=-(-count // BLOCK), max_size=-(-count // BLOCK)))
    body = data.draw(arrays.arrays(np.uint8, packed_bytes(wire, count) - len(shifts)))
    sent = bytes(shifts) + body.tobytes()
    if data.draw(st.booleans()):  # next to something honest
        honest = bytearray(pack(wire, round_to(wire, data.draw(arrays.arrays(np.int16, count)))))
        honest[data.draw(st.integers(0, len(honest) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        sent = bytes(honest)
    try:
        found = unpack(wire, sent, count)
    except ProtocolViolation:
        return
    assert bytes(pack(wire, found)) == sent


@pytest.mark.parametrize("wire", COARSE)
def test_each_way_to_write_the_same_differently_is_refused(wire: str) -> None:
    values = np.array([3, -3, 1], np.int16)
    packed = bytearray(pack(wire, round_to(wire, values)))
    assert packed[0] == 0
    for changed in (
        bytes([1]) + bytes(packed[1:]),  # halved, it is not needed
        bytes([200]) + bytes(packed[1:]),
        bytes(packed) + b"\0",
        bytes(packed[:-1]),
    ):
        with pytest.raises(ProtocolViolation):
            unpack(wire, changed, 3)
    with pytest.raises(ProtocolViolation):
        unpack("q4", bytes([0, 0x11, 0x11]), 3)  # the padding half
    with pytest.raises(ProtocolViolation):
        unpack(wire, bytes([0]) + bytes([0x80 if wire == "q8" else 0x88]) * (len(packed) - 1), 3)


def test_marks_and_values_of_a_sparse_wire_fit_each_other() -> None:
    values = np.array([3, 0, -3, 1], np.int16)
    packed = bytes(pack("q4-sparse", values))
    assert len(packed) == packed_bytes("q4-sparse", 4) == 1 + 32 + 32
    assert packed[1:33] == bytes([0b10110000]) + bytes(31)
    assert packed[33:] == bytes([0xD3, 0x01]) + bytes(30)
    for at, change in ((1, 0b01000000), (1, 0b00001000), (33, 0x0F), (34, 0x10), (60, 0x01)):
        changed = bytearray(packed)
        changed[at] ^= change if at != 33 else 0x03
        with pytest.raises(ProtocolViolation):
            unpack("q4-sparse", changed, 4)


def test_what_was_not_rounded_cannot_be_packed() -> None:
    values = np.arange(-300, 300, dtype=np.int16)
    for wire in COARSE:
        with pytest.raises(LocalError, match="not rounded"):
            pack(wire, values)
        with pytest.raises(LocalError, match="not rounded"):
            pack(wire, np.full(5, -32768, np.int16))
    with pytest.raises(LocalError, match="no wire"):
        pack("q2", values)
