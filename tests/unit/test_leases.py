"""/celluler/lease/1 over streams in memory, and the book of who has which lease."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import memory_stream_pair

from celluler.content.digest import Digest, digest_of
from celluler.errors import Busy, CellulerError, Denied, NotFound, PeerViolation, ProtocolViolation, Unavailable
from celluler.identity import PeerId
from celluler.inference.leases import LeaseBook
from celluler_protocols.inference import Refusal, refuse
from celluler_protocols.leases import Ask, Keep, Kept, Release, Released, frames, keep, release, serve_leases, turn_away

MODEL = digest_of(b"a manifest")
ALICE, BOB = PeerId("alice"), PeerId("bob")
KEPT = Kept(30, ready=True)


class Lessor:
    """Grants what it is told to, and remembers."""

    def __init__(self, answer: Kept | CellulerError = KEPT) -> None:
        self.answer, self.heard = answer, list[tuple[Any, ...]]()

    async def keep(self, asker: PeerId, model: Digest, for_s: int, wait_s: float) -> Kept:
        self.heard.append((asker, model, for_s, wait_s))
        if isinstance(self.answer, CellulerError):
            raise self.answer
        return self.answer

    def release(self, asker: PeerId, model: Digest) -> None:
        self.heard.append((asker, model))


async def served(lessor: Lessor, asks: Callable[[trio.abc.Stream], Awaitable[Any]]) -> Any:
    ours, theirs = memory_stream_pair()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_leases, theirs, ALICE, lessor)
            return await asks(ours)


async def test_a_lease_is_granted_and_let_go() -> None:
    lessor = Lessor()
    assert await served(lessor, lambda stream: keep(stream, MODEL, 60, 2.5)) == Kept(30, ready=True)
    await served(lessor, lambda stream: release(stream, MODEL))
    assert lessor.heard == [(ALICE, MODEL, 60, 2.5), (ALICE, MODEL)]


@pytest.mark.parametrize("refusal", [Denied("members alone"), Busy("full"), NotFound("it"), Unavailable("no")])
async def test_a_refusal_says_why(refusal: CellulerError) -> None:
    async def ask(stream: trio.abc.Stream) -> None:
        with pytest.raises(type(refusal)):
            await keep(stream, MODEL, 60)

    await served(Lessor(refusal), ask)


async def test_a_lessor_that_takes_too_long_is_busy(autojump_clock: trio.testing.MockClock) -> None:
    class Slow(Lessor):
        async def keep(self, asker: PeerId, model: Digest, for_s: int, wait_s: float) -> Kept:
            await trio.sleep_forever()

    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_leases, theirs, ALICE, Slow())
        with pytest.raises(Busy):
            await keep(ours, MODEL, 60, 10.0)


async def test_who_is_turned_away_hears_busy() -> None:
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turn_away, theirs)
        with pytest.raises(Busy):
            await keep(ours, MODEL, 60)


@pytest.mark.parametrize(
    "said",
    [
        frames().encode(Kept(1, ready=True)),
        frames().encode(Keep(MODEL, 1, 0)) * 2,
        frames().encode(Keep(MODEL, 1, 0))[:-1],
        bytes(8),
        b"\x7f\xff\xff\xff",
    ],
)
async def test_what_no_honest_asker_says_is_a_violation(said: bytes) -> None:
    ours, theirs = memory_stream_pair()
    await ours.send_all(said)
    await ours.send_eof()
    with pytest.raises(ProtocolViolation), trio.fail_after(5):
        await serve_leases(theirs, ALICE, Lessor())


async def test_an_asker_that_says_nothing_is_not_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    _ours, theirs = memory_stream_pair()
    lessor = Lessor()
    await serve_leases(theirs, ALICE, lessor)
    assert not lessor.heard


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (Keep(MODEL, 60, 0), Kept(61, ready=True)),
        (Keep(MODEL, 60, 0), Released()),
        (Release(MODEL), Kept(1, ready=True)),
        (Keep(MODEL, 60, 0), Keep(MODEL, 60, 0)),
    ],
)
def test_another_answer_than_to_what_was_asked_is_a_violation(asked: Keep | Release, answer: Any) -> None:
    with pytest.raises(ProtocolViolation):
        Ask(asked).receive(frames().encode(answer))


def test_an_unknown_refusal_is_a_violation_and_an_early_end_is_not() -> None:
    unknown = refuse(Refusal.FAILED, "")
    with pytest.raises(ProtocolViolation):
        Ask(Keep(MODEL, 60, 0)).receive(frames().encode(type(unknown)(99, "")))
    with pytest.raises(Unavailable):
        Ask(Keep(MODEL, 60, 0)).receive(b"")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80), st.integers(1, 7))
def test_garbage_raises_nothing_but_violations(garbage: bytes, size: int) -> None:
    ask = Ask(Keep(MODEL, 60, 0))
    try:
        for start in range(0, len(garbage), size):
            ask.receive(garbage[start : start + size])
    except (PeerViolation, CellulerError):
        pass


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60))
def test_however_an_answer_is_cut_it_is_the_same(size: int) -> None:
    ask, answer = Ask(Keep(MODEL, 60, 0)), frames().encode(Kept(60, ready=False))
    heard = [ask.receive(answer[start : start + size]) for start in range(0, len(answer), size)]
    assert heard[-1] == Kept(60, ready=False)
    assert set(heard[:-1]) <= {None}


# --- the book --------------------------------------------------------------------------------------------------------


def test_a_lease_ends_by_itself_unless_it_is_asked_for_anew() -> None:
    book = LeaseBook()
    book.grant(ALICE, MODEL, 10.0, 0.0)
    book.grant(BOB, MODEL, 5.0, 0.0)
    assert book.until(MODEL, 4.0) == 10.0
    book.grant(BOB, MODEL, 20.0, 4.0)
    assert book.until(MODEL, 11.0) == 20.0
    assert book.of(ALICE, 11.0) == ()
    assert book.until(MODEL, 20.0) is None


def test_nobody_has_more_than_may_be_had() -> None:
    book = LeaseBook(most=3)
    models = [digest_of(bytes([place])) for place in range(4)]
    book.grant(ALICE, models[0], 10.0, 0.0)
    book.grant(ALICE, models[1], 10.0, 0.0)
    with pytest.raises(Busy):
        book.grant(ALICE, models[2], 10.0, 0.0, an_asker=2)
    book.grant(ALICE, models[1], 12.0, 0.0)  # one that it has
    book.grant(BOB, models[0], 10.0, 0.0)
    with pytest.raises(Busy):
        book.grant(BOB, models[1], 10.0, 0.0)
    book.release(ALICE, models[0])
    book.grant(BOB, models[1], 10.0, 0.0)
    book.grant(ALICE, models[3], 20.0, 11.0)  # the others have ended
    assert len(book) == 2
