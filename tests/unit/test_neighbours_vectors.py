"""The golden bytes of what neighbours say, as it travels in a `Say` of /celluler/rounds/1."""

from __future__ import annotations

import pytest

from celluler.errors import PeerViolation, ProtocolViolation
from celluler.identity import seal
from celluler.learning.messages import Commit
from celluler.learning.neighbours_messages import Here, Model, open_word
from celluler_protocols.rounds_messages import PROTOCOL_ID, Say, frames
from simulations.neighbours import identity
from tests.support.vectors import check_vectors

RUN, ALICE = b"\x11" * 32, identity(0)
WORDS = (Here(RUN, 7), Model(RUN, 7, (b"\x44" * 32, b"\x55" * 32), (-7, -1000)))


def test_words_between_neighbours_are_the_golden_ones() -> None:
    check_vectors("neighbours", PROTOCOL_ID, frames(), [Say(seal(ALICE, word)) for word in WORDS])


@pytest.mark.parametrize("word", WORDS)
def test_a_word_is_read_as_it_was_signed(word: Here | Model) -> None:
    signed = open_word(seal(ALICE, word))
    assert (signed.signer, signed.record) == (ALICE.peer_id, word)


def test_a_word_of_a_certified_run_is_none_between_neighbours() -> None:
    raw = seal(ALICE, Commit(RUN, 0, RUN, RUN, (), (), False))
    with pytest.raises(ProtocolViolation, match="no word between neighbours"):
        open_word(raw)


@pytest.mark.parametrize("raw", [b"", b"\x00" * 64, seal(ALICE, WORDS[0])[:-1] + b"\x00", b"x" * 5000])
def test_garbage_is_a_violation(raw: bytes) -> None:
    with pytest.raises(PeerViolation):
        open_word(raw)
