"""What a lost stage was given, given again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.errors import LocalError
from celluler.inference.hidden import WIRES, encode_hidden, hidden_bytes
from celluler.inference.stages_journal import StagesJournal


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    wire=st.sampled_from(WIRES),
    places=st.integers(1, 12),
    byte_count=st.integers(1, 2000),
    data=st.data(),
)
def test_what_is_given_again_is_what_was_sent_however_it_was_cut(
    sizes: list[int], wire: str, places: int, byte_count: int, data: st.DataObject
) -> None:
    width, total = 70, sum(sizes)
    hidden = np.random.default_rng(0).normal(size=(total, width)).astype(np.float32)
    journal, start = StagesJournal((4, hidden_bytes(wire, 1, width))), 0
    for size in sizes:
        journal.send(1, start, encode_hidden(wire, hidden[start : start + size]))
        start += size
    until = data.draw(st.integers(0, total))
    pieces = list(journal.replay(1, until, places=places, byte_count=byte_count))
    assert b"".join(one.data for one in pieces) == encode_hidden(wire, hidden[:until])
    assert [one.start for one in pieces] == [sum(it.count for it in pieces[:at]) for at in range(len(pieces))]
    assert sum(one.count for one in pieces) == until
    assert all(one.count <= places and (one.count == 1 or len(one.data) <= byte_count) for one in pieces)
    assert journal.places(0) == 0
    assert journal.byte_count == len(encode_hidden(wire, hidden))


def test_a_gap_is_refused() -> None:
    journal = StagesJournal((4,))
    journal.send(0, 0, bytes(8))
    for start, size in ((1, 4), (3, 4), (2, 5)):
        with pytest.raises(LocalError):
            journal.send(0, start, bytes(size))
    journal.send(0, 2, bytes(4))
    assert journal.places(0) == 3
