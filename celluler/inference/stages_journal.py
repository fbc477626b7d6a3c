"""What a sequence was at each stage: the very bytes that were sent, so that another peer can take a stage over.

A stage that is lost holds nothing that cannot be made again: its replacement is given what its predecessor was given,
in a few large pieces, and from then on computes what that one would have. Nothing has to be asked of the other stages,
and no token that was told is drawn again. Bytes of places stand one behind another (see `hidden`), so that pieces of
any size can be cut. Knows no peer, no clock and no network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from celluler.errors import LocalError


@dataclass(frozen=True, slots=True)
class Piece:
    """`count` places from `start` on."""

    start: int
    count: int
    data: bytes


class StagesJournal:
    """Of one sequence."""

    def __init__(self, place_bytes: tuple[int, ...]) -> None:
        """place_bytes: of a place, at each stage."""
        self._place_bytes = place_bytes
        self._sent = tuple(bytearray() for _ in place_bytes)

    @property
    def byte_count(self) -> int:
        """That are kept, of all stages."""
        return sum(map(len, self._sent))

    def places(self, stage: int) -> int:
        """That a stage was sent."""
        return len(self._sent[stage]) // self._place_bytes[stage]

    def send(self, stage: int, start: int, data: bytes) -> None:
        """To be called before anything is sent. Raises LocalError for places that do not follow those before them."""
        if len(data) % self._place_bytes[stage] or start != self.places(stage):
            raise LocalError(f"{len(data)} bytes from place {start} on, stage {stage} has {self.places(stage)}")
        self._sent[stage].extend(data)

    def replay(self, stage: int, until: int, *, places: int, byte_count: int) -> Iterator[Piece]:
        """What was sent before place `until`, in pieces of at most so many places and bytes, one place at least."""
        each = self._place_bytes[stage]
        most = max(1, min(places, byte_count // each))
        for start in range(0, until, most):
            count = min(most, until - start)
            yield Piece(start, count, bytes(self._sent[stage][each * start : each * (start + count)]))
