"""What asker and server of /celluler/generate/1 say to each other, and what neither takes from the other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import memory_stream_one_way_pair, memory_stream_pair

from celluler.content.digest import Codec, cid_of, digest_of
from celluler.errors import (
    Busy,
    CellulerError,
    CorruptBlock,
    Denied,
    InvalidSpec,
    NotFound,
    PeerViolation,
    ProtocolViolation,
    TimedOut,
    Unavailable,
    WorkerFailed,
)
from celluler.inference.questions import Answerer, Begun, Event, Message, Over, Question, Said
from celluler.inference.sampling import Chosen, Sampling
from celluler_protocols.generation import Ask, Load, Patience, ask, frames, poll, serve_generation, turn_away
from celluler_protocols.generation import messages as words
from celluler_protocols.generation.serving import MAX_BACKLOG, Backlog
from celluler_protocols.inference import Refused
from tests.support.answering import MODEL, Script, events_of, prompt_of

CID = cid_of(MODEL, Codec.MANIFEST)
QUESTION = Question("Once upon", max_tokens=20, sampling=Sampling(seed=3))
LOAD = Load(1, 2, 4)


def busyness() -> dict[Any, Load]:
    return {MODEL: LOAD}


async def with_server(answerer: Answerer, asker: Callable[[trio.abc.Stream], Awaitable[Any]]) -> Any:
    """What the asker returns, once the server has ended in order."""
    ours, theirs = memory_stream_pair()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_generation, theirs, answerer, busyness)
            result = await asker(ours)
            await ours.aclose()
    return result


async def all_of(stream: trio.abc.Stream, question: Question = QUESTION, model: str = CID) -> list[Event]:
    async with ask(stream, model, question) as answering:
        assert answering.begun == Begun(MODEL, prompt_of(question))
        assert answering.load == LOAD or answering.load is None
        return [event async for event in answering]


def said(events: list[Event]) -> tuple[dict[int, tuple[Chosen, ...]], dict[int, str]]:
    """Tokens and text of each answer, however they were cut into pieces."""
    tokens: dict[int, tuple[Chosen, ...]] = {}
    texts: dict[int, str] = {}
    for event in events:
        if isinstance(event, Said):
            tokens[event.choice] = tokens.get(event.choice, ()) + event.tokens
            texts[event.choice] = texts.get(event.choice, "") + event.text
    return tokens, texts


async def pausing(_: int) -> None:
    await trio.sleep(0.01)


QUESTIONS = {
    "a text": QUESTION,
    "tokens": replace(QUESTION, prompt=(4, 5, 70000)),
    "a conversation": replace(QUESTION, prompt=(Message("user", "Hello \ud800"),)),
    "several answers": replace(QUESTION, n=5, sampling=Sampling(seed=9, choice=2)),
    "logprobs": replace(QUESTION, sampling=Sampling(seed=1, logprobs=2)),
    "going on": replace(QUESTION, given=(1, 2, 3)),
    "without a limit": replace(QUESTION, max_tokens=None),
}


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
async def test_what_is_said_comes_as_it_was_said(question: Question) -> None:
    events = await with_server(Script(sizes=(1, 3, 90)), lambda stream: all_of(stream, question))
    undisturbed = list(events_of(question))
    assert said(events) == said(undisturbed)
    ends = [event for event in events if isinstance(event, Over)]
    assert sorted(ends, key=repr) == sorted((one for one in undisturbed if isinstance(one, Over)), key=repr)
    assert events[-1] == undisturbed[-1]


async def test_the_server_is_asked_what_the_asker_asked_but_for_text_stops() -> None:
    server = Script()
    question = replace(QUESTIONS["logprobs"], stop=("\n",), schema=b"{}", timeout_s=2.5)
    await with_server(server, lambda stream: all_of(stream, question))
    assert server.asked == [replace(question, stop=())]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (NotFound("alice/writer"), NotFound),
        (InvalidSpec("prompt", "is too long"), InvalidSpec),
        (Denied("not you"), Denied),
        (Busy("queue is full"), Busy),
        (TimedOut("too slow"), Busy),
        (WorkerFailed("killed by SIGKILL"), Unavailable),
        (CorruptBlock(MODEL, peer="another"), Unavailable),
        (ProtocolViolation("a third peer's"), Unavailable),
    ],
)
@pytest.mark.parametrize("after", [0, 3])
async def test_what_the_answerer_raises_reaches_whoever_asks(
    raised: CellulerError, expected: type[CellulerError], after: int
) -> None:
    async def fails(place: int) -> None:
        if place == after:
            raise raised

    async def asks(stream: trio.abc.Stream) -> None:
        with pytest.raises(expected) as caught:
            await all_of(stream)
        assert type(caught.value) is expected

    await with_server(Script(before=fails), asks)


async def test_a_stop_reaches_the_server() -> None:
    server = Script()

    async def asks(stream: trio.abc.Stream) -> None:
        async with ask(stream, CID, replace(QUESTION, n=2)) as answering:
            answering.stop(1)
            async for _ in answering:
                pass

    server.before = pausing
    await with_server(server, asks)
    assert server.stopped == [1]


async def test_whoever_leaves_ends_the_answer_at_the_server() -> None:
    server = Script()

    async def stuck(place: int) -> None:
        if place == 2:
            await trio.sleep_forever()

    server.before = stuck

    async def leaves(stream: trio.abc.Stream) -> None:
        async with ask(stream, CID, QUESTION) as answering:
            async for _ in answering:
                break

    await with_server(server, leaves)  # ends in order although the answer never would
    assert server.left == 1


async def test_a_poll_tells_the_load() -> None:
    told = await with_server(Script(), poll)
    assert told.models == (words.LoadOf(MODEL, LOAD),)


async def test_who_is_turned_away_is_told_so() -> None:
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turn_away, theirs)
        with pytest.raises(Busy):
            await all_of(ours)


# --- waiting ---------------------------------------------------------------------------------------------------------


async def test_a_server_at_work_says_so_and_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    async def slow(place: int) -> None:
        await trio.sleep(50 if place == 1 else 0)

    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_generation, theirs, Script(before=slow), busyness)
        assert said(await all_of(ours)) == said(list(events_of(QUESTION)))


async def test_a_server_that_stalls_between_tokens_is_left(autojump_clock: trio.testing.MockClock) -> None:
    async def stalls(place: int) -> None:
        await trio.sleep(100 if place == 3 else 0)

    async def asks(stream: trio.abc.Stream) -> None:
        async with ask(stream, CID, QUESTION, Patience(stall_s=8.0)) as answering:
            async for _ in answering:
                pass

    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_generation, theirs, Script(before=stalls), busyness)
        with pytest.raises(TimedOut):
            await asks(ours)
    assert trio.current_time() < 9.0


async def test_a_slow_consumer_is_not_held_against_the_server(autojump_clock: trio.testing.MockClock) -> None:
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_generation, theirs, Script(), busyness)
        async with ask(ours, CID, QUESTION, Patience(stall_s=1.0)) as answering:
            count = 0
            async for _ in answering:
                await trio.sleep(3)
                count += 1
    assert count > 2


async def test_a_silent_server_is_left(autojump_clock: trio.testing.MockClock) -> None:
    ours, _theirs = memory_stream_pair()
    with pytest.raises(TimedOut):
        await all_of(ours)
    assert trio.current_time() < 20


async def test_a_silent_asker_is_left(autojump_clock: trio.testing.MockClock) -> None:
    ours, theirs = memory_stream_pair()
    await ours.send_all(Ask(CID, QUESTION).opening()[:10])
    await serve_generation(theirs, Script(), busyness)
    assert await ours.receive_some() == b""


class _Clogged(trio.abc.SendStream):
    """Takes nothing, for ever."""

    async def send_all(self, data: Any) -> None:
        await trio.sleep_forever()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.sleep_forever()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_whoever_reads_nothing_is_left_and_its_answer_ended(autojump_clock: trio.testing.MockClock) -> None:
    server = Script(before=pausing)
    send, receive = memory_stream_one_way_pair()
    await send.send_all(Ask(CID, QUESTION).opening())
    with pytest.raises(TimedOut):
        await serve_generation(trio.StapledStream(_Clogged(), receive), server, busyness)
    assert trio.current_time() < 30
    assert server.left == 1


def test_what_waits_to_be_read_is_bounded() -> None:
    backlog = Backlog()
    one = words.Said(0, tuple(words.Token(n, "", None, ()) for n in range(64)))
    for _ in range(MAX_BACKLOG // 64):
        backlog.put(one)
    with pytest.raises(TimedOut):
        backlog.put(one)
    assert len(backlog.take()) <= MAX_BACKLOG // 64 + 1


def test_tokens_that_wait_leave_together() -> None:
    backlog = Backlog()
    tokens = [words.Token(n, "", None, ()) for n in range(100)]
    for token in tokens:
        backlog.put(words.Said(0, (token,)))
    assert [len(told.tokens) for told in backlog.take() if isinstance(told, words.Said)] == [64, 36]


# --- what is no answer -----------------------------------------------------------------------------------------------

BEGUN = words.Begun(MODEL, words.pack_tokens("prompt", prompt_of(QUESTION)), LOAD)
TOKEN = words.Token(7, "h", None, ())
ONE = words.Said(0, (TOKEN,))
END = words.Over(0, 0, 2)
DONE = words.Finished(9, 2, 0, b"", LOAD)
LOGPROBS = replace(QUESTION, sampling=Sampling(logprobs=1))

NO_ANSWERS: dict[str, tuple[Question, list[Any]]] = {
    "a token before it has begun": (QUESTION, [ONE]),
    "an end before it has begun": (QUESTION, [DONE]),
    "begun twice": (QUESTION, [BEGUN, BEGUN]),
    "another model": (QUESTION, [replace(BEGUN, model=digest_of(b"another"))]),
    "another prompt": (replace(QUESTION, prompt=(1, 2)), [BEGUN]),
    "tokens that are not whole": (QUESTION, [replace(BEGUN, prompt=bytes(7))]),
    "an answer there is not": (QUESTION, [BEGUN, replace(ONE, choice=1)]),
    "the end of an answer there is not": (QUESTION, [BEGUN, replace(END, choice=3)]),
    "a token behind the end": (QUESTION, [BEGUN, END, ONE]),
    "two ends": (QUESTION, [BEGUN, END, END]),
    "finished before all are over": (replace(QUESTION, n=2), [BEGUN, END, DONE]),
    "something behind all": (QUESTION, [BEGUN, END, DONE, words.Alive(LOAD)]),
    "more tokens than asked for": (QUESTION, [BEGUN, words.Said(0, (TOKEN,) * 21)]),
    "more tokens than asked for, with those given": (
        replace(QUESTION, given=(1,) * 19),
        [BEGUN, ONE, ONE],
    ),
    "more counted than asked for": (QUESTION, [BEGUN, replace(END, generated=21)]),
    "fewer counted than told": (QUESTION, [BEGUN, ONE, ONE, replace(END, generated=1)]),
    "fewer counted than given": (replace(QUESTION, given=(1, 2, 3)), [BEGUN, END]),
    "sums that do not add up": (QUESTION, [BEGUN, END, replace(DONE, generated=3)]),
    "more shared than read": (QUESTION, [BEGUN, END, replace(DONE, shared=10)]),
    "a reason nobody knows": (QUESTION, [BEGUN, replace(END, reason=5)]),
    "logprobs nobody asked for": (QUESTION, [BEGUN, words.Said(0, (replace(TOKEN, logprob=-1.0),))]),
    "no logprobs": (LOGPROBS, [BEGUN, ONE]),
    "more likely tokens than asked for": (
        LOGPROBS,
        [BEGUN, words.Said(0, (replace(TOKEN, logprob=-1.0, top=(words.Likely(1, -1.0),) * 2),))],
    ),
    "a probability above one": (LOGPROBS, [BEGUN, words.Said(0, (replace(TOKEN, logprob=0.5),))]),
    "a code nobody knows": (QUESTION, [Refused(5, "")]),
    "a question": (QUESTION, [words.generate_of(CID, QUESTION)]),
    "loads": (QUESTION, [words.Loads(())]),
}


@pytest.mark.parametrize(("question", "told"), NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_what_is_no_answer_to_the_question_is_a_violation(question: Question, told: list[Any]) -> None:
    half = Ask(CID, question)
    half.receive(frames().encode(words.Alive(LOAD)))
    with pytest.raises(PeerViolation):
        half.receive(b"".join(map(frames().encode, told)))


def test_an_answer_may_be_refused_at_any_moment() -> None:
    for before in ([], [BEGUN], [BEGUN, ONE], [BEGUN, END]):
        half = Ask(CID, QUESTION)
        with pytest.raises(Busy):
            half.receive(b"".join(map(frames().encode, [*before, Refused(2, "no")])))


def test_a_stream_that_ends_before_all_is_told_is_unavailable_and_no_lie() -> None:
    with pytest.raises(Unavailable):
        Ask(CID, QUESTION).receive(b"")


@pytest.mark.parametrize("changed", [{"prompt": (1 << 32,)}, {"prompt": (-1,)}, {"max_tokens": 1 << 40}])
def test_a_question_that_no_server_could_take_is_not_sent(changed: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec):
        Ask(CID, replace(QUESTION, **changed))


HOSTILE = {
    "random bytes": b"\xff" * 64,
    "a frame over the limit": (1 << 31).to_bytes(4, "big"),
    "an answer": frames().encode(BEGUN),
    "a stop of nothing": frames().encode(words.Stop(0)),
    "two questions": Ask(CID, QUESTION).opening() * 2,
    "half a question": Ask(CID, QUESTION).opening()[:-1],
    "half a token": frames().encode(replace(words.generate_of(CID, QUESTION), given=b"abc")),
    "another question in the middle": Ask(CID, QUESTION).opening() + frames().encode(words.Poll()),
}


@pytest.mark.parametrize("sent", HOSTILE.values(), ids=HOSTILE)
async def test_a_server_ends_the_stream_of_a_peer_that_sends(sent: bytes) -> None:
    ours, theirs = memory_stream_pair()
    await ours.send_all(sent)
    await ours.send_eof()
    with trio.fail_after(5), pytest.raises(ProtocolViolation):
        await serve_generation(theirs, Script(), busyness)


@pytest.mark.parametrize(
    "request_",
    [
        replace(words.generate_of(CID, QUESTION), model="../../etc"),
        replace(words.generate_of(CID, QUESTION), prompt=words.OfTurns((words.Turn("wizard", "hi"),))),
        replace(words.generate_of(CID, QUESTION), drawing=words.Drawing(9.0, 1.0, 0, 0, 0, None)),
        replace(words.generate_of(CID, QUESTION), given=bytes(4 * 20)),
        replace(words.generate_of(CID, QUESTION), n=2, given=bytes(4)),
    ],
)
async def test_a_question_that_makes_no_sense_is_refused_before_the_answerer_sees_it(request_: words.Generate) -> None:
    server = Script()

    async def send_raw(stream: trio.abc.Stream) -> Any:
        await stream.send_all(frames().encode(request_))
        heard = frames()
        while not (told := heard.feed(bytes(await stream.receive_some()))):
            pass
        return told

    [refused] = await with_server(server, send_raw)
    assert isinstance(refused, Refused)
    assert refused.code == 1
    assert not server.asked


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=1, max_size=100), st.integers(0, 2))
def test_random_bytes_are_a_violation_or_an_early_end(data: bytes, begun: int) -> None:
    half = Ask(CID, QUESTION)
    half.receive(b"".join(map(frames().encode, [BEGUN, ONE][:begun])) or frames().encode(words.Alive(LOAD)))
    with pytest.raises((PeerViolation, Unavailable)):
        assert [half.receive(chunk) for chunk in (data, b"")] == []


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 4), st.lists(st.integers(1, 70), min_size=1, max_size=4), st.integers(1, 40)
)
def test_however_it_is_cut_into_chunks_the_same_is_heard(seed: int, n: int, sizes: list[int], cut: int) -> None:
    question = replace(QUESTION, n=n, sampling=Sampling(seed=seed))
    told: list[Any] = [BEGUN]
    for event in events_of(question, sizes):
        match event:
            case Said():
                told += words.said_words(event)
            case Over():
                told.append(words.over_words(event))
            case _:
                told.append(words.finished_words(event, LOAD))
    data = b"".join(map(frames().encode, told))
    whole, half = Ask(CID, question), Ask(CID, question)
    pieces = [one for at in range(0, len(data), cut) for one in half.receive(data[at : at + cut])]
    assert pieces == whole.receive(data)
    assert half.finished
