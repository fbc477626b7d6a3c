"""The server: one answer a stream, as fast as whoever asked reads it, and gone when nobody does."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

import trio

from celluler.content.digest import Digest
from celluler.errors import CellulerError, PeerViolation, ProtocolViolation, TimedOut, Unavailable
from celluler.inference import questions
from celluler.inference.placement import Load
from celluler.inference.questions import Answerer, Answering, Question
from celluler.models.names import parse_reference
from celluler.wire import Frames
from celluler_protocols.generation.messages import (
    MAX_LOADS,
    MAX_SAID_TOKENS,
    Alive,
    Generate,
    LoadOf,
    Loads,
    Poll,
    Said,
    Stop,
    Told,
    begun_words,
    finished_words,
    frames,
    over_words,
    question_of,
    said_words,
)
from celluler_protocols.inference import Refusal, refusal_of, refuse

OPEN_S = 30.0
"""How long a question may take to come whole."""
SEND_S = 15.0
"""How long whoever asked may take to read what there is."""
ALIVE_S = 5.0
PACE_S = 0.02
"""Between two writes of tokens, each of which costs as much as dozens of them: what is said meanwhile goes with the
next one, and the end of an answer at once."""
GRACE_S = 10.0
"""Beyond the question's own time, for an answerer that does not keep it."""
MAX_BACKLOG = 1 << 14
"""Tokens, and likely ones beside them, that may wait to be read."""

Busyness = Callable[[], dict[Digest, Load]]
"""The load of each model that is loaded."""


class Backlog:
    """What is to be sent, bounded. Tokens of one answer that follow each other leave together."""

    def __init__(self) -> None:
        self._waiting: deque[Told] = deque()
        self._weight = 0
        self._asked, self._urgent = trio.Event(), trio.Event()
        self._closed = False
        self.overrun = False

    def put(self, *messages: Told) -> None:
        """Raises TimedOut when whoever reads is too far behind."""
        for message in messages:
            self._weight += _weight(message)
            before = self._waiting[-1] if self._waiting else None
            if isinstance(message, Said) and isinstance(before, Said) and _fit(before, message):
                self._waiting[-1] = Said(before.choice, before.tokens + message.tokens)
            else:
                self._waiting.append(message)
            if not isinstance(message, Said):
                self._urgent.set()
        self._asked.set()
        if self._weight > MAX_BACKLOG:
            self.overrun = True
            raise TimedOut("whoever asked reads too slowly")

    def close(self) -> None:
        """Nothing more comes."""
        self._closed = True
        self._asked.set()
        self._urgent.set()

    def take(self) -> tuple[Told, ...]:
        taken, self._weight = tuple(self._waiting), 0
        self._waiting.clear()
        if not self._closed:
            self._asked, self._urgent = trio.Event(), trio.Event()
        return taken

    @property
    def done(self) -> bool:
        return self._closed and not self._waiting

    async def wait(self) -> None:
        """Until there is something to take, or nothing more comes."""
        await self._asked.wait()

    async def pause(self) -> None:
        """Until there is more than a few tokens to tell, but not long."""
        with trio.move_on_after(PACE_S):
            await self._urgent.wait()


def _fit(before: Said, after: Said) -> bool:
    return before.choice == after.choice and len(before.tokens) + len(after.tokens) <= MAX_SAID_TOKENS


def _weight(message: Told) -> int:
    return sum(1 + len(one.top) for one in message.tokens) if isinstance(message, Said) else 1


async def serve_generation(stream: trio.abc.Stream, answerer: Answerer, busyness: Busyness) -> None:
    """Answer one question, or tell the load. The end of the stream cancels the answer at once.

    Raises ProtocolViolation for what no honest peer sends, TimedOut for who reads too slowly.
    """
    words = frames()
    async with stream:
        match await _opening(stream, words):
            case Generate() as request:
                await _Talk(stream, words, busyness).run(request, answerer)
            case Poll():
                await _send(stream, words.encode(_loads(busyness())))
            case None:
                pass


async def turn_away(stream: trio.abc.Stream) -> None:
    """Tell whoever asks that there is no room, and close the stream."""
    async with stream:
        await _send(stream, frames().encode(refuse(Refusal.BUSY, "too many questions at once")))


async def _opening(stream: trio.abc.Stream, words: Frames) -> Generate | Poll | None:
    """None when whoever opened the stream has gone, in order or by silence."""
    with trio.move_on_after(OPEN_S):
        while chunk := await stream.receive_some():
            match words.feed(bytes(chunk)):
                case []:
                    continue
                case [Generate() | Poll() as request]:
                    return request
                case _:
                    raise ProtocolViolation("not a question")
        if not words.idle:
            raise ProtocolViolation("stream ended inside a question")
    return None


async def _send(stream: trio.abc.Stream, data: bytes) -> None:
    with trio.move_on_after(SEND_S) as sending:
        await stream.send_all(data)
    if sending.cancelled_caught:
        raise TimedOut("whoever asked reads nothing")


def _loads(busy: dict[Digest, Load]) -> Loads:
    return Loads(tuple(LoadOf(model, load) for model, load in list(busy.items())[:MAX_LOADS]))


class _Talk:
    """One question on one stream: what is heard, what is found, and what is told, side by side."""

    def __init__(self, stream: trio.abc.Stream, words: Frames, busyness: Busyness) -> None:
        self._stream, self._words, self._busyness = stream, words, busyness
        self._backlog = Backlog()
        self._answering: Answering | None = None
        self._model: Digest | None = None
        self._failure: Exception | None = None

    async def run(self, request: Generate, answerer: Answerer) -> None:
        """Until all is told, or whoever asked has gone. The first failure comes out as it is, not in a group."""
        async with trio.open_nursery() as nursery:
            scope = nursery.cancel_scope
            nursery.start_soon(self._part, self._listen, scope)
            nursery.start_soon(self._part, self._tell, scope)
            try:
                await self._answer(request, answerer)
            except Exception as error:
                self._failure = self._failure or error
                scope.cancel()
        if self._failure is not None:
            raise self._failure

    async def _part(self, part: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        try:
            await part()
        except Exception as error:
            self._failure = self._failure or error
        scope.cancel()

    async def _listen(self) -> None:
        """Until whoever asked has gone."""
        while chunk := await self._stream.receive_some():
            for message in self._words.feed(bytes(chunk)):
                if not isinstance(message, Stop):
                    raise ProtocolViolation("not a word for one who has asked")
                if self._answering is not None:
                    self._answering.stop(message.choice)

    async def _tell(self) -> None:
        while not self._backlog.done:
            with trio.move_on_after(ALIVE_S):
                await self._backlog.wait()
            told = self._backlog.take()
            if not told and not self._backlog.done:
                told = (Alive(self._load()),)
            if told:
                await _send(self._stream, b"".join(map(self._words.encode, told)))
            if any(isinstance(one, Said) for one in told):
                await self._backlog.pause()

    async def _answer(self, request: Generate, answerer: Answerer) -> None:
        try:
            parse_reference(request.model)
            await self._go_through(request.model, question_of(request), answerer)
        except ProtocolViolation:  # of tokens that are not whole; those of a third peer are refusals below
            raise
        except CellulerError as error:
            if self._backlog.overrun:
                raise
            self._backlog.put(refusal_of(error))
        self._backlog.close()

    async def _go_through(self, model: str, question: Question, answerer: Answerer) -> None:
        with trio.move_on_after(question.timeout_s + GRACE_S):
            try:
                async with answerer(model, question) as answering:
                    self._answering, self._model = answering, answering.begun.model
                    self._backlog.put(begun_words(answering.begun, self._load()))
                    async for event in answering:
                        self._backlog.put(*self._event_words(event))
            except PeerViolation as error:
                raise Unavailable(str(error)) from error
            return
        raise TimedOut("no answer in the time there was")

    def _event_words(self, event: questions.Event) -> tuple[Told, ...]:
        match event:
            case questions.Said():
                return said_words(event)
            case questions.Over():
                return (over_words(event),)
            case questions.Finished():
                return (finished_words(event, self._load()),)

    def _load(self) -> Load:
        busy = self._busyness()
        if self._model in busy:
            return busy[self._model]
        return Load(0, 0, 0)
