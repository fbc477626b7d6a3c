"""/celluler/stage/1: let a peer hold some layers of a model, and send sequences through them. Spec:
docs/reference/protocols/stages.md

Participants: an *asker*, which sends every sequence from stage to stage itself, and a *stage*, which knows neither the
others nor where in its answer a sequence is. One stream is one stage; several sequences are on their way in it at once.
Its end frees all that the stage held for the asker.
Not promised: that what comes out is the layers' work. Knows nothing of plans, journals or workers.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import trio

from celluler.errors import CellulerError, Denied, InvalidSpec, LocalError, ProtocolViolation, Unavailable
from celluler.inference.hidden import check_hidden
from celluler.inference.questions import Prompt
from celluler.inference.sampling import Chosen, Sampling
from celluler_protocols.generation.messages import OfTokens, pack_tokens, prompt_words, unpack_tokens
from celluler_protocols.inference import Refusal, Refused, error_of
from celluler_protocols.nursery import own_nursery
from celluler_protocols.stages_messages import (
    DRAW,
    HIDDEN,
    KEEP,
    PROTOCOL_ID,
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
    Unread,
    chosen_of,
    drawing_of,
    frames,
)

__all__ = ["PROTOCOL_ID", "Link", "Widths", "open_link"]


@dataclass(frozen=True, slots=True)
class Widths:
    """Of the stage, as its asker knows it. given: of hidden states that go in, 0 for tokens. gives: of those that come
    out, 0 at the last stage. vocabulary: tokens are below it."""

    given: int
    gives: int
    vocabulary: int


Answer = bytes | Chosen | None
"""Hidden states; or the next token; or nothing, where nothing was wanted or the model gave no logit."""


class Exchange:
    """Asker's half, sans-IO: what may be sent, and what of the answers belongs to what."""

    def __init__(self, request: OpenStage, widths: Widths) -> None:
        self._request, self._widths, self._frames = request, widths, frames()
        self._ready: StageReady | None = None
        self._waiting: dict[int, Forward] = {}
        self._stale: dict[int, int] = {}
        self._drawing: dict[int, Sampling | None] = {}
        self._reading = False

    @property
    def ready(self) -> StageReady | None:
        """None before the stage has said so."""
        return self._ready

    def opening(self) -> bytes:
        return self._frames.encode(self._request)

    def begin(self, sequence: int, sampling: Sampling | None, context: tuple[int, ...]) -> bytes:
        drawing = None if sampling is None else drawing_of(sampling)
        self._forget(sequence)
        self._drawing[sequence] = sampling
        return self._frames.encode(Begin(sequence, drawing, pack_tokens("context", context)))

    def forward(self, message: Forward) -> bytes:
        if message.sequence in self._waiting:
            raise LocalError("places of a sequence go one answer after another")
        told = self._frames.encode(message)
        self._waiting[message.sequence] = message
        return told

    def end(self, sequence: int) -> bytes:
        self._forget(sequence)
        return self._frames.encode(End(sequence))

    def read(self, prompt: Prompt) -> bytes:
        words = prompt_words(prompt)
        if isinstance(words, OfTokens):
            raise LocalError("tokens are read already")
        try:
            told = self._frames.encode(Read(words))
        except ProtocolViolation as error:  # what we would refuse to read ourselves
            raise InvalidSpec("prompt", str(error)) from error
        self._reading = True
        return told

    def _forget(self, sequence: int) -> None:
        """Nobody waits any more for what its places come to; the answer still comes."""
        self._drawing.pop(sequence, None)
        if self._waiting.pop(sequence, None):
            self._stale[sequence] = self._stale.get(sequence, 0) + 1

    def receive(self, chunk: bytes) -> list[tuple[int | None, Answer | tuple[int, ...] | CellulerError]]:
        """(sequence, what came of it); None for what was read.

        Raises ProtocolViolation for what no honest stage sends, what a Refused stands for, Unavailable at the end of
        the stream.
        """
        if not chunk:
            raise Unavailable("the stage ended the stream")
        return [told for message in self._frames.feed(chunk) for told in self._take(message)]

    def _take(self, message: Any) -> list[tuple[int | None, Any]]:
        match message:
            case StageReady() if self._ready is None:
                if message.slots > self._request.slots:
                    raise ProtocolViolation(f"{message.slots} sequences, {self._request.slots} were asked for")
                self._ready = message
                return []
            case Refused(code, text) if self._ready is None and code < len(Refusal):
                raise _error(code, text)
            case Tokens() if self._reading:
                self._reading = False
                return [(None, unpack_tokens(message.tokens))]
            case Unread(code, text) if self._reading and code < len(Refusal):
                self._reading = False
                return [(None, _error(code, text))]
            case Failed() | Held() | Hidden() | Drawn() if self._stale.get(message.sequence):
                self._stale[message.sequence] -= 1
                return []
            case Failed(sequence, code, text) if sequence in self._waiting and code < len(Refusal):
                del self._waiting[sequence]
                return [(sequence, _error(code, text))]
            case Held() | Hidden() | Drawn() if message.sequence in self._waiting:
                asked = self._waiting.pop(message.sequence)
                if message.end != asked.start + asked.count:
                    raise ProtocolViolation(f"a sequence of {message.end} places, it has {asked.start + asked.count}")
                return [(message.sequence, self._checked(asked, message))]
        raise ProtocolViolation(f"{type(message).__name__} does not belong here")

    def _checked(self, asked: Forward, message: Held | Hidden | Drawn) -> Answer:
        match message:
            case Held() if asked.want == KEEP:
                return None
            case Hidden(data=data) if asked.want == HIDDEN:
                check_hidden(self._request.wire, data, asked.count, self._widths.gives)
                return data
            case Drawn(token=None) if asked.want == DRAW:
                return None
            case Drawn(token=token) if asked.want == DRAW and token is not None:
                return self._checked_token(asked.sequence, chosen_of(token))
        raise ProtocolViolation(f"{type(message).__name__} where something else was wanted")

    def _checked_token(self, sequence: int, chosen: Chosen) -> Chosen:
        sampling = self._drawing.get(sequence)
        wanted = None if sampling is None else sampling.logprobs
        known = [logprob for _, logprob in chosen.top] + ([] if chosen.logprob is None else [chosen.logprob])
        if not all(token < self._widths.vocabulary for token in (chosen.token, *(one for one, _ in chosen.top))):
            raise ProtocolViolation("a token that the model does not know")
        if (chosen.logprob is None) != (wanted is None) or len(chosen.top) > (wanted or 0):
            raise ProtocolViolation("other logarithms of probability than asked for")
        if not all(math.isfinite(logprob) and logprob <= 0.0 for logprob in known):
            raise ProtocolViolation("a logarithm that is of no probability")
        return chosen


# --- adapter ---------------------------------------------------------------------------------------------------------


class Link:
    """One stage that is open. Deadlines are the caller's; a call that is cancelled leaves its sequence unusable until
    it is begun anew. Once the stage has failed every call raises why."""

    def __init__(self, stream: trio.abc.Stream, exchange: Exchange) -> None:
        self._stream, self._exchange = stream, exchange
        self._sending = trio.Lock()
        self._answers: dict[int | None, trio.MemorySendChannel[Any]] = {}
        self._reading = trio.Lock()
        self.failure: CellulerError | None = None
        self.failed = trio.Event()

    @property
    def ready(self) -> StageReady:
        assert self._exchange.ready is not None
        return self._exchange.ready

    async def read(self, prompt: Prompt) -> tuple[int, ...]:
        """The tokens of a text or a conversation. Raises InvalidSpec for one that the model cannot take."""
        async with self._reading:
            tokens: tuple[int, ...] = await self._asked(None, self._exchange.read(prompt))
        return tokens

    async def begin(self, sequence: int, sampling: Sampling | None, context: tuple[int, ...]) -> None:
        """What is wrong with it the next `forward` says."""
        await self._send(self._exchange.begin(sequence, sampling, context))

    async def forward(self, message: Forward) -> Answer:
        """Raises Unavailable where the stage could not."""
        self._check()
        answer: Answer = await self._asked(message.sequence, self._exchange.forward(message))
        return answer

    async def end(self, sequence: int) -> None:
        await self._send(self._exchange.end(sequence))

    async def _asked(self, key: int | None, data: bytes) -> Any:
        send, receive = trio.open_memory_channel[Any](1)
        self._answers[key] = send
        try:
            await self._send(data)
            told = await receive.receive()
        finally:
            if self._answers.get(key) is send:
                del self._answers[key]
        if isinstance(told, CellulerError):
            raise told
        return told

    async def _send(self, data: bytes) -> None:
        async with self._sending:
            self._check()
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise Unavailable("the stream to a stage broke") from error

    def _check(self) -> None:
        if self.failure is not None:
            raise Unavailable(str(self.failure)) from self.failure

    async def _run(self) -> None:
        """Hand out what comes, until the stage fails."""
        try:
            while True:
                for key, told in self._exchange.receive(bytes(await self._stream.receive_some())):
                    if (listener := self._answers.get(key)) is not None:
                        _tell(listener, told)
        except CellulerError as error:
            self._fail(error)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._fail(Unavailable("the stream to a stage broke"))

    def _fail(self, error: CellulerError) -> None:
        self.failure = error
        self.failed.set()
        for listener in self._answers.values():
            _tell(listener, Unavailable(str(error)))


def _tell(listener: trio.MemorySendChannel[Any], told: Any) -> None:
    """Each waits for one answer; whoever has it already, or has gone, needs no other."""
    with suppress(trio.WouldBlock, trio.BrokenResourceError):
        listener.send_nowait(told)


@asynccontextmanager
async def open_link(stream: trio.abc.Stream, request: OpenStage, widths: Widths) -> AsyncIterator[Link]:
    """Ready on entry. Leaving closes the stream, and with it all that the stage holds for us.

    Raises what a refusal stands for, ProtocolViolation, Unavailable. How long it takes is the caller's to bound.
    """
    exchange = Exchange(request, widths)
    link = Link(stream, exchange)
    async with stream:
        try:
            await stream.send_all(exchange.opening())
            while exchange.ready is None:
                exchange.receive(bytes(await stream.receive_some()))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Unavailable("the stream to a stage broke") from error
        async with own_nursery() as nursery:
            nursery.start_soon(link._run)
            yield link


def _error(code: int, text: str) -> CellulerError:
    """What a refusal of a stage stands for: to whoever plans, another peer may do better, unless the call is wrong."""
    told = error_of(Refusal(code), text, "the model")
    return told if isinstance(told, InvalidSpec | Denied | Unavailable) else Unavailable(text)
