"""Who has asked this node to keep which models loaded, and until when. Time is an argument, in seconds of any clock.

One lease an asker and a model: asking again makes it longer or shorter. Bounded in all, and for each asker.
"""

from __future__ import annotations

from celluler.content.digest import Digest
from celluler.errors import Busy
from celluler.identity import PeerId

MAX_LEASES = 64
MAX_LEASES_AN_ASKER = 8


class LeaseBook:
    def __init__(self, *, most: int = MAX_LEASES) -> None:
        self._most = most
        self._until: dict[tuple[PeerId, Digest], float] = {}

    def __len__(self) -> int:
        return len(self._until)

    def grant(
        self, asker: PeerId, model: Digest, until: float, now: float, *, an_asker: int = MAX_LEASES_AN_ASKER
    ) -> None:
        """Raises Busy when that asker, or all together, have as many as there may be."""
        self._expire(now)
        if (asker, model) not in self._until:
            if sum(who == asker for who, _ in self._until) >= an_asker:
                raise Busy(f"you have {an_asker} models kept here, and may have no more")
            if len(self._until) >= self._most:
                raise Busy(f"{self._most} models are kept here for others")
        self._until[asker, model] = until

    def release(self, asker: PeerId, model: Digest) -> None:
        """Of none there is, nothing."""
        self._until.pop((asker, model), None)

    def until(self, model: Digest, now: float) -> float | None:
        """The latest end of all leases on it; None when nobody has one."""
        self._expire(now)
        return max((until for (_, kept), until in self._until.items() if kept == model), default=None)

    def of(self, asker: PeerId, now: float) -> tuple[Digest, ...]:
        self._expire(now)
        return tuple(model for who, model in self._until if who == asker)

    def _expire(self, now: float) -> None:
        self._until = {key: until for key, until in self._until.items() if until > now}
