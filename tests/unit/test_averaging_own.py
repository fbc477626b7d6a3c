"""What a member keeps of what it sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celluler.errors import Busy
from celluler_protocols.averaging_checks import Server
from celluler_protocols.averaging_messages import OWN, Want
from celluler_protocols.averaging_own import MAX_OWN_SERVED, OwnWires
from simulations.attacks.averager_hands import NothingOfOurs


def part(size: int, fill: int = 0) -> memoryview:
    return memoryview(bytes([fill]) * size)


def test_the_last_rounds_are_kept_and_no_more() -> None:
    wires = OwnWires(rounds=3)
    for number in range(1, 6):
        wires.keep(number, {0: part(2, number)})
    assert [wires.find(number, 0) for number in (1, 2)] == [None, None]
    assert [bytes(wires.find(number, 0) or b"") for number in (3, 4, 5)] == [bytes([n]) * 2 for n in (3, 4, 5)]
    assert wires.find(5, 1) is None


def test_a_later_view_adds_parts_and_changes_none() -> None:
    wires = OwnWires()
    wires.keep(1, {0: part(2, 1), 1: part(2, 2)})
    wires.keep(1, {1: part(2, 9), 2: part(2, 3)})
    assert [bytes(wires.find(1, number) or b"")[0] for number in range(3)] == [1, 2, 3]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 40)), max_size=30), st.integers(0, 100))
def test_never_more_bytes_are_held_than_allowed(rounds: list[tuple[int, int]], most: int) -> None:
    wires = OwnWires(rounds=4, max_bytes=most)
    for number, size in rounds:
        wires.keep(number, {size % 3: part(size)})
        assert wires.held_bytes <= most


def test_a_peer_gets_a_part_a_few_times_and_others_still_do() -> None:
    wires = OwnWires()
    wires.keep(1, {0: part(2)})
    for _ in range(MAX_OWN_SERVED):
        assert wires.serve("bob", 1, 0) is not None
    with pytest.raises(Busy):
        wires.serve("bob", 1, 0)
    assert wires.serve("carol", 1, 0) is not None
    assert wires.serve("bob", 2, 0) is None


def test_an_attacker_that_keeps_what_it_sent_to_itself_serves_nobody() -> None:
    run, want = bytes(32), Want(bytes(32), 1, 0, OWN)
    for wires, served in ((OwnWires(), b"\1\1"), (NothingOfOurs(), None)):
        wires.keep(1, {0: part(2, 1)})
        found = Server(list, wires).find("somebody", want, run)
        assert (None if found is None else bytes(found)) == served
