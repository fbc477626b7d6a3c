"""Who exchanges models with whom, and with which weight: pure functions of the topology, the places and who is silent.

Every graph is symmetric and connects all members that are not silent. The silent are left out, so a star gets another
hub, a region another aggregator, and a ring closes over the gap; who is heard again is back in. Members that disagree
on who is silent see different graphs for a while; that costs them a wait, and the averages some of their exactness.

Weights are Metropolis's: 1 / (1 + the larger degree of the two), the rest to oneself. They are symmetric and every row
and column sums to one, so mixing moves no mean. Source: Xiao and Boyd 2004, section 4.

Knows nothing of who is a liar: see `celluler.engines.mixing` for what is done about that.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations

from celluler.errors import LocalError

Edge = tuple[int, int]


class Topology(StrEnum):
    """mesh: everybody with everybody. ring: with the next on either side. star: with the first member that is heard.

    hierarchical: with the first member of one's region that is heard; those of all regions with each other.
    """

    MESH = "mesh"
    RING = "ring"
    STAR = "star"
    HIERARCHICAL = "hierarchical"


@dataclass(frozen=True, slots=True)
class Graph:
    """neighbours: those of each place, ascending; of a silent place none."""

    neighbours: tuple[tuple[int, ...], ...]

    def weight(self, one: int, two: int) -> float:
        """Of an edge; 0 where there is none."""
        if two not in self.neighbours[one]:
            return 0.0
        return 1.0 / (1 + max(len(self.neighbours[one]), len(self.neighbours[two])))

    def weights(self, place: int) -> dict[int, float]:
        """One row: a convex combination of the neighbours and oneself."""
        row = {other: self.weight(place, other) for other in self.neighbours[place]}
        return row | {place: 1.0 - math.fsum(row.values())}


def graph(
    topology: Topology, members: int, *, regions: Sequence[str] = (), silent: Collection[int] = frozenset()
) -> Graph:
    """The exchange among the members that are not silent.

    regions: one name a place, for `hierarchical` only; by default `dealt_regions`. Raises LocalError for another number
    of them.
    """
    live = [place for place in range(members) if place not in silent]
    match topology:
        case Topology.MESH:
            edges = list(combinations(live, 2))
        case Topology.RING:
            edges = _cycle(live)
        case Topology.STAR:
            edges = [(live[0], leaf) for leaf in live[1:]]
        case Topology.HIERARCHICAL:
            edges = _hierarchy(live, tuple(regions) or dealt_regions(members), members)
    neighbours: list[set[int]] = [set() for _ in range(members)]
    for one, two in edges:
        neighbours[one].add(two)
        neighbours[two].add(one)
    return Graph(tuple(tuple(sorted(each)) for each in neighbours))


def dealt_regions(members: int) -> tuple[str, ...]:
    """Regions for members of whom nobody knows where they are: about √n of them, of places that follow each other."""
    size = max(1, math.isqrt(members))
    return tuple(f"region-{place // size}" for place in range(members))


def told_regions(told: Sequence[str]) -> tuple[str, ...]:
    """Regions from what each member says of itself; those that say nothing, "", are dealt among themselves."""
    names, silent = list(told), [place for place, region in enumerate(told) if not region]
    for place, dealt in zip(silent, dealt_regions(len(silent)), strict=True):
        names[place] = f"?{dealt}"  # as no region is called
    return tuple(names)


def _cycle(live: Sequence[int]) -> list[Edge]:
    if len(live) < 2:
        return []
    return [(one, live[(at + 1) % len(live)]) for at, one in enumerate(live)]


def _hierarchy(live: Sequence[int], regions: Sequence[str], members: int) -> list[Edge]:
    if len(regions) != members:
        raise LocalError(f"{len(regions)} regions for {members} members")
    aggregators: dict[str, int] = {}
    for place in live:
        aggregators.setdefault(regions[place], place)
    within = [(aggregators[regions[place]], place) for place in live if place not in aggregators.values()]
    return within + list(combinations(sorted(aggregators.values()), 2))
