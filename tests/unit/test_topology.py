"""Graphs of neighbours: whoever is not silent is connected, and mixing moves no mean."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from celluler.errors import LocalError
from celluler.learning.topology import Graph, Topology, dealt_regions, graph, told_regions

GROUPS = st.integers(1, 24).flatmap(
    lambda members: st.tuples(
        st.sampled_from(Topology),
        st.just(members),
        st.lists(st.sampled_from("abcd"), min_size=members, max_size=members).map(tuple),
        st.sets(st.integers(0, members - 1), max_size=members - 1),
    )
)


def matrix(found: Graph, live: list[int]) -> NDArray[np.float64]:
    rows = [found.weights(place) for place in live]
    return np.array([[row.get(other, 0.0) for other in live] for row in rows])


@given(GROUPS)
@settings(max_examples=150, deadline=None)
def test_any_group_is_connected_symmetric_and_mixes_to_its_mean(group: tuple[Topology, int, tuple[str, ...], set[int]]):
    topology, members, regions, silent = group
    found = graph(topology, members, regions=regions, silent=silent)
    live = [place for place in range(members) if place not in silent]
    for place in range(members):
        assert place not in found.neighbours[place]
        assert all(place in found.neighbours[other] for other in found.neighbours[place])
        assert not set(found.neighbours[place]) & silent
        assert place not in silent or found.neighbours[place] == ()
    mixing = matrix(found, live)
    assert (mixing >= 0).all()
    assert np.allclose(mixing.sum(axis=0), 1)
    assert np.allclose(mixing, mixing.T)
    values = np.sort(np.abs(np.linalg.eigvalsh(mixing)))
    assert len(live) == 1 or values[-2] < 1 - 1e-3  # connected, and no part of it swings to and fro


@pytest.mark.parametrize(("topology", "most"), [("mesh", 15), ("ring", 2), ("star", 15), ("hierarchical", 6)])
def test_no_member_has_more_neighbours_than_its_topology_says(topology: str, most: int) -> None:
    found = graph(Topology(topology), 16)
    assert max(map(len, found.neighbours)) == most


def test_a_star_of_which_the_hub_is_silent_has_another_and_the_ring_closes_over_a_gap() -> None:
    assert graph(Topology.STAR, 4, silent={0}).neighbours == ((), (2, 3), (1,), (1,))
    assert graph(Topology.RING, 5, silent={1, 2}).neighbours == ((3, 4), (), (), (0, 4), (0, 3))


def test_a_region_without_its_aggregator_has_another_which_the_other_regions_know() -> None:
    regions = ("oslo", "oslo", "rome", "rome")
    assert graph(Topology.HIERARCHICAL, 4, regions=regions).neighbours == ((1, 2), (0,), (0, 3), (2,))
    found = graph(Topology.HIERARCHICAL, 4, regions=regions, silent={2})
    assert found.neighbours == ((1, 3), (0,), (), (0,))


def test_regions_that_nobody_named_are_dealt_and_a_wrong_number_is_refused() -> None:
    assert len(set(dealt_regions(16))) == 4
    assert dealt_regions(1) == ("region-0",)
    with pytest.raises(LocalError):
        graph(Topology.HIERARCHICAL, 3, regions=("one",))


def test_regions_are_as_members_tell_them_and_those_that_say_nothing_are_dealt_among_themselves() -> None:
    told = told_regions(["oslo", "", "rome", "oslo", "", "region-0"])
    assert (told[0], told[2], told[3], told[5]) == ("oslo", "rome", "oslo", "region-0")
    assert len({told[1], told[4], *told}) == 5
    assert told_regions(["oslo"] * 3) == ("oslo",) * 3


@given(st.integers(1, 64))
def test_where_nobody_says_where_it_is_the_graph_is_as_dealt(members: int) -> None:
    told = graph(Topology.HIERARCHICAL, members, regions=told_regions([""] * members))
    assert told == graph(Topology.HIERARCHICAL, members)
