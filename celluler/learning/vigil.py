"""When a run is to be given up, and when it is to be begun anew. Bounded time, and a reason in words."""

from __future__ import annotations

from celluler.identity import PeerId
from celluler.learning.effects import Behind
from celluler.learning.presence import Presence
from celluler.learning.roster import RosterView, RoundRules

KEPT_ROUNDS = 2
"""Rounds whose reduced parts every member keeps for those that lag."""


class Vigil:
    def __init__(self, rules: RoundRules, presence: Presence) -> None:
        self._stall_s = rules.stall_ms / 1000
        self._patience_s = (rules.train_ms + rules.exchange_ms + rules.stall_ms) / 1000
        self._presence = presence
        self._began = self._behind_at = 0.0
        self._few_since: float | None = None

    def opened(self) -> None:
        """A height was opened now."""
        self._began = self._presence.now

    def too_few(self, roster: RosterView) -> str | None:
        """The reason, when fewer than a quorum have been there for too long."""
        presence = self._presence
        now, electorate = presence.now, presence.electorate
        silent = [place for place in electorate.places if not presence.alive(place)]
        present = len(electorate) - len(silent)
        if present >= electorate.q:
            self._few_since = None
            return None
        self._few_since = now if self._few_since is None else self._few_since
        if now - self._few_since < self._stall_s:
            return None
        names = ", ".join(roster.members[place].nickname or roster.members[place].peer[-8:] for place in silent)
        return f"{present} of {len(electorate)} members are alive, {electorate.q} are needed; silent: {names}"

    def too_long(self, obstacle: str) -> str | None:
        """The reason, when nothing was decided for too long. obstacle: what it waits for, in words."""
        if self._presence.now - self._began < self._patience_s:
            return None
        return f"no progress for {self._patience_s:g} s; {obstacle}"

    def behind(self, roster: RosterView, round_number: int) -> Behind | None:
        """When nobody serves any more what a member of this round lacks; at most once in `silence_s`."""
        presence = self._presence
        if presence.now < self._behind_at:
            return None
        ahead, b = presence.ahead_of(round_number + KEPT_ROUNDS), presence.electorate.b
        if len(ahead) <= b:
            return None
        self._behind_at = presence.now + presence.silence_s
        holders: tuple[PeerId, ...] = tuple(roster.members[place].peer for _, place in ahead)
        return Behind(ahead[b][0], holders)
