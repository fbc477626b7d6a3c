"""Where an answer stops: at the first stop sequence that is complete, of tokens or of text, none of which is told.

What may still become a stop sequence is held back, so that nobody is told the beginning of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from celluler.errors import InvalidSpec

MAX_STOPS = 16
MAX_STOP_LENGTH = 256
"""Tokens or characters of one stop sequence."""

S = TypeVar("S", str, tuple[int, ...])


@dataclass(frozen=True, slots=True)
class Passed(Generic[S]):
    """told: what may go on to whoever asked. stopped: a stop sequence is complete; nothing more comes."""

    told: S
    stopped: bool


class StopFilter(Generic[S]):
    """However what comes is cut into pieces, what is told is the same."""

    def __init__(self, stops: tuple[S, ...], nothing: S) -> None:
        """nothing: the empty one, `""` or `()`. Raises InvalidSpec for too many, too long or empty ones."""
        if len(stops) > MAX_STOPS:
            raise InvalidSpec("stop", f"holds {len(stops)} sequences, at most {MAX_STOPS}")
        if not all(1 <= len(stop) <= MAX_STOP_LENGTH for stop in stops):
            raise InvalidSpec("stop", f"each must be of 1…{MAX_STOP_LENGTH}")
        self._stops: tuple[S, ...] = stops
        self._nothing: S = nothing
        self._held: S = nothing
        self._stopped = False

    def feed(self, piece: S) -> Passed[S]:
        if self._stopped:
            return Passed(self._nothing, True)
        held = self._held + piece
        found = [(at + len(stop), at) for stop in self._stops if (at := _find(held, stop)) >= 0]
        if found:
            self._stopped, self._held = True, self._nothing
            return Passed(held[: min(found)[1]], True)
        keep = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return Passed(held[: len(held) - keep], False)

    def end(self) -> S:
        """What was held back, when nothing more comes."""
        held, self._held = self._held, self._nothing
        return held


def _find(whole: S, part: S) -> int:
    """Where the part first stands in the whole, or -1."""
    if isinstance(whole, str) and isinstance(part, str):
        return whole.find(part)
    return next((at for at in range(len(whole) - len(part) + 1) if whole[at : at + len(part)] == part), -1)


def _overlap(whole: S, stop: S) -> int:
    """Length of the longest end of the whole that a stop sequence, not complete, begins with."""
    longest = min(len(whole), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if whole[len(whole) - n :] == stop[:n]), 0)
