"""Records and frames: what goes in comes out, and nothing but violations comes of garbage."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.errors import LocalError, ProtocolViolation
from celluler.wire import I16, U8, U16, U32, U64, Bytes32, Frames, Length, Name, Range, Text, pack, unpack

LIMIT = 1 << 16


@dataclass(frozen=True, slots=True)
class Point:
    x: I16
    y: Annotated[int, Range(3, 9)]


@dataclass(frozen=True, slots=True)
class Circle:
    centre: Point
    radius: float


@dataclass(frozen=True, slots=True)
class Everything:
    flag: bool
    small: U8
    large: U64
    real: float
    name: Name
    text: Text
    digest: Bytes32
    blob: Annotated[bytes, Length(0, 300)]
    points: Annotated[tuple[Point, ...], Length(0, 4)]
    pair: tuple[U16, Name]
    maybe: Point | None
    maybe_count: Annotated[int | None, Range(0, 5)]
    shape: Point | Circle


@dataclass(frozen=True, slots=True)
class Empty:
    pass


TYPES = (Everything, Point, Empty)
points = st.builds(Point, x=st.integers(-(2**15), 2**15 - 1), y=st.integers(3, 9))
floats = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(min_size=1, max_size=32)
everythings = st.builds(
    Everything,
    flag=st.booleans(),
    small=st.integers(0, 255),
    large=st.integers(0, 2**64 - 1),
    real=floats,
    name=names,
    text=st.text(max_size=200),
    digest=st.binary(min_size=32, max_size=32),
    blob=st.binary(max_size=300),
    points=st.lists(points, max_size=4).map(tuple),
    pair=st.tuples(st.integers(0, 2**16 - 1), names),
    maybe=st.none() | points,
    maybe_count=st.none() | st.integers(0, 5),
    shape=points | st.builds(Circle, centre=points, radius=floats),
)
messages = everythings | points | st.just(Empty())


@settings(max_examples=80, deadline=None)
@given(everythings)
def test_a_record_comes_back_as_it_was_packed(record: Everything) -> None:
    assert unpack(Everything, pack(record), limit=LIMIT) == record


@settings(max_examples=60, deadline=None)
@given(st.lists(messages, max_size=5), st.data())
def test_frames_do_not_care_how_the_bytes_are_cut(sent: list[Any], data: st.DataObject) -> None:
    sender, receiver = Frames(TYPES, limit=LIMIT), Frames(TYPES, limit=LIMIT)
    stream = b"".join(sender.encode(message) for message in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    received = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += receiver.feed(stream[start:end])
    assert received == sent
    assert receiver.idle


@settings(max_examples=20, deadline=None)
@given(st.lists(messages, min_size=1, max_size=3))
def test_frames_fed_byte_by_byte_are_idle_only_between_messages(sent: list[Any]) -> None:
    frames = Frames(TYPES, limit=LIMIT)
    for message in sent:
        encoded = frames.encode(message)
        for place, byte in enumerate(encoded):
            assert frames.idle == (place == 0)
            received = frames.feed(bytes([byte]))
            assert received == ([message] if place == len(encoded) - 1 else [])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_raises_only_violations(garbage: bytes) -> None:
    for read in (
        lambda: Frames(TYPES, limit=LIMIT).feed(garbage),
        lambda: Frames(TYPES, limit=LIMIT).feed(len(garbage).to_bytes(4, "big") + garbage),
        lambda: unpack(Everything, garbage, limit=LIMIT),
    ):
        with suppress(ProtocolViolation):
            read()


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=25,
)


@settings(max_examples=100, deadline=None)
@given(plain)
def test_well_formed_nonsense_raises_only_violations(value: object) -> None:
    body = msgpack.packb(value)
    framed = len(body).to_bytes(4, "big") + body
    for read in (lambda: Frames(TYPES, limit=LIMIT).feed(framed), lambda: unpack(Point, body, limit=LIMIT)):
        with suppress(ProtocolViolation):
            read()


@settings(max_examples=80, deadline=None)
@given(everythings, st.data())
def test_one_changed_byte_gives_another_record_or_a_violation(record: Everything, data: st.DataObject) -> None:
    packed = bytearray(pack(record))
    place = data.draw(st.integers(0, len(packed) - 1))
    packed[place] ^= data.draw(st.integers(1, 255))
    try:
        other = unpack(Everything, bytes(packed), limit=LIMIT)
    except ProtocolViolation:
        return
    assert pack(other) == packed


def test_a_second_encoding_of_the_same_record_is_refused() -> None:
    canonical = pack(Point(1, 5))
    assert canonical == b"\x92\x01\x05"
    for other in (b"\x92\xd1\x00\x01\x05", b"\xdc\x00\x02\x01\x05", b"\x92\x01\xcc\x05", canonical + b"\xc0"):
        with pytest.raises(ProtocolViolation):
            unpack(Point, other, limit=LIMIT)


@pytest.mark.parametrize(
    "value",
    [
        [True, 5], [1, 5.0], [1, 2], [1, 10], [2**15, 5], [1], [1, 5, 5], [], {"x": 1, "y": 5}, "ab", None, 7,
    ],
)  # fmt: skip
def test_a_record_of_another_shape_or_range_is_refused(value: object) -> None:
    with pytest.raises(ProtocolViolation):
        unpack(Point, msgpack.packb(value), limit=LIMIT)


@pytest.mark.parametrize("tag", [-1, 3, 2**40, True, None, 1.0, "0", b"\0", [0]])
def test_a_tag_outside_the_vocabulary_is_refused(tag: object) -> None:
    body = msgpack.packb([tag, [1, 5]])
    with pytest.raises(ProtocolViolation):
        Frames(TYPES, limit=LIMIT).feed(len(body).to_bytes(4, "big") + body)


@pytest.mark.parametrize("text", [b"\x92\xa1\xff\x05", b"\xa4\xed\xa0\x80\x80"])
def test_text_that_is_not_utf_8_is_refused(text: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        unpack(Point, text, limit=LIMIT)


@pytest.mark.parametrize("real", [float("nan"), float("inf"), float("-inf")])
def test_a_float_that_is_no_number_is_neither_sent_nor_taken(real: float) -> None:
    with pytest.raises(ProtocolViolation):
        pack(Circle(Point(0, 3), real))
    with pytest.raises(ProtocolViolation):
        unpack(Circle, msgpack.packb([[0, 3], real]), limit=LIMIT)


def test_nesting_without_end_is_refused() -> None:
    body = b"\x91" * 60_000
    with pytest.raises(ProtocolViolation):
        unpack(Point, body, limit=LIMIT)


@dataclass(frozen=True, slots=True)
class Blob:
    name: Name
    data: Annotated[bytes, Length(0, 1 << 17)]


@pytest.mark.parametrize("size", [0, 1, 255, 256, 2**16 - 1, 2**16, 2**16 + 1, 2**17])
def test_a_long_byte_string_is_framed_as_msgpack_would(size: int) -> None:
    frames = Frames((Empty, Blob), limit=1 << 18)
    message = Blob("long", (bytes(range(256)) * 512)[:size])
    body = msgpack.packb([1, ["long", message.data]])
    assert frames.encode(message) == len(body).to_bytes(4, "big") + body
    assert frames.feed(frames.encode(message)) == [message]


def test_a_length_over_the_limit_is_refused_when_it_is_read() -> None:
    for length in (0, LIMIT + 1, 2**32 - 1):
        with pytest.raises(ProtocolViolation):
            Frames(TYPES, limit=LIMIT).feed(length.to_bytes(4, "big"))


def test_a_record_over_its_limit_is_refused() -> None:
    packed = pack(Point(1, 5))
    assert unpack(Point, packed, limit=len(packed)) == Point(1, 5)
    with pytest.raises(ProtocolViolation):
        unpack(Point, packed, limit=len(packed) - 1)


def test_sending_what_is_no_word_or_too_long_is_a_local_error() -> None:
    with pytest.raises(LocalError):
        Frames((Point,), limit=LIMIT).encode(Empty())
    with pytest.raises(LocalError):
        Frames((Point,), limit=2).encode(Point(1, 5))


@dataclass(frozen=True, slots=True)
class UnboundedInt:
    value: int


@dataclass(frozen=True, slots=True)
class UnboundedBytes:
    value: bytes


@dataclass(frozen=True, slots=True)
class UnboundedSequence:
    value: tuple[U32, ...]


@dataclass(frozen=True, slots=True)
class OpenMapping:
    value: dict[str, int]


@dataclass(frozen=True, slots=True)
class MixedUnion:
    value: Point | Name


@pytest.mark.parametrize("cls", [UnboundedInt, UnboundedBytes, UnboundedSequence, OpenMapping, MixedUnion, int])
def test_a_vocabulary_that_leaves_something_open_is_refused_at_once(cls: type) -> None:
    with pytest.raises(LocalError):
        Frames((cls,), limit=LIMIT)


def test_many_frames_in_one_chunk_and_large_ones_in_many() -> None:
    frames = Frames(TYPES, limit=LIMIT)
    assert frames.feed(frames.encode(Empty()) * 5000) == [Empty()] * 5000
    assert frames.idle
