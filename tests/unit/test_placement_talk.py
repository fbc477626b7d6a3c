"""A question goes from peer to peer until all is told, and the user hears one answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.errors import Busy, CellulerError, Denied, InvalidSpec, NotFound, ProtocolViolation, TimedOut, Unavailable
from celluler.identity import PeerId
from celluler.inference.journal import Journal
from celluler.inference.questions import Answering, Begun, Event, Finished, Over, Question, Said
from celluler.inference.sampling import Sampling
from celluler_node.placement.talk import Heard, Talk
from celluler_protocols.nursery import own_nursery
from tests.support.answering import MODEL, Script, events_of, prompt_of
from tests.support.choosing import OPENED, Host, open_chooser

QUESTION = Question("Once upon", max_tokens=12, sampling=Sampling(seed=11), timeout_s=60.0)
Behave = Callable[[int], Awaitable[None]]


class Peers:
    """Scripts by name. asked: who was asked, in order."""

    def __init__(self, **behaviour: Behave | None) -> None:
        self.scripts = {name: Script(before=how, sizes=(1, 2)) for name, how in behaviour.items()}
        self.asked: list[str] = []

    @asynccontextmanager
    async def ask(self, peer: PeerId, question: Question) -> AsyncIterator[Answering]:
        self.asked.append(peer)
        async with self.scripts[peer]("cid", question) as answering:
            yield answering


def failing(at: int, error: CellulerError) -> Behave:
    async def before(place: int) -> None:
        if place == at:
            raise error

    return before


def once(at: int, error: CellulerError) -> Behave:
    """Fails at the first answer alone."""
    left = [error]

    async def before(place: int) -> None:
        if place == at and left:
            raise left.pop()

    return before


def then(first: Behave, others: Behave) -> Behave:
    """One for the first answer, the other from the first failure on."""
    now = [first]

    async def before(place: int) -> None:
        try:
            await now[0](place)
        except CellulerError:
            now[0] = others
            raise

    return before


def silent(at: int) -> Behave:
    async def before(place: int) -> None:
        if place == at:
            await trio.sleep_forever()

    return before


async def heard(peers: Peers, question: Question = QUESTION, host: Host | None = None) -> list[Event]:
    """All that the user is told."""
    async with open_chooser(*peers.scripts, host=host) as chooser:
        talk = Talk(chooser, OPENED, question, peers.ask)
        async with own_nursery() as nursery:
            nursery.start_soon(talk.run)
            await talk.begun.wait()
            if talk.journal.begun is None:
                assert talk.told.failure is not None
                raise talk.told.failure
            return [event async for event in Heard(talk, "alice/writer:1.0.0", "cid", talk.journal.begun)]


def merged(events: list[Event]) -> dict[int, tuple[tuple[int, ...], str, str, int]]:
    """Of each answer its tokens, its text, why it ended, and how many were counted."""
    found = {}
    for over in (event for event in events if isinstance(event, Over)):
        said = [event for event in events if isinstance(event, Said) and event.choice == over.choice]
        tokens = tuple(one.token for event in said for one in event.tokens)
        found[over.choice] = tokens, "".join(event.text for event in said), over.reason, over.generated
    return found


def undisturbed(question: Question) -> list[Event]:
    journal = Journal(question, 1000.0)
    [leg] = journal.left(0.0)
    journal.begin(Begun(MODEL, prompt_of(question)))
    events = [told for event in events_of(question) for told in journal.take(leg, event, 0.0)]
    return [*events, *journal.close()]


GONE = Unavailable("the stream broke")


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("at", [0, 1, 4, 7])
async def test_a_peer_that_dies_in_the_middle_is_not_noticed(autojump_clock: Any, n: int, at: int) -> None:
    question = replace(QUESTION, n=n)
    peers = Peers(first=failing(at, GONE), second=None)
    events = await heard(peers, question)
    assert merged(events) == merged(undisturbed(question))
    assert isinstance(events[-1], Finished)
    assert peers.asked[0] == "first"
    assert set(peers.asked[1:]) == {"second"}
    assert all(one.prompt == prompt_of(QUESTION) for one in peers.scripts["second"].asked)


async def test_the_only_peer_is_asked_again_when_it_failed_once(autojump_clock: Any) -> None:
    peers = Peers(only=once(3, GONE))
    assert merged(await heard(peers)) == merged(undisturbed(QUESTION))
    assert peers.asked == ["only", "only"]


async def test_whoever_is_late_with_its_first_token_is_overtaken_and_left(autojump_clock: Any) -> None:
    peers = Peers(first=silent(0), second=None)
    assert merged(await heard(peers)) == merged(undisturbed(QUESTION))
    assert peers.asked == ["first", "second"]
    assert peers.scripts["first"].left == 1
    assert trio.current_time() < 16.0


async def test_of_two_that_speak_at_once_one_is_heard(autojump_clock: Any) -> None:
    async def late(place: int) -> None:
        await trio.sleep_until(20.0) if place == 0 else await trio.lowlevel.checkpoint()

    peers = Peers(first=late, second=late)
    assert merged(await heard(peers)) == merged(undisturbed(QUESTION))
    assert peers.asked == ["first", "second"]


async def test_nobody_else_is_asked_once_there_is_a_token(autojump_clock: Any) -> None:
    peers = Peers(first=silent(3), second=None)
    events = await heard(peers)
    assert peers.asked == ["first"]
    [over] = [event for event in events if isinstance(event, Over)]
    assert over.reason == "deadline"
    assert isinstance(events[-1], Finished)
    assert trio.current_time() == pytest.approx(60.0, abs=3.0)


async def test_when_nobody_begins_in_time_that_is_told(autojump_clock: Any) -> None:
    class Mute(Peers):
        @asynccontextmanager
        async def ask(self, peer: PeerId, question: Question) -> AsyncIterator[Answering]:
            self.asked.append(peer)
            await trio.sleep_forever()
            yield

    with pytest.raises(TimedOut):
        await heard(Mute(first=None))
    assert trio.current_time() == pytest.approx(60.0, abs=3.0)


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ((Busy("full"), Busy("full")), Busy),
        ((Busy("full"), NotFound("it")), Busy),
        ((NotFound("it"), NotFound("it")), NotFound),
        ((Denied("no"), NotFound("it")), Denied),
        ((Unavailable("gone"), Unavailable("gone")), Unavailable),
    ],
)
async def test_when_all_fail_it_is_told_why(
    autojump_clock: Any, errors: tuple[CellulerError, CellulerError], expected: type[CellulerError]
) -> None:
    with pytest.raises(expected) as caught:
        await heard(Peers(first=failing(0, errors[0]), second=failing(0, errors[1])))
    assert type(caught.value) is expected
    assert trio.current_time() < 5.0


async def test_whoever_is_full_is_passed_over(autojump_clock: Any) -> None:
    peers = Peers(first=failing(0, Busy("full")), second=None)
    assert merged(await heard(peers)) == merged(undisturbed(QUESTION))


async def test_a_peer_that_has_enough_of_ours_is_passed_over(autojump_clock: Any) -> None:
    async with open_chooser("first") as chooser:
        with ExitStack() as stack:
            for _ in range(48):
                stack.enter_context(chooser.attempt(PeerId("first"), OPENED))
            with pytest.raises(Busy), chooser.attempt(PeerId("first"), OPENED):
                pass
        with chooser.attempt(PeerId("first"), OPENED):
            assert chooser.placement.in_flight("first") == 1


async def test_an_answer_that_has_begun_waits_for_room(autojump_clock: Any) -> None:
    peers = Peers(first=once(3, GONE), second=once(0, Busy("full")))
    assert merged(await heard(peers)) == merged(undisturbed(QUESTION))


async def test_what_is_wrong_with_the_question_is_told_at_once(autojump_clock: Any) -> None:
    peers = Peers(first=failing(0, InvalidSpec("prompt", "is too long")), second=None)
    with pytest.raises(InvalidSpec):
        await heard(peers)
    assert peers.asked == ["first"]


async def test_an_answer_that_was_complete_and_not_told_to_be_is_of_that_length(autojump_clock: Any) -> None:
    full = InvalidSpec("prompt", "holds more tokens than this model takes")
    dead = Peers(first=then(failing(3, GONE), failing(0, GONE)), second=failing(0, full))
    events = await heard(dead)
    [over] = [event for event in events if isinstance(event, Over)]
    assert over.reason == "length"
    assert 0 < over.generated < 12
    assert merged(events)[0][0] == merged(undisturbed(QUESTION))[0][0][: over.generated]


async def test_several_answers_of_the_only_peer_go_on_when_it_comes_back(autojump_clock: Any) -> None:
    question = replace(QUESTION, n=3)
    assert merged(await heard(Peers(only=once(4, GONE)), question)) == merged(undisturbed(question))


async def test_a_peer_that_denies_or_lies_is_left_and_the_liar_penalised(autojump_clock: Any) -> None:
    host = Host()
    peers = Peers(first=failing(0, Denied("no")), second=failing(2, ProtocolViolation("lies")), third=None)
    assert merged(await heard(peers, host=host)) == merged(undisturbed(QUESTION))
    assert host.penalised == ["second"]
    assert peers.asked == ["first", "second", "third"]


async def test_a_text_stop_ends_the_answer_where_it_is_given(autojump_clock: Any) -> None:
    whole = merged(undisturbed(QUESTION))[0][1]
    question = replace(QUESTION, stop=(whole[2:4],))
    peers = Peers(first=None)
    assert merged(await heard(peers, question)) == merged(undisturbed(question))
    assert merged(undisturbed(question))[0][1] == whole[:2]
    assert peers.scripts["first"].stopped == [0]


async def test_whoever_leaves_ends_the_answer_at_the_peer(autojump_clock: Any) -> None:
    peers = Peers(first=silent(2))
    async with open_chooser("first") as chooser:
        talk = Talk(chooser, OPENED, QUESTION, peers.ask)
        async with own_nursery() as nursery:
            nursery.start_soon(talk.run)
            await talk.begun.wait()
    assert peers.scripts["first"].left == 1
    assert chooser.placement.in_flight("first") == 0


async def test_a_user_that_does_not_listen_holds_the_peer_up(autojump_clock: Any) -> None:
    peers = Peers(first=None)
    question = replace(QUESTION, n=16, max_tokens=40)
    async with open_chooser("first") as chooser:
        talk = Talk(chooser, OPENED, question, peers.ask)
        async with own_nursery() as nursery:
            nursery.start_soon(talk.run)
            await talk.begun.wait()
            await trio.sleep(1)
            assert len(talk.told._waiting) < 300
            assert talk.journal.begun is not None
            events = [event async for event in Heard(talk, "", "", talk.journal.begun)]
    assert merged(events) == merged(undisturbed(question))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 1000),
    st.integers(1, 4),
    st.lists(st.text("abcdé", min_size=1, max_size=2), max_size=2),
    st.lists(st.integers(0, 20), min_size=3, max_size=3),
)
def test_whoever_fails_wherever_the_user_hears_the_same(seed: int, n: int, stops: list[str], cuts: list[int]) -> None:
    question = replace(QUESTION, n=n, stop=tuple(stops), sampling=Sampling(seed=seed))
    peers = Peers(a=once(cuts[0], GONE), b=once(cuts[1], Busy("full")), c=once(cuts[2], GONE))
    events = trio.run(heard, peers, question, clock=trio.testing.MockClock(autojump_threshold=0))
    assert merged(events) == merged(undisturbed(question))
    assert sum(isinstance(event, Finished) for event in events) == 1
