"""The stage's half of /celluler/stage/1: words from one asker, in the order in which they came of each sequence."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Protocol

import trio

from celluler.errors import CellulerError, LocalError, ProtocolViolation, TimedOut
from celluler.inference.questions import Prompt
from celluler.inference.sampling import Sampling
from celluler.wire import Frames
from celluler_protocols.generation.messages import Drawing, pack_tokens, prompt_of, unpack_tokens
from celluler_protocols.inference import Refusal, Refused, refusal_of, refuse
from celluler_protocols.stages import Answer
from celluler_protocols.stages_messages import (
    DRAW,
    HIDDEN,
    Begin,
    Drawn,
    End,
    Failed,
    Forward,
    Held,
    Hidden,
    OpenStage,
    Read,
    StageReady,
    Tokens,
    Told,
    Unread,
    frames,
    sampling_of,
    token_words,
)

OPEN_S = 30.0
"""How long an asker may take to say which stage it wants."""
IDLE_S = 300.0
"""How long a stage is held for an asker that says nothing."""
SEND_S = 30.0
MAX_WAITING = 64
"""Words of one sequence that wait for those before them: ends and new beginnings of an asker in a hurry."""


class Stage(Protocol):
    """What holds the layers, for one asker. Every method raises errors of ours."""

    @property
    def ready(self) -> StageReady: ...

    async def read(self, prompt: Prompt) -> tuple[int, ...]: ...

    async def begin(self, sequence: int, sampling: Sampling | None, context: tuple[int, ...]) -> None: ...

    async def forward(self, message: Forward) -> Answer: ...

    async def end(self, sequence: int) -> None: ...


Opener = Callable[[OpenStage], AbstractAsyncContextManager[Stage]]
"""Opens a stage, or raises a CellulerError, which becomes a Refused."""


async def serve_stage(stream: trio.abc.Stream, opener: Opener) -> None:
    """Be a stage until the asker ends the stream, says nothing for too long, or does not read.

    Raises ProtocolViolation for what no honest asker sends. How long loading and computing take is the opener's and
    the stage's own to bound.
    """
    words = frames()
    async with stream:
        request = await _opening(stream, words)
        if request is None:
            return
        async with AsyncExitStack() as stack:
            try:
                stage = await stack.enter_async_context(opener(request))
            except CellulerError as error:
                await _send(stream, words, refusal_of(error))
                return
            await _Talk(stream, words, stage).run()


async def turn_away(stream: trio.abc.Stream) -> None:
    """Tell an asker that there is no room for it, and close the stream."""
    async with stream:
        await _send(stream, frames(), refuse(Refusal.BUSY, "too many stages at once"))


async def _opening(stream: trio.abc.Stream, words: Frames) -> OpenStage | None:
    with trio.move_on_after(OPEN_S):
        while chunk := await stream.receive_some():
            match words.feed(bytes(chunk)):
                case []:
                    continue
                case [OpenStage() as request] if words.idle:
                    return request
                case _:
                    raise ProtocolViolation("not the opening of a stage")
        if not words.idle:
            raise ProtocolViolation("stream ended inside a message")
    return None


async def _send(stream: trio.abc.Stream, words: Frames, message: Told) -> None:
    with trio.move_on_after(SEND_S) as sending:
        await stream.send_all(words.encode(message))
    if sending.cancelled_caught:
        raise TimedOut("the asker reads nothing")


class _Talk:
    """One asker. Each sequence has a task of its own, which does what is asked of it in order."""

    def __init__(self, stream: trio.abc.Stream, words: Frames, stage: Stage) -> None:
        self._stream, self._words, self._stage = stream, words, stage
        self._sending = trio.Lock()
        self._queues: dict[int, trio.MemorySendChannel[Any]] = {}
        self._busy: dict[int, Forward] = {}
        self._reading = False
        self._failure: Exception | None = None

    async def run(self) -> None:
        """The first failure comes out as it is, not in a group."""
        await self._tell(self._stage.ready)
        async with trio.open_nursery() as nursery:
            try:
                await self._listen(nursery)
            except Exception as error:
                self._failure = self._failure or error
            nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    async def _listen(self, nursery: trio.Nursery) -> None:
        while True:
            chunk = b""
            with trio.move_on_after(IDLE_S):
                chunk = bytes(await self._stream.receive_some())
            if not chunk:
                return
            for message in self._words.feed(chunk):
                self._take(message, nursery)

    def _take(self, message: Any, nursery: trio.Nursery) -> None:
        match message:
            case Read() if not self._reading:
                self._reading = True
                nursery.start_soon(self._guarded, self._read, message, nursery)
            case Begin() | Forward() | End() if message.sequence < self._stage.ready.slots:
                self._check_turn(message)
                if message.sequence not in self._queues:
                    send, receive = trio.open_memory_channel[Any](MAX_WAITING)
                    self._queues[message.sequence] = send
                    nursery.start_soon(self._guarded, self._sequence, receive, nursery)
                try:
                    self._queues[message.sequence].send_nowait(message)
                except trio.WouldBlock:
                    raise ProtocolViolation("too many words of one sequence at once") from None
            case _:
                raise ProtocolViolation(f"{type(message).__name__} does not belong here")

    def _check_turn(self, message: Begin | Forward | End) -> None:
        """Between two Forwards of a sequence stands an answer, or its new beginning."""
        if not isinstance(message, Forward):
            self._busy.pop(message.sequence, None)
        elif message.sequence in self._busy or message.want > DRAW:
            raise ProtocolViolation("places of a sequence before those before them were answered")
        else:
            self._busy[message.sequence] = message

    def _answered(self, message: Forward) -> None:
        if self._busy.get(message.sequence) is message:
            del self._busy[message.sequence]

    async def _guarded(self, part: Callable[[Any], Any], given: Any, nursery: trio.Nursery) -> None:
        try:
            await part(given)
        except Exception as error:
            self._failure = self._failure or error
            nursery.cancel_scope.cancel()

    async def _sequence(self, messages: trio.MemoryReceiveChannel[Any]) -> None:
        failed: CellulerError | None = LocalError("the sequence was not begun")
        async for message in messages:
            match message:
                case Begin(sequence, drawing, context):
                    failed = await self._tried(self._begin, sequence, drawing, context)
                case Forward():
                    told: Told
                    if failed is None:
                        told, failed = await self._forward(message)
                    else:
                        refused = refusal_of(failed)
                        told = Failed(message.sequence, refused.code, refused.message)
                    self._answered(message)
                    await self._tell(told)
                case End(sequence):
                    failed = await self._tried(self._stage.end, sequence) or LocalError("the sequence is over")

    async def _tried(self, part: Callable[..., Any], *given: Any) -> CellulerError | None:
        """What it failed with."""
        try:
            await part(*given)
        except ProtocolViolation:
            raise
        except CellulerError as error:
            return error
        return None

    async def _begin(self, sequence: int, drawing: Drawing | None, context: bytes) -> None:
        sampling = None if drawing is None else sampling_of(drawing)
        await self._stage.begin(sequence, sampling, unpack_tokens(context))

    async def _forward(self, message: Forward) -> tuple[Told, CellulerError | None]:
        try:
            return _answer(message, await self._stage.forward(message)), None
        except ProtocolViolation:
            raise
        except CellulerError as error:
            refused = refusal_of(error)
            return Failed(message.sequence, refused.code, refused.message), error

    async def _read(self, message: Read) -> None:
        told: Told
        try:
            told = Tokens(pack_tokens("prompt", await self._stage.read(prompt_of(message.prompt))))
        except CellulerError as error:
            refused: Refused = refusal_of(error)
            told = Unread(refused.code, refused.message)
        self._reading = False
        await self._tell(told)

    async def _tell(self, message: Told) -> None:
        async with self._sending:
            await _send(self._stream, self._words, message)


def _answer(asked: Forward, answer: Answer) -> Held | Hidden | Drawn:
    end = asked.start + asked.count
    if asked.want == DRAW:
        if isinstance(answer, bytes):
            raise LocalError("a token was to be drawn")
        return Drawn(asked.sequence, end, None if answer is None else token_words(answer))
    if asked.want == HIDDEN and isinstance(answer, bytes):
        return Hidden(asked.sequence, end, answer)
    return Held(asked.sequence, end)
