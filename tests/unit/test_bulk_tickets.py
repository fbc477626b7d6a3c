"""Tickets: once, for a while, for one peer and one root, and never too many."""

from __future__ import annotations

import pytest

from celluler.content.digest import digest_of
from celluler.content.tickets import LIFE_S, MAX_TICKETS, MAX_TICKETS_A_PEER, Tickets
from celluler.errors import Busy

ROOT = digest_of(b"root")


def test_a_ticket_is_good_once_and_says_whose_it_was() -> None:
    book = Tickets()
    ticket, holder = book.issue("alice", ROOT, 100.0)
    assert (len(ticket), holder.peer, holder.root) == (32, "alice", ROOT)
    assert book.redeem(ticket, 101.0) == holder
    assert book.redeem(ticket, 101.0) is None


def test_a_ticket_that_was_not_issued_is_nobodys() -> None:
    book = Tickets()
    book.issue("alice", ROOT, 0.0)
    assert book.redeem(bytes(32), 1.0) is None


def test_a_ticket_dies_at_the_end_of_its_life() -> None:
    book = Tickets()
    ticket, holder = book.issue("alice", ROOT, 0.0)
    assert book.expire(LIFE_S - 0.1) == ()
    assert book.redeem(ticket, LIFE_S) is None
    assert book.expire(LIFE_S) == (holder,)
    assert len(book) == 0


def test_a_peer_that_uses_none_of_its_tickets_gets_no_more_and_takes_no_room_from_others() -> None:
    book = Tickets()
    for _ in range(MAX_TICKETS_A_PEER):
        book.issue("mallory", ROOT, 0.0)
    with pytest.raises(Busy):
        book.issue("mallory", ROOT, 0.0)
    book.issue("alice", ROOT, 0.0)
    book.expire(LIFE_S)
    book.issue("mallory", ROOT, LIFE_S)


def test_the_book_is_bounded() -> None:
    book = Tickets()
    for number in range(MAX_TICKETS):
        book.issue(f"peer {number}", ROOT, 0.0)
    with pytest.raises(Busy):
        book.issue("one more", ROOT, 0.0)


def test_the_book_holds_no_ticket_that_could_be_read_out_of_it() -> None:
    book = Tickets(make=lambda: b"s3cret" * 5 + b"!!")
    book.issue("alice", ROOT, 0.0)
    assert b"s3cret" not in repr(vars(book)).encode()
