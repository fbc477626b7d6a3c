"""Which models are held in a budget of memory: the one used least recently makes room for another.

Never goes a model that is at work, or that somebody keeps until later than now. What a model takes is known from its
manifest, before anything of it is fetched. Knows no clock and no worker: who loads and unloads is told what to do.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from celluler.errors import Busy, InvalidSpec, LocalError, Unavailable
from celluler.inference.caching import Cached, caching_of
from celluler.models.body import Body
from celluler.models.graph_body import GraphBody

WORKER_BYTES = 320 << 20
"""What a worker holds with torch and no model, resident."""
_WORKING = 2
"""Of what a layer takes and makes."""
_SAMPLES = 32
"""That are computed at once."""
_MAX_WORKING_BYTES = 64 << 20
"""Beyond it a batch is computed in pieces, unless one sample takes more."""

Key = TypeVar("Key", bound=Hashable)


def bytes_served(body: Body, slots: int = 0, length: int | None = None) -> int:
    """What a worker takes that serves this model: torch, the weights as they are stored or as they are computed with,
    a batch at work, and the keys and values of so many slots of that length (None: the longest), if it generates."""
    weights = body.parameter_bytes
    if body.narrow and isinstance(body, GraphBody):
        weights += body.stored_as("float32").parameter_bytes
    sample = _WORKING * body.working_bytes
    working = max(sample * body.batch[0], min(sample * _SAMPLES, _MAX_WORKING_BYTES))
    return WORKER_BYTES + weights + working + _cache_bytes(body, slots, length)


def _cache_bytes(body: Body, slots: int, length: int | None) -> int:
    if not slots:
        return 0
    try:
        caching = caching_of(body)
    except InvalidSpec:  # it does not generate
        return 0
    longest = body.input.shape[0]
    return caching.byte_count(slots, min(longest, length or longest)) if isinstance(caching, Cached) else 0


@dataclass(slots=True)
class Held:
    """One model. used_s: when it was last asked for. at_work: asks under way. kept_s: until when it must stay, by who
    wants it to."""

    byte_count: int
    used_s: float
    at_work: int = 0
    kept_s: dict[str, float] = field(default_factory=dict)

    def kept_until(self, now: float) -> float | None:
        """None when nobody keeps it."""
        until = max(self.kept_s.values(), default=-math.inf)
        return until if until > now else None


class Room(Generic[Key]):
    """Models by key, in so many bytes."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._held: dict[Key, Held] = {}

    @property
    def used_bytes(self) -> int:
        """Of all that is held."""
        return sum(one.byte_count for one in self._held.values())

    def of(self, key: Key) -> Held | None:
        return self._held.get(key)

    def take(self, key: Key, byte_count: int, now: float) -> tuple[Key, ...]:
        """Hold one more. Those that must go for it, least recently used first: they are held no longer.

        Raises Unavailable for a model that never fits, Busy while those that could go are at work or kept; then
        nothing has changed. LocalError for one that is held.
        """
        if key in self._held:
            raise LocalError("is held already")
        if byte_count > self.limit_bytes:
            needed, limit = byte_count >> 20, self.limit_bytes >> 20
            raise Unavailable(f"takes {needed} MiB of memory, all models may take {limit} MiB", hint="serve.memory")
        going = self._going(byte_count, now)
        for one in going:
            del self._held[one]
        self._held[key] = Held(byte_count, now)
        return going

    def begin(self, key: Key, now: float) -> None:
        """It is asked."""
        held = self._held[key] = self._held.pop(key)  # of those last used at one moment the first is the oldest
        held.at_work, held.used_s = held.at_work + 1, now

    def end(self, key: Key, now: float) -> None:
        """It has answered. Of one that is held no longer, nothing."""
        if (held := self._held.get(key)) is not None:
            held.at_work, held.used_s = max(0, held.at_work - 1), now

    def keep(self, key: Key, until_s: float, who: str = "") -> None:
        """It stays until then at least; of the same one the last word counts. Of one that is not held, nothing."""
        if (held := self._held.get(key)) is not None:
            held.kept_s[who] = until_s

    def let_go(self, key: Key, who: str = "") -> None:
        """That one keeps it no more."""
        if (held := self._held.get(key)) is not None:
            held.kept_s.pop(who, None)

    def drop(self, key: Key) -> None:
        self._held.pop(key, None)

    def idle(self, now: float, idle_s: float) -> tuple[Key, ...]:
        """Those that nobody asked for that long, and that may go; none for an idle time of 0."""
        if not idle_s:
            return ()
        return tuple(key for key, one in self._held.items() if self._may_go(one, now) and now - one.used_s >= idle_s)

    def _going(self, byte_count: int, now: float) -> tuple[Key, ...]:
        excess = self.used_bytes + byte_count - self.limit_bytes
        if excess <= 0:
            return ()
        going: list[Key] = []
        for key, one in sorted(self._held.items(), key=lambda item: item[1].used_s):
            if excess > 0 and self._may_go(one, now):
                going.append(key)
                excess -= one.byte_count
        if excess > 0:
            raise Busy(f"models that are at work or kept leave no room for {byte_count >> 20} MiB")
        for key in reversed(tuple(going)):  # a large one may have made the small ones before it stay
            if excess + self._held[key].byte_count <= 0:
                going.remove(key)
                excess += self._held[key].byte_count
        return tuple(going)

    @staticmethod
    def _may_go(one: Held, now: float) -> bool:
        return not one.at_work and one.kept_until(now) is None
