from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import memory_stream_pair

from celluler.content.digest import Codec, cid_of, digest_of
from celluler.errors import (
    Busy,
    CellulerError,
    CorruptBlock,
    Denied,
    InvalidSpec,
    LocalError,
    NotFound,
    ProtocolViolation,
    TimedOut,
    Unavailable,
    WorkerFailed,
)
from celluler_protocols.inference import (
    MAX_DATA_BYTES,
    Ask,
    Predict,
    Predicted,
    PredictReply,
    Refused,
    exchange,
    frames,
    predict,
    serve_inference,
    turn_away,
)

MODEL = digest_of(b"a manifest")
REQUEST = Predict("alice/digits", "raw", "float32", (2, 3), bytes(24))
ANSWER = Predicted("float32", (2, 10), bytes(80), MODEL, 3)


async def answers(request: Predict) -> PredictReply:
    return replace(ANSWER, shape=(request.shape[0], 10), data=bytes(40 * request.shape[0]))


async def with_server(
    predictor: Callable[[Predict], Awaitable[PredictReply]], client: Callable[[trio.abc.Stream], Awaitable[Any]]
) -> Any:
    """What the client returns, once the server has ended in order."""
    ours, theirs = memory_stream_pair()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_inference, theirs, predictor)
            result = await client(ours)
            await ours.aclose()
    return result


async def test_a_prediction_comes_back() -> None:
    assert await with_server(answers, lambda stream: predict(stream, REQUEST)) == ANSWER


async def test_a_stream_carries_one_exchange_after_another() -> None:
    async def ask_thrice(stream: trio.abc.Stream) -> list[Predicted]:
        return [await exchange(stream, replace(REQUEST, shape=(n, 3), data=bytes(12 * n))) for n in (1, 2, 3)]

    assert [answer.shape[0] for answer in await with_server(answers, ask_thrice)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (NotFound("alice/digits"), NotFound),
        (InvalidSpec("input", "has another shape"), InvalidSpec),
        (LocalError("no"), InvalidSpec),
        (Denied("not you"), Denied),
        (Busy("queue is full"), Busy),
        (TimedOut("too slow"), Busy),
        (WorkerFailed("killed by SIGKILL"), Unavailable),
        (CorruptBlock(MODEL, peer="another"), Unavailable),
        (Unavailable("é" * 2000), Unavailable),
    ],
)
async def test_what_the_predictor_raises_reaches_the_requester(
    raised: CellulerError, expected: type[CellulerError]
) -> None:
    async def refuses(_: Predict) -> PredictReply:
        raise raised

    async def ask_twice(stream: trio.abc.Stream) -> None:
        for _ in range(2):  # the stream is good for another request
            with pytest.raises(expected) as caught:
                await exchange(stream, REQUEST)
            assert type(caught.value) is expected

    await with_server(refuses, ask_twice)


async def test_a_model_that_is_neither_name_nor_cid_is_refused_before_the_predictor_sees_it() -> None:
    async def unreachable(_: Predict) -> PredictReply:
        raise AssertionError

    async def send_raw(stream: trio.abc.Stream) -> Any:
        words = frames()
        await stream.send_all(words.encode(replace(REQUEST, model="../../etc")))
        while not (messages := words.feed(await stream.receive_some())):
            pass
        return messages

    [refused] = await with_server(unreachable, send_raw)
    assert isinstance(refused, Refused)
    assert refused.code == 1


@pytest.mark.parametrize(
    "request_",
    [
        replace(REQUEST, model="digits"),
        replace(REQUEST, dtype="float64", shape=(3,)),
        replace(REQUEST, shape=(2, 4)),
        replace(REQUEST, shape=()),
    ],
)
async def test_a_request_that_no_server_could_take_is_not_sent(request_: Predict) -> None:
    ours, theirs = memory_stream_pair()
    with pytest.raises(LocalError):
        await predict(ours, request_)
    assert await theirs.receive_some() == b""


def test_an_answer_by_another_model_than_the_cid_asked_for_is_a_violation() -> None:
    asked = replace(REQUEST, model=cid_of(MODEL, Codec.MANIFEST))
    assert Ask(asked).receive(frames().encode(ANSWER)) == ANSWER
    with pytest.raises(ProtocolViolation, match="another model"):
        Ask(asked).receive(frames().encode(replace(ANSWER, model=digest_of(b"another"))))


@pytest.mark.parametrize(
    "answer",
    [
        replace(ANSWER, shape=(3, 10), data=bytes(120)),
        replace(ANSWER, shape=(2, 11)),
        replace(ANSWER, dtype="object"),
        Refused(5, "unknown code"),
        REQUEST,
    ],
)
def test_what_is_no_answer_to_the_request_is_a_violation(answer: Any) -> None:
    with pytest.raises(ProtocolViolation):
        Ask(REQUEST).receive(frames().encode(answer))


def test_a_server_that_ends_the_stream_is_unavailable_and_no_liar() -> None:
    with pytest.raises(Unavailable):
        Ask(REQUEST).receive(b"")


def test_two_answers_at_once_are_a_violation() -> None:
    with pytest.raises(ProtocolViolation):
        Ask(REQUEST).receive(frames().encode(ANSWER) * 2)
    with pytest.raises(ProtocolViolation):
        Ask(REQUEST).receive(frames().encode(ANSWER) + b"\0")


HOSTILE = {
    "random bytes": b"\xff" * 64,
    "a frame over the limit": (1 << 31).to_bytes(4, "big"),
    "an answer instead of a request": frames().encode(ANSWER),
    "a dtype nobody knows": frames().encode(replace(REQUEST, dtype="pickle")),
    "bytes that are not its shape": frames().encode(replace(REQUEST, shape=(2, 4))),
    "a shape whose product overflows": frames().encode(replace(REQUEST, shape=(1 << 31,) * 8)),
    "two requests at once": frames().encode(REQUEST) * 2,
    "half a request": frames().encode(REQUEST)[:-1],
}


@pytest.mark.parametrize("sent", HOSTILE.values(), ids=HOSTILE)
async def test_a_server_ends_the_stream_of_a_peer_that_sends(sent: bytes) -> None:
    ours, theirs = memory_stream_pair()
    await ours.send_all(sent)
    await ours.send_eof()
    with trio.fail_after(5), pytest.raises(ProtocolViolation):
        await serve_inference(theirs, answers)
    assert await ours.receive_some() == b""


async def test_an_answer_over_the_limit_is_refused() -> None:
    async def huge(_: Predict) -> PredictReply:
        return replace(ANSWER, data=bytes(MAX_DATA_BYTES + 1))

    async def ask(stream: trio.abc.Stream) -> None:
        with pytest.raises(InvalidSpec, match="limit"):
            await predict(stream, REQUEST)

    await with_server(huge, ask)


async def test_a_requester_for_whom_there_is_no_room_is_told_so() -> None:
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turn_away, theirs)
        with pytest.raises(Busy):
            await predict(ours, REQUEST)


async def test_a_silent_requester_is_left(autojump_clock: trio.testing.MockClock) -> None:
    ours, theirs = memory_stream_pair()
    await ours.send_all(frames().encode(REQUEST)[:10])
    await serve_inference(theirs, answers)
    assert await ours.receive_some() == b""


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=1, max_size=100))
def test_random_bytes_are_a_violation_or_an_early_end(data: bytes) -> None:
    ask = Ask(REQUEST)
    with pytest.raises((ProtocolViolation, Unavailable)):
        assert [ask.receive(chunk) for chunk in (data, b"")] == []
