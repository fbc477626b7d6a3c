import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.errors import ProtocolViolation
from celluler_node.processes.frames import FrameReader, encode
from celluler_node.processes.words import Failure, Kind
from tests.unit.test_process_frames import feed

blobs = st.lists(st.binary(max_size=200), max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(blobs, min_size=1, max_size=5), st.integers(1, 300))
def test_frames_do_not_depend_on_how_their_bytes_are_cut(all_blobs, step):
    data = b"".join(b"".join(encode(Kind.REPLY, Failure("E", "r"), b, call=n)) for n, b in enumerate(all_blobs))
    frames = feed(FrameReader(1 << 12), data, step)
    assert [(frame.call, list(frame.blobs)) for frame in frames] == list(enumerate(all_blobs))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400))
def test_garbage_raises_only_violations_and_never_holds_more_than_its_limit(data):
    reader = FrameReader(64)
    try:
        for frame in feed(reader, data, 7):
            assert sum(len(blob) for blob in frame.blobs) <= 64
    except ProtocolViolation:
        pass


@settings(max_examples=60, deadline=None)
@given(blobs, st.data())
def test_a_frame_with_one_byte_changed_is_another_frame_or_a_violation(parts, data):
    good = bytearray(b"".join(encode(Kind.REPLY, Failure("E", "r"), parts, call=1)))
    place = data.draw(st.integers(0, len(good) - 1))
    good[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ProtocolViolation):
        feed(FrameReader(1 << 12), bytes(good))
