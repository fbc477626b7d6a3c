"""When each of our records is put into the DHT again, sans-IO. Time is an argument, in seconds of any clock.

Every record has a due time of its own, drawn anew after each put, so that a thousand of them never come due at once.
However many are due, they leave at a bounded rate, new ones first, the others in the order of their places in the
key space, so that one look-up leads to the neighbours of the next.

A new neighbour makes nothing due in a large network, where a record lies at twenty peers and churn is slow. In a small
one a record may have reached nobody, or only peers that go away: such a *thin* record is due again when a quarter more
peers are there, each time after a pause twice as long. So neighbours that come and go cost a record at most some
log2(every / settle) puts between two regular ones.

Knows nothing of what a record is, nor of the DHT.
"""

from __future__ import annotations

import hashlib
import math
import random
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Set
from dataclasses import dataclass
from heapq import heappop, heappush

from celluler.identity import PeerId

SPREAD = 20
"""Peers that hold a record when the network is large enough; with as many in the routing table none is thin."""

_ROUNDING = 1e-6

Key = str | bytes


@dataclass(frozen=True, slots=True)
class DirectoryTiming:
    """When our own records are put again.

    settle_s: how often neighbours are counted, and the first pause of a thin record. every_s: each record at least
    this often; the DHT forgets a head after 24 h and a provider after 48. rate_per_s, burst: of all puts together.
    at_once: puts under way. retry_s: the first pause after a failure, doubled with each.
    """

    settle_s: float = 5.0
    every_s: float = 6 * 3600.0
    rate_per_s: float = 2.0
    burst: int = 16
    at_once: int = 4
    retry_s: float = 30.0


@dataclass(slots=True)
class _Record:
    place: bytes
    due: float
    fresh: bool = True
    queued: bool = False  # in the ring
    busy: bool = False
    put_at: float = -math.inf
    reach: int = SPREAD  # routing table at the last put
    arrived: int = 0  # neighbours that had ever come, then
    hastened: int = 0  # puts for the sake of new neighbours since the last regular one
    quick: bool = False  # the next is such a put
    failed: int = 0


class Renewal:
    """The due times. Ask `take` when `wait_s` is over, and tell `done` what became of it."""

    def __init__(self, timing: DirectoryTiming, rng: random.Random, now: float) -> None:
        self._timing, self._rng = timing, rng
        self._records: dict[Key, _Record] = {}
        self._fresh: deque[Key] = deque()
        self._later: list[tuple[float, int, Key]] = []
        self._ring: list[tuple[bytes, Key]] = []
        self._last = b""
        self._thin: set[Key] = set()
        self._tokens, self._as_of = float(timing.burst), now
        self._neighbours: frozenset[PeerId] = frozenset()
        self._arrived = self._serial = 0

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, key: Key) -> bool:
        return key in self._records

    def add(self, key: Key, now: float) -> None:
        """A new record, due at once. One that is here already stays as it is."""
        if key not in self._records:
            raw = key if isinstance(key, bytes) else key.encode()
            self._records[key] = _Record(hashlib.sha256(raw).digest(), now)
            self._fresh.append(key)

    def drop(self, key: Key) -> None:
        self._records.pop(key, None)
        self._thin.discard(key)

    def see(self, neighbours: Set[PeerId], reach: int, now: float) -> None:
        """Who is connected now, and how many the routing table holds."""
        self._arrived += len(neighbours - self._neighbours)
        self._neighbours = frozenset(neighbours)
        for key in tuple(self._thin):
            record = self._records[key]
            enough = max(1, record.reach // 4)
            if max(self._arrived - record.arrived, reach - record.reach) >= enough and not record.busy:
                self._hasten(key, record, now)

    def take(self, now: float) -> Key | None:
        """The record to be put now, if one is due and the rate allows it."""
        self._refill(now)
        self._collect(now)
        if self._tokens < 1.0 - _ROUNDING or (key := self._next()) is None:
            return None
        self._tokens -= 1.0
        self.begin(key)
        return key

    def begin(self, key: Key) -> None:
        """A record is being put without having been taken: somebody waits for it."""
        record = self._records[key]
        record.fresh, record.queued, record.busy = False, False, True

    def wait_s(self, now: float) -> float:
        """How long until `take` may have something; infinite while nothing is held."""
        self._refill(now)
        self._collect(now)
        token_s = max(0.0, (1.0 - self._tokens) / self._timing.rate_per_s)
        if self._fresh or self._ring:
            return token_s
        return max(token_s, self._later[0][0] - now) if self._later else math.inf

    def done(self, key: Key, now: float, *, reach: int, stored: bool = True) -> None:
        """What became of a put. reach: what the routing table holds. stored: it worked."""
        record = self._records.get(key)
        if record is None:
            return
        record.fresh = record.queued = record.busy = False
        if not stored:
            pause_s = min(self._timing.retry_s * 2.0**record.failed, self._timing.every_s)
            record.failed += 1
            self._schedule(key, record, now + pause_s * self._rng.uniform(0.5, 1.0))
            return
        record.put_at, record.failed = now, 0
        record.reach, record.arrived = reach, self._arrived
        (self._thin.add if reach < SPREAD else self._thin.discard)(key)
        record.hastened = record.hastened if record.quick else 0
        record.quick = False
        self._schedule(key, record, now + self._timing.every_s * self._rng.uniform(0.75, 1.0))

    # --- inside ------------------------------------------------------------------------------------------------

    def _hasten(self, key: Key, record: _Record, now: float) -> None:
        due = max(now, record.put_at + self._timing.settle_s * 2.0**record.hastened)
        if due < record.due:
            record.hastened += 1
            record.quick = True
            self._schedule(key, record, due)

    def _schedule(self, key: Key, record: _Record, due: float) -> None:
        self._serial += 1
        record.due = due
        heappush(self._later, (due, self._serial, key))

    def _collect(self, now: float) -> None:
        """Move what has come due into the ring; what was put off or dropped meanwhile falls away."""
        while self._later and (self._later[0][0] <= now or not self._stands(self._later[0])):
            entry = heappop(self._later)
            if self._stands(entry):
                record = self._records[entry[2]]
                record.queued = True
                insort(self._ring, (record.place, entry[2]))
        while self._fresh and not self._is_fresh(self._fresh[0]):
            self._fresh.popleft()
        if self._ring and not any(self._is_queued(key) for _, key in self._ring):
            self._ring.clear()

    def _stands(self, entry: tuple[float, int, Key]) -> bool:
        record = self._records.get(entry[2])
        return record is not None and record.due == entry[0] and not (record.busy or record.queued or record.fresh)

    def _is_fresh(self, key: Key) -> bool:
        record = self._records.get(key)
        return record is not None and record.fresh

    def _is_queued(self, key: Key) -> bool:
        record = self._records.get(key)
        return record is not None and record.queued

    def _next(self) -> Key | None:
        if self._fresh:
            return self._fresh.popleft()  # a fresh one at the front: `_collect` saw to it
        while self._ring:
            index = bisect_right(self._ring, self._last, key=lambda entry: entry[0]) % len(self._ring)
            self._last, key = self._ring.pop(index)
            if self._is_queued(key):
                return key
        return None

    def _refill(self, now: float) -> None:
        timing = self._timing
        self._tokens = min(float(timing.burst), self._tokens + max(0.0, now - self._as_of) * timing.rate_per_s)
        self._as_of = max(now, self._as_of)
