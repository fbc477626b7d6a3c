"""Whoever asks: what a server may say, in which order, and how long it is waited for."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import trio

from celluler.errors import InvalidSpec, ProtocolViolation, TimedOut, Unavailable
from celluler.inference import questions
from celluler.inference.placement import Load
from celluler.inference.questions import Question
from celluler.inference.requests import STOP
from celluler.models.names import ModelName, parse_reference
from celluler_protocols.generation.messages import (
    Alive,
    Begun,
    Finished,
    Loads,
    Over,
    Poll,
    Said,
    Stop,
    begun_of,
    finished_of,
    frames,
    generate_of,
    over_of,
    said_of,
)
from celluler_protocols.inference import Refusal, Refused, error_of

MAX_ANSWER_TOKENS = 1 << 17
"""Of an answer for which the question has no limit."""
SILENCE_S = 15.0
"""A server that is at it says so three times as often."""

Heard = questions.Begun | questions.Event | Load


class Ask:
    """Requester's half, sans-IO: bytes in, checked events out."""

    def __init__(self, model: str, question: Question) -> None:
        """Raises InvalidSpec when no server could take the question."""
        self._model, self._question, self._frames = model, question, frames()
        self._wanted = parse_reference(model)
        try:
            self._opening = self._frames.encode(generate_of(model, question))
        except ProtocolViolation as error:
            raise InvalidSpec("", str(error)) from error
        self._begun: questions.Begun | None = None
        self._told = dict.fromkeys(range(question.n), 0)
        self._generated: dict[int, int] = {}
        self._finished = False

    @property
    def finished(self) -> bool:
        """Nothing more may come."""
        return self._finished

    def opening(self) -> bytes:
        return self._opening

    def stop(self, choice: int) -> bytes:
        return self._frames.encode(Stop(choice))

    def receive(self, chunk: bytes) -> list[Heard]:
        """What came, in order; an empty chunk means end of stream.

        Raises ProtocolViolation for what does not answer this question, and for a Refused what it stands for.
        """
        if not chunk:
            raise Unavailable("the stream ended in the middle of an answer")
        heard: list[Heard] = []
        for message in self._frames.feed(chunk):
            heard += self._take(message)
        if self._finished and not self._frames.idle:
            raise ProtocolViolation("bytes behind the end of an answer")
        return heard

    def _take(self, message: object) -> Iterable[Heard]:
        if self._finished:
            raise ProtocolViolation("a message behind the end of an answer")
        match message:
            case Alive(load):
                return (load,)
            case Refused(code, text) if code < len(Refusal):
                raise error_of(Refusal(code), text, self._model)
            case Begun() if self._begun is None:
                self._begun = self._checked_begun(begun_of(message))
                return (self._begun, message.load)
            case Said() if self._begun is not None:
                return (self._checked_said(said_of(message)),)
            case Over() if self._begun is not None:
                return (self._checked_over(over_of(message)),)
            case Finished() if self._begun is not None and len(self._generated) == self._question.n:
                self._finished = True
                return (self._checked_finished(finished_of(message)), message.load)
            case _:
                raise ProtocolViolation(f"{type(message).__name__} does not belong here")

    def _checked_begun(self, begun: questions.Begun) -> questions.Begun:
        if not isinstance(self._wanted, ModelName) and begun.model != self._wanted:
            raise ProtocolViolation("answered by another model than the one asked for")
        prompt = self._question.prompt
        if not isinstance(prompt, str) and isinstance(prompt[0], int) and begun.prompt != prompt:
            raise ProtocolViolation("begun from other tokens than those asked with")
        return begun

    def _checked_said(self, said: questions.Said) -> questions.Said:
        self._check_open(said.choice)
        self._told[said.choice] += len(said.tokens)
        if len(self._question.given) + self._told[said.choice] > self._most:
            raise ProtocolViolation(f"more than {self._most} tokens of an answer")
        wanted = self._question.sampling.logprobs
        for one in said.tokens:
            known = [logprob for _, logprob in one.top] + ([] if one.logprob is None else [one.logprob])
            if (one.logprob is None) != (wanted is None) or len(one.top) > (wanted or 0):
                raise ProtocolViolation("other logarithms of probability than asked for")
            if not all(math.isfinite(logprob) and logprob <= 0.0 for logprob in known):
                raise ProtocolViolation("a logarithm that is of no probability")
        return said

    def _checked_over(self, over: questions.Over) -> questions.Over:
        self._check_open(over.choice)
        least = len(self._question.given) + self._told[over.choice]
        if not least <= over.generated <= self._most:
            raise ProtocolViolation(f"{over.generated} tokens counted where {least} were told")
        self._generated[over.choice] = over.generated
        return over

    def _checked_finished(self, finished: questions.Finished) -> questions.Finished:
        assert self._begun is not None
        read = (len(self._begun.prompt) + len(self._question.given)) * self._question.n
        if finished.generated != sum(self._generated.values()) or finished.shared > read:
            raise ProtocolViolation("counts that are not those of the answers told")
        return finished

    def _check_open(self, choice: int) -> None:
        if choice not in self._told or choice in self._generated:
            raise ProtocolViolation(f"answer {choice} is none, or is over")

    @property
    def _most(self) -> int:
        return self._question.max_tokens or MAX_ANSWER_TOKENS


# --- adapters --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Patience:
    """silence_s: until the next message, whichever. stall_s: between tokens, once there was one; None for any."""

    silence_s: float = SILENCE_S
    stall_s: float | None = None


class Remote:
    """An answer of another peer: an `Answering`. load: what the server last said of itself."""

    begun: questions.Begun

    def __init__(self, stream: trio.abc.Stream, ask: Ask, patience: Patience) -> None:
        self._stream, self._ask, self._patience = stream, ask, patience
        self._heard: list[Heard] = []
        self._stops: list[int] = []
        self._stopped: set[int] = set()
        self._stalled_s, self._spoke = 0.0, False
        self.load: Load | None = None

    def __aiter__(self) -> AsyncIterator[questions.Event]:
        return self._events()

    def stop(self, choice: int) -> None:
        """Told to the server before the next event is waited for. What it has said of that answer meanwhile counts for
        nothing."""
        self._stops.append(choice)
        self._stopped.add(choice)

    async def begin(self) -> None:
        """Ask, and wait until it has begun."""
        await self._stream.send_all(self._ask.opening())
        while not isinstance(begun := await self._next(), questions.Begun):
            pass
        self.begun = begun

    async def _events(self) -> AsyncIterator[questions.Event]:
        while True:
            event = await self._next()
            assert not isinstance(event, questions.Begun)  # `Ask` lets one through
            if isinstance(event, questions.Said):
                self._spoke, self._stalled_s = True, 0.0
                if event.choice in self._stopped:
                    continue
            if isinstance(event, questions.Over) and event.choice in self._stopped:
                event = replace(event, reason=STOP)
            yield event
            if isinstance(event, questions.Finished):
                return

    async def _next(self) -> questions.Begun | questions.Event:
        while True:
            while self._heard:
                one = self._heard.pop(0)
                if not isinstance(one, Load):
                    return one
                self.load = one
            if self._stops and not self._ask.finished:
                words = b"".join(self._ask.stop(choice) for choice in self._stops)
                self._stops = []
                await self._stream.send_all(words)
            self._heard = self._ask.receive(await self._chunk())

    async def _chunk(self) -> bytes:
        """The next bytes. Only the time that is spent waiting here counts against the server."""
        left = self._patience.silence_s
        if self._spoke and self._patience.stall_s is not None:
            left = min(left, self._patience.stall_s - self._stalled_s)
        began = trio.current_time()
        with trio.move_on_after(max(0.0, left)):
            chunk = await self._stream.receive_some()
            self._stalled_s += trio.current_time() - began
            return bytes(chunk)
        raise TimedOut(f"the server said nothing for {trio.current_time() - began + self._stalled_s:.1f} s")


@asynccontextmanager
async def ask(
    stream: trio.abc.Stream, model: str, question: Question, patience: Patience | None = None
) -> AsyncIterator[Remote]:
    """Ask one peer; on entry it has begun. Leaving closes the stream, and with it ends the answer there.

    The deadline is the caller's. Raises what `Answerer` does, trio.BrokenResourceError for a stream that breaks.
    """
    async with stream:
        remote = Remote(stream, Ask(model, question), patience or Patience())
        await remote.begin()
        yield remote


async def poll(stream: trio.abc.Stream) -> Loads:
    """What a server says of its load. Closes the stream; the deadline is the caller's."""
    words = frames()
    async with stream:
        await stream.send_all(words.encode(Poll()))
        while chunk := await stream.receive_some():
            match words.feed(bytes(chunk)):
                case []:
                    continue
                case [Loads() as loads] if words.idle:
                    return loads
                case [Refused(code, text)] if code < len(Refusal):
                    raise error_of(Refusal(code), text, "its load")
                case _:
                    raise ProtocolViolation("no answer to a poll")
    raise Unavailable("the stream ended before the load was told")
