"""Counting the votes of one phase of one view."""

from __future__ import annotations

from collections import Counter

from celluler.identity import Signed
from celluler.learning.messages import Mark, Quorum, Vote, mask, signature_of


class Tally:
    """The first vote of each member counts; a second, different one is the caller's to report."""

    def __init__(self, view: int) -> None:
        self.view = view
        self.votes: dict[int, Signed[Vote]] = {}
        self._counts: Counter[bytes | None] = Counter()

    def add(self, member: int, signed: Signed[Vote]) -> None:
        self.votes[member] = signed
        self._counts[signed.record.body] += 1

    def body_with(self, quorum: int) -> bytes | None:
        """The body that has a quorum, if any."""
        return next((body for body, count in self._counts.items() if body is not None and count >= quorum), None)

    def hopeless(self, members: int, quorum: int) -> bool:
        """True when no body can get a quorum any more, whatever the others vote."""
        most = max((count for body, count in self._counts.items() if body is not None), default=0)
        return most + members - len(self.votes) < quorum

    def proof(self, body: bytes) -> Quorum:
        """All votes for a body, as a quorum."""
        marks = [Mark(m, signature_of(s.raw)) for m, s in sorted(self.votes.items()) if s.record.body == body]
        return Quorum(self.view, tuple(marks))

    def voters_for(self, body: bytes) -> tuple[int, ...]:
        return tuple(member for member, signed in sorted(self.votes.items()) if signed.record.body == body)

    @property
    def mask(self) -> int:
        return mask(self.votes)
