"""What either side of a stage may say, and what is made of it when it says something else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import numpy as np
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import memory_stream_pair

from celluler.errors import Busy, CellulerError, Denied, InvalidSpec, ProtocolViolation, Unavailable, WorkerFailed
from celluler.inference.hidden import encode_hidden
from celluler.inference.questions import Prompt
from celluler.inference.sampling import GREEDY, Chosen, Sampling
from celluler_protocols.inference import Refusal, refuse
from celluler_protocols.stages import Answer, Exchange, Widths, open_link
from celluler_protocols.stages_messages import (
    DRAW,
    HIDDEN,
    KEEP,
    Begin,
    Drawn,
    End,
    Failed,
    Forward,
    Held,
    Hidden,
    OpenStage,
    StageReady,
    frames,
    token_words,
)
from celluler_protocols.stages_serving import serve_stage, turn_away

WIDTH = 8
REQUEST = OpenStage(bytes(32), 1, 3, 4, 64, "float32")
WIDTHS = Widths(WIDTH, WIDTH, 100)
READY = StageReady(4, 10, 20, True)
ONE = encode_hidden("float32", np.ones((1, WIDTH), np.float32))


class Doubling:
    """A stage that doubles, and whose beginnings, ends and failures are noted."""

    ready = READY

    def __init__(self) -> None:
        self.noted: list[tuple[str, int]] = []
        self.fails: CellulerError | None = None
        self.held = trio.Event()
        self.held.set()

    async def read(self, prompt: Prompt) -> tuple[int, ...]:
        if prompt == "wrong":
            raise InvalidSpec("prompt", "is wrong")
        return tuple(map(len, prompt.split())) if isinstance(prompt, str) else (len(prompt),)

    async def begin(self, sequence: int, sampling: Sampling | None, context: tuple[int, ...]) -> None:
        self.noted.append(("begin", sequence))

    async def forward(self, message: Forward) -> Answer:
        await self.held.wait()
        if self.fails is not None:
            raise self.fails
        if message.want == KEEP:
            return None
        if message.want == DRAW:
            return Chosen(message.place, text="é")
        floats = np.frombuffer(message.data, dtype="<f4").reshape(message.count, WIDTH)
        return encode_hidden("float32", floats * np.float32(2))

    async def end(self, sequence: int) -> None:
        self.noted.append(("end", sequence))


async def with_stage(stage: Doubling, client: Callable[[trio.abc.Stream], Any], opening: Any = None) -> Any:
    @asynccontextmanager
    async def opener(request: OpenStage) -> AsyncIterator[Doubling]:
        if opening is not None:
            raise opening
        yield stage

    ours, theirs = memory_stream_pair()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_stage, theirs, opener)
            told = await client(ours)
            await ours.aclose()
    return told


def forward(sequence: int = 0, start: int = 0, count: int = 1, want: int = HIDDEN, place: int = 0) -> Forward:
    return Forward(sequence, start, count, want, place, ONE * count)


async def test_sequences_go_through_side_by_side_and_each_gets_its_own() -> None:
    stage = Doubling()

    async def client(stream: trio.abc.Stream) -> None:
        heard: dict[int, Any] = {}
        async with open_link(stream, REQUEST, WIDTHS) as link, trio.open_nursery() as nursery:
            assert link.ready == READY
            assert await link.read("a bb ccc") == (1, 2, 3)
            with pytest.raises(InvalidSpec, match="is wrong"):
                await link.read("wrong")

            async def one(sequence: int) -> None:
                await link.begin(sequence, GREEDY, (1, 2))
                assert await link.forward(forward(sequence, 0, 3, KEEP)) is None
                heard[sequence] = (
                    await link.forward(forward(sequence, 3)),
                    await link.forward(forward(sequence, 4, want=DRAW, place=sequence)),
                )
                await link.end(sequence)

            for sequence in range(4):
                nursery.start_soon(one, sequence)
        doubled = encode_hidden("float32", np.full((1, WIDTH), 2, np.float32))
        assert heard == {at: (doubled, Chosen(at, text="é")) for at in range(4)}

    await with_stage(stage, client)
    assert sorted(stage.noted) == sorted([*(("begin", at) for at in range(4)), *(("end", at) for at in range(4))])


async def test_a_sequence_that_fails_fails_alone_and_may_begin_anew() -> None:
    stage = Doubling()

    async def client(stream: trio.abc.Stream) -> None:
        async with open_link(stream, REQUEST, WIDTHS) as link:
            with pytest.raises(InvalidSpec, match="not begun"):
                await link.forward(forward())
            await link.begin(0, None, ())
            stage.fails = WorkerFailed("it broke")
            for _ in range(2):
                with pytest.raises(Unavailable, match="it broke"):
                    await link.forward(forward())
            stage.fails = None
            with pytest.raises(Unavailable, match="it broke"):
                await link.forward(forward())
            await link.begin(0, None, ())
            assert await link.forward(forward()) is not None

    await with_stage(stage, client)


async def test_whoever_leaves_in_the_middle_may_use_the_number_again() -> None:
    stage = Doubling()

    async def client(stream: trio.abc.Stream) -> None:
        async with open_link(stream, REQUEST, WIDTHS) as link:
            await link.begin(1, None, ())
            stage.held = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.forward, forward(1, 0, 7))
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            await link.begin(1, None, ())
            async with trio.open_nursery() as nursery:

                async def again() -> None:
                    assert await link.forward(forward(1, 0, 2)) is not None

                nursery.start_soon(again)
                await trio.testing.wait_all_tasks_blocked()
                stage.held.set()

    await with_stage(stage, client)


@pytest.mark.parametrize(
    ("opening", "raised"),
    [(Busy("full"), Busy), (Denied("no"), Denied), (InvalidSpec("stages", "cannot be split"), InvalidSpec)],
)
async def test_a_refusal_is_what_it_stands_for(opening: CellulerError, raised: type[CellulerError]) -> None:
    async def client(stream: trio.abc.Stream) -> None:
        with pytest.raises(raised, match=str(opening).rpartition(": ")[2]):
            async with open_link(stream, REQUEST, WIDTHS):
                raise AssertionError("it was refused")

    await with_stage(Doubling(), client, opening)


async def test_too_many_are_turned_away() -> None:
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turn_away, theirs)
        with pytest.raises(Busy, match="too many"):
            async with open_link(ours, REQUEST, WIDTHS):
                raise AssertionError("it was refused")


async def test_a_stream_that_ends_fails_whoever_waits_and_whoever_asks_later() -> None:
    ours, theirs = memory_stream_pair()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:

            async def leave() -> None:
                words, heard = frames(), 0
                while heard < 3:
                    for message in words.feed(bytes(await theirs.receive_some())):
                        heard += 1
                        if isinstance(message, OpenStage):
                            await theirs.send_all(words.encode(READY))
                await theirs.aclose()

            nursery.start_soon(leave)
            async with open_link(ours, REQUEST, WIDTHS) as link:
                await link.begin(0, None, ())
                for _ in range(2):
                    with pytest.raises(Unavailable, match="ended the stream"):
                        await link.forward(forward())


DRAWING = Sampling(logprobs=1)
WRONG = [
    StageReady(4, 1, 1, True),
    refuse(Refusal.BUSY, ""),
    Held(0, 1),
    Held(1, 1),
    Hidden(0, 2, ONE),
    Hidden(0, 1, ONE[:-4]),
    Hidden(0, 1, b"\xff" * len(ONE)),
    Drawn(0, 1, token_words(Chosen(1))),
    Failed(0, 9, ""),
    Begin(0, None, b""),
    OpenStage(bytes(32), 0, 1, 1, 1, "float32"),
]


@pytest.mark.parametrize("message", WRONG, ids=lambda one: type(one).__name__)
def test_what_no_honest_stage_says_is_a_violation(message: Any) -> None:
    exchange = Exchange(REQUEST, WIDTHS)
    exchange.receive(frames().encode(READY))
    exchange.begin(0, DRAWING, ())
    exchange.forward(forward())
    with pytest.raises(ProtocolViolation):
        exchange.receive(frames().encode(message))


@pytest.mark.parametrize(
    "chosen",
    [
        Chosen(1),
        Chosen(100, -1.0),
        Chosen(1, 0.5),
        Chosen(1, -1.0, ((1, -1.0), (2, -2.0))),
        Chosen(1, -1.0, ((100, -1.0),)),
    ],
)
def test_a_token_that_cannot_be_is_a_violation(chosen: Chosen) -> None:
    exchange = Exchange(REQUEST, Widths(WIDTH, 0, 100))
    exchange.receive(frames().encode(READY))
    exchange.begin(0, DRAWING, ())
    exchange.forward(forward(want=DRAW))
    with pytest.raises(ProtocolViolation):
        exchange.receive(frames().encode(Drawn(0, 1, token_words(chosen))))


def test_more_room_than_was_asked_for_is_a_violation() -> None:
    with pytest.raises(ProtocolViolation):
        Exchange(REQUEST, WIDTHS).receive(frames().encode(StageReady(5, 1, 1, True)))


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=80))
def test_garbage_raises_violations_alone(chunk: bytes) -> None:
    exchange = Exchange(REQUEST, WIDTHS)
    exchange.receive(frames().encode(READY))
    with pytest.raises((ProtocolViolation, AssertionError)) as raised:
        assert exchange.receive(chunk)
    assert raised.type is ProtocolViolation or not exchange._frames.idle


@pytest.mark.parametrize(
    "words",
    [
        (forward(), forward()),
        (forward(sequence=9),),
        (Forward(0, 0, 1, 3, 0, ONE),),
        (READY,),
        (OpenStage(bytes(32), 0, 1, 1, 1, "float32"),),
        (Begin(0, None, b"123"),),
        tuple([Begin(0, None, b""), forward()] + [End(0)] * 70),
    ],
)
async def test_what_no_honest_asker_says_is_a_violation(words: tuple[Any, ...]) -> None:
    stage = Doubling()
    stage.held = trio.Event()

    async def client(stream: trio.abc.Stream) -> None:
        theirs = frames()
        await stream.send_all(theirs.encode(REQUEST) + b"".join(map(theirs.encode, words)))
        with suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass

    with pytest.raises(ExceptionGroup) as raised:
        await with_stage(stage, client)
    assert raised.group_contains(ProtocolViolation)
