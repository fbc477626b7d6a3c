"""What the members say of themselves and of each other: who is there, who is where, who is said to lie or not to serve.

Nothing here is proof; it decides whom to wait for and what to ask, and of b+1 members that say the same one is honest.
Members without a vote are heard like the others, but only voters' words are counted.
"""

from __future__ import annotations

from collections.abc import Iterator

from celluler.learning.messages import Status, mask
from celluler.learning.roster import Electorate


class Presence:
    """me: our place. period_s: between two statuses of a member; silence_s: after so long it is not there."""

    def __init__(self, me: int, *, period_s: float, silence_s: float) -> None:
        self._me, self._period_s, self._silence_s = me, period_s, silence_s
        self._heard: dict[int, float] = {}
        self._statuses: dict[int, Status] = {}
        self._answered: dict[int, float] = {}

    def expect(self, place: int, now: float) -> None:
        """A member that may be there: it has silence_s to say so."""
        self._heard.setdefault(place, now)

    def hear(self, place: int, now: float) -> None:
        self._heard[place] = now

    def take(self, place: int, status: Status, now: float) -> bool:
        """False for a status that is old, or a replay."""
        known = self._statuses.get(place)
        if known is not None and (status.incarnation, status.sequence) <= (known.incarnation, known.sequence):
            return False
        self._statuses[place], self._heard[place] = status, now
        return True

    def may_answer(self, place: int, now: float) -> bool:
        """Whether it is time to tell this member something again; then it counts as told."""
        if now - self._answered.get(place, -self._period_s) < self._period_s / 2:
            return False
        self._answered[place] = now
        return True

    def status_of(self, place: int) -> Status | None:
        return self._statuses.get(place)

    def heard(self, now: float) -> int:
        """Mask of those heard from lately, ourselves included."""
        return mask(place for place, at in self._heard.items() if now - at <= self._silence_s) | 1 << self._me

    def present(self, place: int, now: float) -> bool:
        """Heard from by ourselves within the time of two statuses."""
        return place == self._me or now - self._heard[place] <= 2 * self._period_s

    def alive(self, electorate: Electorate, place: int, now: float) -> bool:
        """Heard from lately, by us or, should only our link be cut, by b+1 members by their own word."""
        fresh = now - self._silence_s
        if place == self._me or self._heard.get(place, 0.0) >= fresh:
            return True
        witnesses = sum(
            status.heard >> place & 1 for member, status in self._voters(electorate) if self._heard[member] >= fresh
        )
        return witnesses > electorate.b

    def ahead_of(self, electorate: Electorate, round_number: int) -> list[tuple[int, int]]:
        """(round, place) of those who are in a later round by their own word, the furthest first."""
        found = [(status.round, member) for member, status in self._voters(electorate) if status.round > round_number]
        return sorted(found, reverse=True)

    def level_with(self, electorate: Electorate, round_number: int) -> int:
        """How many say that they are no further than this."""
        return sum(status.round <= round_number for _, status in self._voters(electorate))

    def with_proof(self, electorate: Electorate, place: int) -> int:
        """How many others say that they hold proof against one."""
        return sum(status.proven >> place & 1 for member, status in self._voters(electorate) if member != place)

    def unserved_by(self, electorate: Electorate, place: int, now: float, *, since: int) -> int:
        """How many others that are there say that one does not serve. since: a round; words of before do not count."""
        return sum(
            status.failing >> place & 1
            for member, status in self._voters(electorate)
            if member != place and status.round >= since and now - self._heard[member] <= self._silence_s
        )

    def certified(self, round_number: int) -> set[int]:
        """Those who say that they hold this round's certificate."""
        return {m for m, status in self._statuses.items() if status.certified and status.round == round_number}

    def _voters(self, electorate: Electorate) -> Iterator[tuple[int, Status]]:
        return ((member, status) for member, status in self._statuses.items() if member in electorate)
