"""How many replicas a version is to have, and where: decisions alone, with time as an argument in seconds of any clock.

More are wanted at once when more is asked; fewer once nothing needed them for as long as they are kept warm, so that
what comes and goes within that time has no model loaded again and again. With a minimum of zero the last one goes, too.
Knows neither how a replica is got nor what a peer is.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from celluler.identity import PeerId
from celluler.inference.deployments import Scale

RECENT_S = 30.0
MAX_RECENT = 256
STEP_S = 10.0
"""At most so often one more is wanted for the sake of latency: the last one has to show first what it does."""
SLOWEST = 0.95
FEWEST_SLOW = 8
"""Of fewer answers nobody can say that they are slow."""


class Demand:
    """What was asked of one version lately."""

    def __init__(self) -> None:
        self._under_way = self._most = 0
        self._took: deque[tuple[float, float]] = deque(maxlen=MAX_RECENT)

    @property
    def under_way(self) -> int:
        return self._under_way

    def begin(self) -> None:
        self._under_way += 1
        self._most = max(self._most, self._under_way)

    def end(self, took_s: float | None, now: float) -> None:
        """took_s: None for what failed."""
        self._under_way -= 1
        if took_s is not None:
            self._took.append((now, took_s))

    def take_most(self) -> int:
        """The most that was under way at once since this was last asked."""
        most, self._most = self._most, self._under_way
        return most

    def slow_s(self, now: float) -> float | None:
        """What the slowest twentieth of the recent answers took at least; None of too few."""
        recent = sorted(took for at, took in self._took if now - at <= RECENT_S)
        return recent[int(SLOWEST * (len(recent) - 1))] if len(recent) >= FEWEST_SLOW else None


class Scaler:
    """How many replicas one version is to have."""

    def __init__(self) -> None:
        self._wanted: deque[tuple[float, int]] = deque()  # falling numbers: what was wanted when, as far as it counts
        self._stepped = -math.inf

    def decide(self, scale: Scale, demand: Demand, now: float) -> int:
        """Ask it regularly, and whenever a request comes to a version that has none."""
        most, current = demand.take_most(), self._in_window(scale, now)
        wanted = math.ceil(most / scale.in_flight)
        if scale.latency_ms and most and now - self._stepped >= STEP_S:
            slow_s = demand.slow_s(now)
            if slow_s is not None and slow_s * 1000 > scale.latency_ms:
                wanted, self._stepped = max(wanted, current + 1), now
        wanted = min(scale.most, max(scale.least, wanted))
        while self._wanted and self._wanted[-1][1] <= wanted:
            self._wanted.pop()
        self._wanted.append((now, wanted))
        return self._in_window(scale, now)

    def _in_window(self, scale: Scale, now: float) -> int:
        """The most that was wanted while it is kept warm: never fewer than at the last decision within that time."""
        while len(self._wanted) > 1 and now - self._wanted[0][0] > scale.keep_warm_s:
            self._wanted.popleft()
        wanted = self._wanted[0][1] if self._wanted else 0
        return min(scale.most, max(scale.least, wanted))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A peer that might have a replica. holds: the model's weights are there. replicas: of our deployments that it has.
    memory_mb: as it advertises. own: this node itself."""

    peer: PeerId
    region: str = ""
    holds: bool = False
    replicas: int = 0
    memory_mb: int = 0
    own: bool = False


def place(
    count: int, candidates: Sequence[Candidate], taken: Mapping[PeerId, str], *, regions: Collection[str] = ()
) -> tuple[PeerId, ...]:
    """The peers for so many more replicas, fewer where there are no more.

    Each in the region that has the fewest by then; there, who has fewest of our replicas, who holds the weights, this
    node before others, who has the most memory. taken: region of each peer that has one. regions: the only ones
    allowed, empty for any.
    """
    here = Counter(taken.values())
    free = [one for one in candidates if one.peer not in taken and (not regions or one.region in regions)]
    chosen: list[PeerId] = []
    while free and len(chosen) < count:
        best = min(free, key=lambda one: (here[one.region], *_fitness(one)))
        free.remove(best)
        here[best.region] += 1
        chosen.append(best.peer)
    return tuple(chosen)


def _fitness(one: Candidate) -> tuple[int, bool, bool, int, str]:
    return one.replicas, not one.holds, not one.own, -one.memory_mb, one.peer
