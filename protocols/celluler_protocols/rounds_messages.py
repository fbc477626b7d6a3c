"""The words of /celluler/rounds/1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from celluler.learning.messages import MAX_MESSAGE_BYTES
from celluler.wire import Bytes32, Frames, Length, Range

PROTOCOL_ID = "/celluler/rounds/1"
MAX_ENVELOPE_BYTES = MAX_MESSAGE_BYTES + 320
MAX_PIECE_BYTES = 1 << 18
MAX_PART_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class Talk:
    """First word of a stream on which its opener will say what it signs or passes on."""

    run: Bytes32


@dataclass(frozen=True, slots=True)
class Say:
    """One signed message of a round, as `celluler.learning.messages` describes them."""

    envelope: Annotated[bytes, Length(1, MAX_ENVELOPE_BYTES)]


@dataclass(frozen=True, slots=True)
class Want:
    """First and only word of a stream that asks for one reduced part."""

    run: Bytes32
    digest: Bytes32


@dataclass(frozen=True, slots=True)
class Have:
    """The answer: so many bytes follow, in Pieces."""

    length: Annotated[int, Range(0, MAX_PART_BYTES)]


@dataclass(frozen=True, slots=True)
class Piece:
    data: Annotated[bytes, Length(1, MAX_PIECE_BYTES)]


@dataclass(frozen=True, slots=True)
class Absent:
    """The answer when the part is not here, or was asked for too often."""


def frames() -> Frames:
    return Frames((Talk, Say, Want, Have, Piece, Absent), limit=MAX_PIECE_BYTES + 64)
