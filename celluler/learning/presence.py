"""What the members say of themselves and of each other: who is there, who is where, who is said to lie or not to serve.

Nothing here is proof; it decides whom to wait for and what to ask, and of b+1 members that say the same one is honest.
Members without a vote are heard like the others, but only voters' words are counted.
"""

from __future__ import annotations

from collections.abc import Iterator

from celluler.learning.messages import Status, mask
from celluler.learning.roster import Electorate


class Presence:
    """me: our place. period_s: between two statuses of a member; silence_s: after so long it is not there.

    now and electorate are the caller's to set: the time in seconds, and who takes part in the round it is in.
    """

    def __init__(self, me: int, electorate: Electorate, *, period_s: float, silence_s: float) -> None:
        self.now, self.electorate = 0.0, electorate
        self.period_s, self.silence_s = period_s, silence_s
        self._me = me
        self._heard: dict[int, float] = {}
        self._statuses: dict[int, Status] = {}
        self._answered: dict[int, float] = {}

    def expect(self, place: int) -> None:
        """A member that may be there: it has silence_s to say so."""
        self._heard.setdefault(place, self.now)

    def hear(self, place: int) -> None:
        self._heard[place] = self.now

    def take(self, place: int, status: Status) -> bool:
        """False for a status that is old, or a replay."""
        known = self._statuses.get(place)
        if known is not None and (status.incarnation, status.sequence) <= (known.incarnation, known.sequence):
            return False
        self._statuses[place], self._heard[place] = status, self.now
        return True

    def may_answer(self, place: int) -> bool:
        """Whether it is time to tell this member something again; then it counts as told."""
        if self.now - self._answered.get(place, -self.period_s) < self.period_s / 2:
            return False
        self._answered[place] = self.now
        return True

    def status_of(self, place: int) -> Status | None:
        return self._statuses.get(place)

    @property
    def heard(self) -> int:
        """Mask of those heard from lately, ourselves included."""
        return mask(place for place in self._heard if self._is_fresh(place)) | 1 << self._me

    def present(self, place: int) -> bool:
        """Heard from by ourselves within the time of two statuses."""
        return place == self._me or self.now - self._heard[place] <= 2 * self.period_s

    def alive(self, place: int) -> bool:
        """Heard from lately, by us or, should only our link be cut, by b+1 members by their own word."""
        if place == self._me or self._is_fresh(place):
            return True
        witnesses = sum(status.heard >> place & 1 for member, status in self._voters() if self._is_fresh(member))
        return witnesses > self.electorate.b

    def ahead_of(self, round_number: int) -> list[tuple[int, int]]:
        """(round, place) of those who are in a later round by their own word, the furthest first."""
        found = [(status.round, member) for member, status in self._voters() if status.round > round_number]
        return sorted(found, reverse=True)

    def level_with(self, round_number: int) -> int:
        """How many say that they are no further than this."""
        return sum(status.round <= round_number for _, status in self._voters())

    def with_proof(self, place: int) -> int:
        """How many others say that they hold proof against one."""
        return sum(status.proven >> place & 1 for member, status in self._voters() if member != place)

    def unserved_by(self, place: int, *, since: int) -> int:
        """How many others that are there say that one does not serve. since: a round; words of before do not count."""
        return sum(
            status.failing >> place & 1
            for member, status in self._voters()
            if member != place and status.round >= since and self._is_fresh(member)
        )

    def certified(self, round_number: int) -> set[int]:
        """Those who say that they hold this round's certificate."""
        return {m for m, status in self._statuses.items() if status.certified and status.round == round_number}

    def _is_fresh(self, place: int) -> bool:
        return self.now - self._heard.get(place, -self.silence_s) <= self.silence_s

    def _voters(self) -> Iterator[tuple[int, Status]]:
        return ((member, status) for member, status in self._statuses.items() if member in self.electorate)
