"""A model in memory that recites a tale, drawn as any other: for tests of what stands before one that writes.

Its tokens are bytes. The next byte of the tale is the likeliest, and behind the tale the answer ends. Sampling, stop
texts and the shapes of events are the product's own.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import takewhile

import numpy as np
import trio

from celluler.content.digest import digest_of
from celluler.errors import CellulerError, InvalidSpec, NotSupported
from celluler.inference.questions import Begun, Event, Finished, Message, Over, Prompt, Question, Said
from celluler.inference.requests import LENGTH, STOP
from celluler.inference.sampling import Chosen, choose
from celluler.inference.text_stops import TextStops
from celluler_protocols.nursery import own_nursery

TALE = "Über sieben Brücken, said the quick brown fox."
LONGEST = 64
"""Tokens of an answer, as the model looks at no more."""


class Writer:
    """questions: that were asked. pause_after: tokens of an answer after which `gate` is waited for; `paused` is set
    then. failure: raised in place of that many tokens. reason: in place of why an answer really ended. left: answers
    whose asker went."""

    def __init__(self) -> None:
        self.questions: list[Question] = []
        self.pause_after: int | None = None
        self.gate, self.paused = trio.Event(), trio.Event()
        self.failure: tuple[int, CellulerError] | None = None
        self.reason: str | None = None
        self.drawn = self.left = 0
        self._before: tuple[int, ...] = ()

    @asynccontextmanager
    async def answer(self, name: str, question: Question, model: str, cid: str, peer: str) -> AsyncIterator[Recited]:
        if question.schema:
            raise NotSupported("this model follows no schema")
        self.questions.append(question)
        prompt = _tokens(question.prompt)
        shared = sum(
            1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self._before, prompt[:-1], strict=False))
        )
        self._before = prompt
        recited = Recited(self, question, Begun(digest_of(name.encode()), prompt), shared, (model, cid, peer))
        try:
            async with own_nursery():  # as those have that answer for real: what cancels goes through it
                yield recited
        finally:
            self.left += not recited.over


def _tokens(prompt: Prompt) -> tuple[int, ...]:
    if isinstance(prompt, str):
        return tuple(prompt.encode())
    if isinstance(prompt[0], Message):
        told = [f"{one.role}: {one.text}\n" for one in prompt if isinstance(one, Message)]
        return tuple("".join(told).encode())
    tokens = tuple(one for one in prompt if isinstance(one, int))
    if max(tokens) > 255:
        raise InvalidSpec("prompt", f"holds {max(tokens)}; this model knows 256 tokens")
    return tokens


class Recited:
    """`celluler.inference.questions.Generated`: a token of each answer in turn."""

    def __init__(
        self, writer: Writer, question: Question, begun: Begun, shared: int, who: tuple[str, str, str]
    ) -> None:
        self.begun, self.over = begun, False
        self.model, self.cid, self.peer = who
        self._writer, self._shared = writer, shared
        self._stops = TextStops(question.stop)
        self._stopped: set[int] = set()
        self._events: deque[Event] = deque()
        self._coming = self._say(question)

    def stop(self, choice: int) -> None:
        self._stopped.add(choice)

    def __aiter__(self) -> Recited:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            self._events.extend(self._stops.feed(await anext(self._coming)))
            self._stopped.update(self._stops.take())
        event = self._events.popleft()
        self.over |= isinstance(event, Finished)
        return event

    async def _say(self, question: Question) -> AsyncIterator[Event]:
        tale, writer = TALE.encode(), self._writer
        most = min(question.max_tokens or LONGEST, LONGEST)
        reading = [codecs.getincrementaldecoder("utf-8")("ignore") for _ in range(question.n)]
        running, generated = list(range(question.n)), 0
        for place in range(most + 1):
            for choice in tuple(running):
                if choice in self._stopped or place in (most, len(tale)):
                    running.remove(choice)
                    reason = STOP if choice in self._stopped or place == len(tale) else LENGTH
                    yield Over(choice, writer.reason or reason, place)
                    continue
                if writer.pause_after == place:
                    writer.paused.set()
                    await writer.gate.wait()
                if writer.failure is not None and writer.failure[0] == place:
                    raise writer.failure[1]
                logits = np.zeros(256)
                logits[tale[place]] = 8.0
                sampling = replace(question.sampling, choice=question.sampling.choice + choice)
                chosen = choose(logits, sampling, place)
                text = reading[choice].decode(bytes([chosen.token]))
                generated += 1
                writer.drawn += 1
                yield Said(choice, text, (_read(chosen, text),))
        yield Finished(len(self.begun.prompt), generated, self._shared + (question.n - 1) * len(self.begun.prompt))


def _read(chosen: Chosen, text: str) -> Chosen:
    """With what each of the likeliest would be read as: a byte alone is a character below 128."""
    texts = tuple(chr(token) if token < 128 else "" for token, _ in chosen.top)
    return replace(chosen, text=text, top_texts=texts)
