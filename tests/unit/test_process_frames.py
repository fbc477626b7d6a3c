import socket
from array import array

import numpy as np
import pytest

from celluler.errors import LocalError, ProtocolViolation
from celluler_node.processes.frames import STAGING_BYTES, Frame, FrameReader, Outbox, encode, record_of, tag_of
from celluler_node.processes.words import MAX_BLOBS, MAX_RECORD_BYTES, Failure, Kind, Ready

VOCABULARY = (Ready, Failure)


def feed(reader: FrameReader, data: bytes, step: int = 1 << 20) -> list[Frame]:
    """As a socket would: never more than there is space for, never more than `step` at once."""
    frames: list[Frame] = []
    while data:
        space = reader.space()
        count = min(len(space), len(data), step)
        space[:count] = data[:count]
        frames += reader.filled(count)
        data = data[count:]
    return frames


def frame_bytes(*blobs: bytes, kind: Kind = Kind.REPLY, call: int = 7) -> bytes:
    return b"".join(encode(kind, Failure("E", "why"), blobs, call=call, tag=1))


@pytest.mark.parametrize("step", [1, 3, 1000, 1 << 20])
def test_a_frame_comes_out_as_it_went_in_however_it_is_cut(step):
    blobs = (b"", b"abc", bytes(range(256)) * 10, b"")
    (frame,) = feed(FrameReader(1 << 20), frame_bytes(*blobs), step)
    assert (frame.call, frame.kind, frame.blobs) == (7, Kind.REPLY, blobs)
    assert record_of(VOCABULARY, frame) == Failure("E", "why")


def test_several_frames_in_one_read_all_come_out_in_order():
    data = b"".join(frame_bytes(b"x" * n, call=n) for n in range(50))
    frames = feed(FrameReader(1 << 20), data)
    assert [frame.call for frame in frames] == list(range(50))
    assert [len(frame.blobs[0]) for frame in frames] == list(range(50))


def test_a_blob_larger_than_the_staging_buffer_is_received_where_it_stays():
    reader, blob = FrameReader(1 << 20), bytes(3 * STAGING_BYTES)
    data = frame_bytes(blob)
    assert feed(reader, data[:100]) == []
    assert len(reader.space()) == len(data) - 100
    (frame,) = feed(reader, data[100:])
    assert frame.blobs == (blob,)
    assert reader.idle


def test_a_reader_is_idle_only_between_frames():
    reader = FrameReader(100)
    assert reader.idle
    feed(reader, frame_bytes()[:5])
    assert not reader.idle
    feed(reader, frame_bytes()[5:])
    assert reader.idle


def test_a_frame_with_too_many_bytes_behind_it_is_refused_before_they_come():
    head = frame_bytes(b"x" * 101)[:-101]
    with pytest.raises(ProtocolViolation, match="limit 100"):
        feed(FrameReader(100), head)


def test_sizes_that_overflow_are_refused():
    lying = bytearray(frame_bytes(b"x", b"y"))
    lying[16:32] = b"\xff" * 16
    with pytest.raises(ProtocolViolation):
        feed(FrameReader(1 << 40), bytes(lying))


@pytest.mark.parametrize("data", [b"\xff" * 16, b"GET / HTTP/1.1\r\n", bytes(9) + b"\xff" * 7])
def test_garbage_is_refused_at_its_head(data):
    with pytest.raises(ProtocolViolation):
        feed(FrameReader(100), data)


def test_only_requests_and_replies_carry_blobs():
    with pytest.raises(ProtocolViolation, match="kind"):
        feed(FrameReader(100), frame_bytes(b"x", kind=Kind.EVENT))


def test_a_record_of_another_vocabulary_is_refused():
    (frame,) = feed(FrameReader(0), b"".join(encode(Kind.EVENT, Failure("E", ""), tag=2)))
    with pytest.raises(ProtocolViolation, match="tag"):
        record_of(VOCABULARY, frame)
    with pytest.raises(LocalError, match="not a word"):
        tag_of((Ready,), Failure("E", ""))


def test_what_we_cannot_send_is_refused_before_a_byte_is_sent():
    with pytest.raises(LocalError, match="blobs"):
        encode(Kind.REPLY, None, [b""] * (MAX_BLOBS + 1))
    with pytest.raises(LocalError, match="contiguous"):
        encode(Kind.REPLY, None, [memoryview(b"abcd")[::2]])


def test_arrays_travel_as_their_bytes_empty_ones_too():
    blobs = [memoryview(array("d", [1.0, 2.0])), memoryview(np.zeros((0, 3))), memoryview(np.arange(3, dtype="<i2"))]
    (frame,) = feed(FrameReader(100), b"".join(encode(Kind.REPLY, None, blobs)))
    assert frame.blobs == (np.array([1.0, 2.0]).tobytes(), b"", b"\0\0\1\0\2\0")


def test_an_outbox_keeps_in_order_what_the_socket_does_not_take():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        outbox, sent = Outbox(ours), b""
        for number in range(40):
            blob = bytes([number]) * 30_000
            outbox.push(encode(Kind.REPLY, None, [blob], call=number))
            sent += b"".join(encode(Kind.REPLY, None, [blob], call=number))
        assert not outbox.flush()
        received = b""
        while len(received) < len(sent):
            received += theirs.recv(1 << 16)
            outbox.flush()
        assert received == sent
        assert outbox.flush()


def test_a_record_is_bounded():
    head = bytearray(frame_bytes())
    head[12:16] = (MAX_RECORD_BYTES + 1).to_bytes(4, "big")
    with pytest.raises(ProtocolViolation, match="record"):
        feed(FrameReader(100), bytes(head))
