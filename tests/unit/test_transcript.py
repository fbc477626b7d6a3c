"""The file in which a run is written down."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celluler.aggregation.q16 import part_slices
from celluler.errors import LocalError, PeerViolation, ProtocolViolation
from celluler.learning.messages import Body, Certificate, Mark, Part, Quorum
from celluler.learning.transcript import MARK, Opening, Signatures, Transcript, TranscriptWriter, part_bytes

RUN = b"r" * 32
PARTS, DIMENSION = 3, 11  # parts of 8, 8 and 6 bytes
OPENING = Opening(b"order", b"base", b"roster", DIMENSION)
AGGREGATE = {0: b"a" * 8, 1: b"b" * 8, 2: b"c" * 6}


def certificate(number: int, *, closing: bool = False) -> Certificate:
    parts = () if closing else (Part(b"d" * 32, -3, 0b11, (1, 1)),) * PARTS
    return Certificate(
        RUN, Body(number, b"p" * 32, b"s" * 32, 0b11, b"w" * 32, parts), Quorum(0, (Mark(0, b"v" * 64),))
    )


def written(heights: int = 2, wires: Mapping[int, Mapping[int, bytes]] | None = None) -> io.BytesIO:
    file = io.BytesIO()
    writer = TranscriptWriter(file, OPENING, parts=PARTS)
    for number in range(heights):
        signed = Signatures((b"commit-0", b"commit-1"), b"set", (b"statement",))
        writer.add(certificate(number), signed, aggregate=AGGREGATE, wires=wires or {1: {0: b"x" * 8, 2: b"y" * 6}})
    writer.add(certificate(heights, closing=True))
    return file


def start() -> int:
    """Where the first height begins."""
    file = io.BytesIO()
    TranscriptWriter(file, OPENING, parts=PARTS)
    return len(file.getvalue())


def opened(data: bytes) -> Transcript:
    transcript = Transcript(io.BytesIO(data))
    transcript.scan(PARTS)
    return transcript


def test_what_was_written_is_read_again() -> None:
    transcript = opened(written().getvalue())
    assert (transcript.opening, len(transcript), transcript.whole) == (OPENING, 3, True)
    for number in (1, 0):
        record = transcript.height(number)
        assert record is not None
        assert record.certificate == certificate(number)
        assert (record.commits, record.proposal, record.statements) == (
            (b"commit-0", b"commit-1"),
            b"set",
            (b"statement",),
        )
        pieces = transcript.pieces(number)
        assert [pieces.aggregate(part) for part in range(PARTS)] == list(AGGREGATE.values())
        assert (pieces.held(1), pieces.held(0)) == (frozenset({0, 2}), frozenset())
        assert [pieces.wire(1, part) for part in range(PARTS)] == [b"x" * 8, None, b"y" * 6]
        assert pieces.wire(0, 0) is None
    assert transcript.height(3) is None
    assert transcript.pieces(3).aggregate(0) is None
    assert not transcript.pieces(2).held(1)


def test_parts_are_as_long_as_aggregation_cuts_them() -> None:
    for dimension, parts in ((11, 3), (64, 64), (1000, 7), (5, 1)):
        cut = part_slices(dimension, parts)
        assert part_bytes(dimension, parts) == tuple(2 * (piece.stop - piece.start) for piece in cut)


def test_a_writer_takes_heights_in_order_and_parts_of_their_length() -> None:
    writer = TranscriptWriter(io.BytesIO(), OPENING, parts=PARTS)
    for number, wires in ((1, {}), (0, {1: {0: b"short"}}), (0, {1: {3: b"x" * 8}}), (0, {1: {-1: b"x" * 8}})):
        with pytest.raises(LocalError):
            writer.add(certificate(number), wires=wires)
    writer.add(certificate(0), wires={2: {}})


def test_a_file_that_breaks_off_keeps_the_heights_before() -> None:
    whole = written().getvalue()
    for cut in range(start(), len(whole)):
        transcript = opened(whole[:cut])
        assert len(transcript) < 3
        assert all(transcript.pieces(number).aggregate(0) == b"a" * 8 for number in range(min(2, len(transcript))))


def test_what_is_no_transcript_is_refused() -> None:
    whole = written().getvalue()
    begin = len(MARK)
    for data, reason in (
        (b"", "not a transcript"),
        (b"celluler-transcript-2\n" + whole[begin:], "not a transcript"),
        (whole[: begin + 10], "breaks off"),
        (MARK + b"\xff" * 4 + whole[begin + 4 :], "limit"),
    ):
        with pytest.raises(ProtocolViolation, match=reason):
            opened(data)


def test_records_that_announce_what_cannot_be_are_refused() -> None:
    for wires in ({1: {0: b"x" * 8}}, {63: {2: b"y" * 6}}):
        whole = written(1, wires).getvalue()
        with pytest.raises(ProtocolViolation, match="part that no update has"):
            Transcript(io.BytesIO(whole)).scan(2)
    file = io.BytesIO()
    TranscriptWriter(file, OPENING, parts=PARTS).add(certificate(0, closing=True), aggregate=AGGREGATE)
    with pytest.raises(ProtocolViolation, match="closing"):
        opened(file.getvalue())
    file, other = written(1), written(1)
    with pytest.raises(ProtocolViolation, match="out of turn"):
        opened(file.getvalue() + other.getvalue()[start() :])


@given(st.binary(max_size=300), st.integers(0, 2000))
def test_garbage_raises_violations_and_nothing_else(garbage: bytes, at: int) -> None:
    whole = bytearray(written().getvalue())
    whole[at : at + len(garbage)] = garbage
    for data in (garbage, MARK + garbage, bytes(whole)):
        try:
            transcript = opened(data)
            for number in range(len(transcript)):
                transcript.pieces(number).wire(1, 0)
        except PeerViolation:
            pass


@given(st.dictionaries(st.integers(0, 63), st.sets(st.integers(0, PARTS - 1), min_size=1), max_size=8))
def test_any_choice_of_parts_is_found_again(held: dict[int, set[int]]) -> None:
    wires = {
        member: {part: bytes((member, part)) * (4, 4, 3)[part] for part in parts} for member, parts in held.items()
    }
    file = io.BytesIO()
    TranscriptWriter(file, OPENING, parts=PARTS).add(certificate(0), wires=wires)
    pieces = opened(file.getvalue()).pieces(0)
    for member in range(64):
        assert pieces.held(member) == held.get(member, set())
        assert all(pieces.wire(member, part) == data for part, data in wires.get(member, {}).items())


def test_a_transcript_may_be_read_while_its_run_goes_on() -> None:
    file = io.BytesIO()
    writer = TranscriptWriter(file, OPENING, parts=PARTS)
    for number in range(3):
        writer.add(certificate(number), aggregate=AGGREGATE)
        assert len(opened(file.getvalue())) == number + 1
    assert replace(OPENING, dimension=12) != opened(file.getvalue()).opening
