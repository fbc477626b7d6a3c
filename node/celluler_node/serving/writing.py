"""A loaded model that writes: its worker's slots, opened with the first question for text, and questions put to them.

As many sequences at once as fit beside the weights. What is told is raw: stop texts are the asker's (`TextStops`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from celluler.content.digest import Digest
from celluler.errors import CellulerError, Denied, InvalidSpec, WorkerFailed
from celluler.inference.caching import Recomputed, caching_of, longest_of
from celluler.inference.questions import Begun, Event, Finished, Message, Over, Prompt, Question, Said
from celluler.inference.requests import ERROR, Done, Ended, Request, Told
from celluler.models.body import Body
from celluler.models.interface import Interface
from celluler.models.memory import RUNTIME_BYTES
from celluler_node.bounded import bounded
from celluler_node.serving.generating import Answers, Call, Generating, open_generating
from celluler_protocols.nursery import own_nursery

MOST_SLOTS = 16


@dataclass(frozen=True, slots=True)
class Room:
    """slots: sequences at once. length: places of each, None for as many as the model looks at."""

    slots: int
    length: int | None = None


def room_of(body: Body, memory_bytes: int | None) -> Room:
    """What fits into a worker of so much memory, beside the weights: fewer slots before shorter ones, one at least.

    A model of which not even one place fits is left to the worker to refuse. Raises InvalidSpec for one that does not
    tell the next token.
    """
    caching, longest = caching_of(body), longest_of(body)
    if memory_bytes is None or isinstance(caching, Recomputed):
        return Room(MOST_SLOTS)
    free = max(0, memory_bytes - bytes_beside_slots(body))
    slots = free // max(1, caching.byte_count(1, longest))
    if slots:
        return Room(min(MOST_SLOTS, slots))
    return Room(1, max(1, min(longest, free // max(1, caching.byte_count(1, 1)))))


def bytes_beside_slots(body: Body) -> int:
    """What a worker takes before it holds any sequence; of narrow weights also what they become where nothing computes
    on them as they are stored."""
    weights = body.parameter_bytes + (body.stored_as("float32").parameter_bytes if body.narrow else 0)
    return RUNTIME_BYTES + weights + body.working_bytes


class Writing:
    """Of one loaded model. Its slots are opened once somebody asks."""

    def __init__(
        self, call: Call, interface: Interface, model: Digest, memory_bytes: int | None, template: str | None
    ) -> None:
        self._call, self._interface, self._model, self._memory = call, interface, model, memory_bytes
        self._template = template
        self._wanted, self._ready = trio.Event(), trio.Event()
        self._generating: Generating | None = None
        self._failure: CellulerError | None = None

    @property
    def occupied(self) -> tuple[int, int, int]:
        """Answers that have a slot, that wait for one, and slots; all 0 while nobody has asked."""
        its = self._generating
        return (0, 0, 0) if its is None else (its.running, its.waiting, its.slots)

    @property
    def running(self) -> int:
        """Answers that have a slot."""
        return 0 if self._generating is None else self._generating.running

    @property
    def waiting(self) -> int:
        """Answers that wait for one."""
        return 0 if self._generating is None else self._generating.waiting

    def close(self, failure: WorkerFailed) -> None:
        """The worker has ended: whoever waits is told."""
        self._failure = self._failure or failure
        if self._generating is not None:
            self._generating.close(failure)

    async def keep(self, on_failure: Callable[[], None]) -> None:
        """From the first question until the worker has failed; whoever asks afterwards is told why."""
        await self._wanted.wait()
        try:
            room = room_of(self._interface.body, self._memory)
            async with open_generating(
                self._call, slots=room.slots, length=room.length, template=self._template or ""
            ) as self._generating:
                self._ready.set()
                await self._generating.closed.wait()
                on_failure()
        except CellulerError as error:
            self._failure = error
        finally:
            self._ready.set()

    @asynccontextmanager
    async def ask(self, question: Question, client: str, deadline_s: float) -> AsyncIterator[Written]:
        """client: who shares the slots fairly. deadline_s: by trio's clock.

        Raises InvalidSpec, Busy, WorkerFailed, Denied for a conversation whose template may not run here, TimedOut
        before the answer has begun.
        """
        with bounded(max(0.0, deadline_s - trio.current_time()), "beginning to write"):
            generating = await self._ready_to_write()
            prompt = await self._tokens(generating, question.prompt)
            if question.schema:
                await generating.bind(question.schema)
        request = Request(
            number=0,
            client=client,
            prompt=prompt,
            max_tokens=question.max_tokens or max(len(question.given) + 1, generating.opened.length),
            deadline_s=deadline_s,
            sampling=question.sampling,
            n=question.n,
            ends=self._interface.ends,
            given=question.given,
            schema=question.schema,
        )
        async with generating.ask(request) as answers:
            yield Written(Begun(self._model, prompt), generating, answers, deadline_s)

    async def _ready_to_write(self) -> Generating:
        self._wanted.set()
        await self._ready.wait()
        if self._generating is None:
            raise self._failure or WorkerFailed("the model was unloaded")
        return self._generating

    async def _tokens(self, generating: Generating, prompt: Prompt) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return await generating.encode(prompt)
        messages = [one for one in prompt if isinstance(one, Message)]
        if not messages:
            return tuple(one for one in prompt if isinstance(one, int))
        if self._template is None:
            raise Denied(
                "the model's chat template is a program of another peer, and needs the full sandbox",
                hint="ask with a text, or where `celluler status` says isolation: full",
            )
        return await generating.converse(messages)


class Written:
    """`celluler.inference.questions.Answering` of a worker here."""

    def __init__(self, begun: Begun, generating: Generating, answers: Answers, deadline_s: float) -> None:
        self.begun = begun
        self._generating, self._answers, self._deadline_s = generating, answers, deadline_s

    def __aiter__(self) -> Written:
        return self

    async def __anext__(self) -> Event:
        """Raises WorkerFailed when the worker failed in the middle."""
        with trio.move_on_at(self._deadline_s):
            return await self._next()
        self._generating.expire()  # the worker is at a tick, and nobody waits until it is done
        return await self._next()

    async def _next(self) -> Event:
        try:
            event = await self._answers.events.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
        match event:
            case Told(choice=choice, tokens=tokens):
                return Said(choice, "".join(one.text for one in tokens), tokens)
            case Ended(choice=choice, reason=reason, generated=generated):
                if reason == ERROR and (failure := self._generating.failure) is not None:
                    raise WorkerFailed(failure.reason, limit=failure.limit)
                return Over(choice, reason, generated)
            case Done(prompt=prompt, generated=generated, shared=shared):
                return Finished(prompt, generated, shared)

    def stop(self, choice: int) -> None:
        self._answers.stop(choice)


@asynccontextmanager
async def open_writing(
    call: Call,
    interface: Interface,
    model: Digest,
    memory_bytes: int | None,
    *,
    template: str | None = "",
    on_failure: Callable[[], None],
) -> AsyncIterator[Writing | None]:
    """None for a model that does not tell the next token.

    call: of the worker in which the model is loaded. memory_bytes: what it may take. template: the model's chat
    template, a file that the worker may read; empty for none, None for one that may not run here. on_failure: the
    worker is not to be used any more.
    """
    try:
        longest_of(interface.body)
    except InvalidSpec:
        yield None
        return
    writing = Writing(call, interface, model, memory_bytes, template)
    async with own_nursery() as nursery:
        nursery.start_soon(writing.keep, on_failure)
        try:
            yield writing
        except WorkerFailed as failure:
            writing.close(failure)
            raise
