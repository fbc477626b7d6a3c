"""What is still to be told: at most one rumour a peer, each told a bounded number of times, the freshest first."""

from __future__ import annotations

from celluler.identity import PeerId

from .messages import MAX_RUMOUR_BYTES, MAX_RUMOURS, Rumour, rumour_bytes


class RumourQueue:
    """Rumours by how often they were told. `take` gives the least told that fit into one message."""

    def __init__(self, *, max_rumours: int) -> None:
        self._max = max_rumours
        self._levels: list[dict[PeerId, tuple[Rumour, int]]] = [{}]
        self._level_of: dict[PeerId, int] = {}

    def __len__(self) -> int:
        return len(self._level_of)

    def __contains__(self, subject: PeerId) -> bool:
        return subject in self._level_of

    def add(self, subject: PeerId, rumour: Rumour) -> None:
        """Tell this about `subject` from now on, instead of what was told before."""
        self.drop(subject)
        if len(self._level_of) >= self._max:
            self._forget_most_told()
        self._levels[0][subject] = (rumour, rumour_bytes(rumour))
        self._level_of[subject] = 0

    def drop(self, subject: PeerId) -> None:
        level = self._level_of.pop(subject, None)
        if level is not None:
            del self._levels[level][subject]

    def take(self, times: int, first: tuple[Rumour, ...] = ()) -> tuple[Rumour, ...]:
        """Rumours for one message. times: how often each is told in all. first: what must be in it besides."""
        if not self._level_of:
            return first
        taken = list(first)
        room = MAX_RUMOUR_BYTES - sum(map(rumour_bytes, first))
        told: list[tuple[PeerId, int]] = []
        for level, rumours in enumerate(self._levels):
            for subject, (rumour, size) in rumours.items():
                if len(taken) >= MAX_RUMOURS:
                    break
                if size <= room:
                    taken.append(rumour)
                    told.append((subject, level))
                    room -= size
        for subject, level in told:
            self._promote(subject, level, times)
        return tuple(taken)

    def _promote(self, subject: PeerId, level: int, times: int) -> None:
        entry = self._levels[level].pop(subject)
        if level + 1 >= times:
            del self._level_of[subject]
            return
        if level + 1 == len(self._levels):
            self._levels.append({})
        self._levels[level + 1][subject] = entry
        self._level_of[subject] = level + 1

    def _forget_most_told(self) -> None:
        for rumours in reversed(self._levels):
            if rumours:
                subject = next(iter(rumours))
                del rumours[subject], self._level_of[subject]
                return
