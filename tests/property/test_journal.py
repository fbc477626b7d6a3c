"""Whoever fails wherever: the user hears what an undisturbed answer says, once."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.content.digest import digest_of
from celluler.errors import ProtocolViolation, Unavailable
from celluler.inference.journal import Journal, Leg
from celluler.inference.questions import Begun, Event, Finished, Over, Question, Said
from celluler.inference.sampling import Sampling
from tests.support.answering import MODEL, chosen_of, events_of, prompt_of, token_of

LETTERS = "abcdefghié"
QUESTIONS = st.builds(
    lambda seed, choice, n, stops, most, first: Question(
        "Once upon",
        max_tokens=most,
        sampling=Sampling(seed=seed, choice=choice),
        n=1 if first else n,
        stop=tuple(stops),
        given=tuple(token_of(Question("x", sampling=Sampling(seed=seed, choice=choice)), 0, at) for at in range(first)),
    ),
    st.integers(0, 1000),
    st.integers(0, 2),
    st.integers(1, 4),
    st.lists(st.text(LETTERS, min_size=1, max_size=3), max_size=3),
    st.none() | st.integers(3, 30),
    st.integers(0, 2),
)
SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=3)
NOW, DEADLINE = 10.0, 310.0


def answered(question: Question, sizes: list[int], cuts: list[int]) -> list[Event]:
    """All that the user hears when attempt after attempt fails behind so many events, and then one does not."""
    journal, cut = Journal(question, DEADLINE), iter(cuts)
    heard: list[Event] = []
    waiting = list(journal.left(NOW))
    while waiting:
        leg = waiting.pop()
        begins = next(cut, None)
        if begins == 0:  # gone before it has begun
            waiting += journal.left(NOW, leg)
            continue
        journal.begin(Begun(MODEL, prompt_of(leg.question)))
        for event in islice(events_of(leg.question, sizes), begins and begins - 1):
            heard += journal.take(leg, event, NOW)
        waiting += journal.left(NOW, leg)
    assert journal.over
    return heard + list(journal.close()) + list(journal.close())


def undisturbed(question: Question) -> dict[int, tuple[list[int], str, str, int]]:
    """What each answer is: tokens, text, reason, and tokens counted. Found without a journal."""
    found = {}
    for choice in range(question.n):
        tokens, text, reason = [], "", "length"
        for place in range(len(question.given), question.max_tokens or 40):
            if token_of(question, choice, place) == 5:
                reason = "stop"
                break
            chosen = chosen_of(question, choice, place)
            tokens.append(chosen.token)
            text += chosen.text
            at = [text.find(stop) for stop in question.stop if stop in text]
            if at:
                text, reason = text[: min(at)], "stopped"
                break
        counted = len(question.given) + len(tokens) + (reason == "stop")
        found[choice] = (tokens, text, "stop" if reason == "stopped" else reason, counted)
    return found


def told(question: Question, heard: list[Event]) -> dict[int, tuple[list[int], str, str, int]]:
    found = {}
    for choice in range(question.n):
        said = [event for event in heard if isinstance(event, Said) and event.choice == choice]
        [over] = [event for event in heard if isinstance(event, Over) and event.choice == choice]
        assert all(heard.index(event) < heard.index(over) for event in said)
        tokens = [one.token for event in said for one in event.tokens]
        found[choice] = (tokens, "".join(event.text for event in said), over.reason, over.generated)
    return found


@settings(max_examples=150, deadline=None)
@given(QUESTIONS, SIZES, st.lists(st.integers(0, 25), max_size=8))
def test_whatever_fails_wherever_the_same_is_heard(question: Question, sizes: list[int], cuts: list[int]) -> None:
    heard = answered(question, sizes, cuts)
    expected = undisturbed(question)
    assert told(question, heard) == expected
    [finished] = [event for event in heard if isinstance(event, Finished)]
    assert heard[-1] == finished
    assert (finished.prompt, finished.generated) == (9, sum(one[3] for one in expected.values()))


@settings(max_examples=50, deadline=None)
@given(QUESTIONS, SIZES, st.integers(0, 30))
def test_nobody_is_asked_for_what_was_told(question: Question, sizes: list[int], cut: int) -> None:
    journal = Journal(question, DEADLINE)
    [whole] = journal.left(NOW)
    journal.begin(Begun(MODEL, prompt_of(question)))
    heard = [one for event in islice(events_of(question, sizes), cut) for one in journal.take(whole, event, NOW)]
    over = {event.choice for event in heard if isinstance(event, Over)}
    legs = journal.left(NOW + 100, whole)
    assert sorted(choice for leg in legs for choice in leg.choices) == sorted(set(range(question.n)) - over)
    for leg in legs:
        assert leg.question.prompt == prompt_of(question)
        assert leg.question.stop == ()
        assert leg.question.timeout_s == pytest.approx(200.0)
        if len(leg.choices) == 1:
            [choice] = leg.choices
            said = [event for event in heard if isinstance(event, Said) and event.choice == choice]
            known = [*question.given, *(one.token for event in said for one in event.tokens)]
            assert list(leg.question.given) == known
            assert leg.question.sampling.choice == question.sampling.choice + choice
        else:
            assert not any(isinstance(event, Said) for event in heard)


QUESTION = Question("Once upon", max_tokens=30, sampling=Sampling(seed=7), n=2)


def begun(question: Question = QUESTION) -> tuple[Journal, Leg]:
    journal = Journal(question, DEADLINE)
    [leg] = journal.left(NOW)
    assert journal.begin(Begun(MODEL, prompt_of(question)))
    return journal, leg


def test_who_begins_from_something_else_is_not_listened_to() -> None:
    journal, _ = begun()
    assert not journal.begin(Begun(MODEL, prompt_of(QUESTION)))
    for other in (Begun(MODEL, (1,)), Begun(digest_of(b"another"), prompt_of(QUESTION))):
        with pytest.raises(ProtocolViolation):
            journal.begin(other)


@pytest.mark.parametrize("reason", ["error", "cancelled", "deadline"])
def test_an_answer_that_ended_as_none_does_is_gone_on_with(reason: str) -> None:
    journal, leg = begun()
    with pytest.raises(Unavailable, match=reason):
        journal.take(leg, Over(0, reason, 0), NOW)
    assert journal.left(NOW, leg)[0].choices == (0, 1)


def test_a_deadline_that_has_come_is_one() -> None:
    journal, leg = begun()
    assert journal.take(leg, Over(0, "deadline", 0), DEADLINE - 0.5) == (Over(0, "deadline", 0),)
    assert [one.choices for one in journal.left(DEADLINE, leg)] == [(1,)]
    assert journal.expire() == (Over(1, "deadline", 0),)
    assert journal.over


def test_what_the_user_stops_is_over_and_unwanted() -> None:
    journal, leg = begun()
    assert journal.stop(1) == (Over(1, "stop", 0),)
    assert journal.stop(1) == journal.stop(9) == ()
    assert journal.unwanted(leg) == (1,)
    assert journal.take(leg, Said(1, "x", (chosen_of(QUESTION, 1, 0),)), NOW) == ()
    assert journal.left(NOW, leg) == (Leg(replace(QUESTION, prompt=prompt_of(QUESTION), n=1, stop=()), (0,)),)


def test_text_that_might_have_become_a_stop_is_told_when_the_time_is_up() -> None:
    question = replace(QUESTION, n=1, stop=("ab",))
    journal, leg = begun(question)
    first = replace(chosen_of(question, 0, 0), text="a")
    assert journal.take(leg, Said(0, "a", (first,)), NOW) == (Said(0, "", (first,)),)
    assert journal.expire() == (Said(0, "a", ()), Over(0, "deadline", 1))


def test_shared_tokens_and_a_receipt_of_one_server_are_passed_on() -> None:
    journal, leg = begun(replace(QUESTION, n=1))
    journal.take(leg, Over(0, "stop", 1), NOW)
    journal.take(leg, Finished(9, 1, 4, b"signed"), NOW)
    assert journal.close() == (Finished(9, 1, 4, b"signed"),)
