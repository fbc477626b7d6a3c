"""Who gets which blocks of a body: the slowest stage as fast as can be, all within memory, near peers before far ones.

Exact over the candidates that it looks at: of every set of peers the boundaries that can be reached are followed for a
given time, and the least time for which the last boundary is reached is found among all times that a stage can have.
Knows no peer but by name, no clock and no network.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations

from celluler.errors import InvalidSpec, NoPeers
from celluler.inference.caching import Cached
from celluler.inference.memory import WORKER_BYTES
from celluler.inference.questions import MAX_STAGES
from celluler.inference.stages import Block, stored_of
from celluler.models.spec import Architecture

MAX_CANDIDATES = 8
"""Looked at: more would take seconds. Of more peers the fastest, with their way counted in."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a block costs whoever has it. weight_bytes: read for every token, which is what takes the time of
    decoding. held_bytes: of memory, weights and cache."""

    weight_bytes: int
    held_bytes: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A peer that might take a stage. memory_bytes: that it may fill, what a worker takes without a model included.
    speed: bytes of weights that it works through in a second. round_trip_s: to it and back, from whoever drives."""

    peer: str
    memory_bytes: int
    speed: float
    round_trip_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Part:
    """Blocks `first` to `until - 1` are the peer's."""

    peer: str
    first: int
    until: int


def loads_of(body: Architecture, blocks: Sequence[Block], *, slots: int, length: int) -> tuple[Load, ...]:
    """Of every block, for so many sequences of so many places."""
    loads = []
    for block in blocks:
        weight_bytes = sum(one.byte_count for one in stored_of(body, block.tensors))
        loads.append(Load(weight_bytes, weight_bytes + Cached(block.heads).byte_count(slots, length)))
    return tuple(loads)


def plan_stages(loads: Sequence[Load], candidates: Sequence[Candidate], *, stages: int = 0) -> tuple[Part, ...]:
    """In the order of the blocks, each peer once. stages: how many, 0 for as few as have the memory.

    Of plans with as many stages the one whose slowest stage, its round trip counted in, is fastest; of those equal in
    that the one with the least way in all. Raises InvalidSpec for a number of stages that cannot be, NoPeers when too
    few peers, or none with enough memory, are there.
    """
    if not 0 <= stages <= min(MAX_STAGES, len(loads)):
        raise InvalidSpec("stages", f"must be 1…{min(MAX_STAGES, len(loads))} of this model")
    if stages > MAX_CANDIDATES:
        raise InvalidSpec("stages", f"must be at most {MAX_CANDIDATES}")
    able = _able(loads, candidates)
    if len(able) < max(1, stages):
        short = "" if len(able) == len(candidates) else f", {len(candidates) - len(able)} more have too little memory"
        raise NoPeers(f"{len(able)} peers could take a stage, {max(1, stages)} are wanted{short}")
    search = _Search(loads, able)
    for count in (stages,) if stages else range(1, min(len(able), len(loads)) + 1):
        found = search.best(count)
        if found is not None:
            return found
    held = sum(load.held_bytes for load in loads)
    raise NoPeers(f"{len(able)} peers have not the memory together for {held >> 20} MiB")


def slowest_s(loads: Sequence[Load], candidates: Sequence[Candidate], parts: Sequence[Part]) -> float:
    """Of a plan: seconds that its slowest stage takes for a token, its round trip counted in."""
    by_peer = {one.peer: one for one in candidates}
    return max(
        sum(load.weight_bytes for load in loads[part.first : part.until]) / (its := by_peer[part.peer]).speed
        + its.round_trip_s
        for part in parts
    )


def _able(loads: Sequence[Load], candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that can hold any block at all; of many the ones that would be done with all blocks first."""
    least = min(load.held_bytes for load in loads)
    whole = sum(load.weight_bytes for load in loads)
    able = [one for one in candidates if one.speed > 0.0 and one.memory_bytes - WORKER_BYTES >= least]
    able.sort(key=lambda one: (whole / one.speed + one.round_trip_s, one.peer))
    if len(able) > MAX_CANDIDATES:  # some of the roomiest too: without them it might not fit at all
        roomy = sorted(able[MAX_CANDIDATES // 2 :], key=lambda one: (-one.memory_bytes, one.peer))
        able = [*able[: MAX_CANDIDATES // 2], *roomy[: MAX_CANDIDATES - MAX_CANDIDATES // 2]]
    return able


class _Search:
    """Boundaries are numbers 0 … len(loads); a set of them is an integer, bit by bit."""

    def __init__(self, loads: Sequence[Load], peers: Sequence[Candidate]) -> None:
        self._peers, self._count = peers, len(loads)
        self._work = [0, *accumulate(load.weight_bytes for load in loads)]
        self._held = [0, *accumulate(load.held_bytes for load in loads)]

    def best(self, stages: int) -> tuple[Part, ...] | None:
        """None where so many stages cannot be."""
        times = sorted(self._times())
        if not times or not self._full(stages, times[-1]):
            return None
        # The first time that is enough: what reaches the end in some time does so in more.
        at = bisect_left(times, True, key=lambda within_s: bool(self._full(stages, within_s)))
        within_s = times[at]
        masks = self._full(stages, within_s)
        way = {mask: sum(one.round_trip_s for _, one in self._of(mask)) for mask in masks}
        return self._parts(min(masks, key=lambda mask: (way[mask], mask)), within_s)

    def _of(self, mask: int) -> Iterator[tuple[int, Candidate]]:
        return ((place, one) for place, one in enumerate(self._peers) if mask >> place & 1)

    def _times(self) -> set[float]:
        """All that a stage can take, of the plans that memory allows."""
        return {
            self._time(first, until, one)
            for one in self._peers
            for first in range(self._count)
            for until in range(first + 1, self._count + 1)
            if self._held[until] - self._held[first] <= one.memory_bytes - WORKER_BYTES
        }

    def _time(self, first: int, until: int, one: Candidate) -> float:
        return (self._work[until] - self._work[first]) / one.speed + one.round_trip_s

    def _furthest(self, one: Candidate, within_s: float) -> list[int]:
        """For every boundary the last one that a stage of this peer can reach from it; itself where it can take no
        block."""
        told, until = [], 0
        for first in range(self._count):
            until = max(until, first)
            while until < self._count and self._fits(first, until + 1, one, within_s):
                until += 1
            told.append(until)
        return told

    def _fits(self, first: int, until: int, one: Candidate, within_s: float) -> bool:
        held = self._held[until] - self._held[first]
        return held <= one.memory_bytes - WORKER_BYTES and self._time(first, until, one) <= within_s

    def _reached(self, stages: int, furthest: list[list[int]]) -> dict[int, int]:
        """Of every set of at most so many peers, the boundaries that their stages can end at, all of them used."""
        reached = {0: 1}
        for size in range(1, stages + 1):
            for chosen in combinations(range(len(self._peers)), size):
                mask = sum(1 << place for place in chosen)
                ends = 0
                for place in chosen:
                    ends |= _extended(reached.get(mask & ~(1 << place), 0), furthest[place])
                if ends:
                    reached[mask] = ends
        return reached

    def _full(self, stages: int, within_s: float) -> list[int]:
        """Sets of so many peers that reach the end."""
        reached = self._reached(stages, [self._furthest(one, within_s) for one in self._peers])
        return [mask for mask, ends in reached.items() if mask.bit_count() == stages and ends >> self._count & 1]

    def _parts(self, mask: int, within_s: float) -> tuple[Part, ...]:
        """A plan of those peers, from its end to its beginning."""
        furthest = [self._furthest(one, within_s) for one in self._peers]
        reached = self._reached(mask.bit_count(), furthest)
        parts: list[Part] = []
        until = self._count
        while mask:
            place, first = self._last(mask, until, reached, furthest)
            parts.append(Part(self._peers[place].peer, first, until))
            mask, until = mask & ~(1 << place), first
        return tuple(reversed(parts))

    def _last(self, mask: int, until: int, reached: dict[int, int], furthest: list[list[int]]) -> tuple[int, int]:
        """(peer, first block) of the stage that ends there: of all that are possible the one that is done first."""
        found: list[tuple[float, int, int]] = []
        for place, one in self._of(mask):
            before = reached.get(mask & ~(1 << place), 0)
            for first in _places(before & ((1 << until) - 1)):
                if furthest[place][first] >= until:
                    found.append((-self._time(first, until, one), place, first))
        assert found, "the set was reached by some stage"
        _, place, first = min(found)
        return place, first


def _extended(starts: int, furthest: list[int]) -> int:
    """Boundaries reached from those by one stage more, of one block at least."""
    ends = 0
    for first in _places(starts):
        if first < len(furthest):
            ends |= (1 << (furthest[first] + 1)) - (1 << (first + 1)) if furthest[first] > first else 0
    return ends


def _places(bits: int) -> Iterator[int]:
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low
