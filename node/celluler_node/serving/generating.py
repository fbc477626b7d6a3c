"""Drives a worker that generates: asks it for one tick after the other while anybody waits, and hands out what comes.

Decides nothing: whose turn it is says `celluler.inference.scheduler`. A worker that fails or answers what it cannot
have found ends all answers with `error`, and whoever asks afterwards is told why; then it is opened anew on another.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import trio

from celluler.errors import InvalidSpec, Unavailable, WorkerFailed
from celluler.inference.questions import MAX_PROMPT_BYTES, Message
from celluler.inference.requests import Done, Event, Request
from celluler.inference.scheduler import Limits, Scheduler
from celluler_node.processes.words import Reply
from celluler_node.processes.worker_generate_words import (
    Bind,
    Converse,
    Encode,
    OpenSlots,
    SlotsOpen,
    Turn,
    calls_of,
    stepped_of,
    tokens_of,
)
from celluler_protocols.nursery import own_nursery

Call = Callable[..., Awaitable[Reply]]
"""`Child.call` of a worker in which a model is loaded."""


@dataclass(frozen=True, slots=True)
class Queues:
    """chunk: tokens of a prompt in one tick. queue, client_queue: answers that wait, of all clients and of one."""

    chunk: int = 64
    queue: int = 256
    client_queue: int = 64


USUAL = Queues()


class Generating:
    """Answers of one worker. opened: what it said of its slots. slots: how many. failure: why no more is asked of it;
    then it is `closed`."""

    def __init__(self, call: Call, opened: SlotsOpen, slots: int, queues: Queues) -> None:
        self.opened, self.slots = opened, slots
        limits = Limits(slots, opened.length, opened.vocabulary, queues.chunk, queues.queue, queues.client_queue)
        self._call, self._scheduler = call, Scheduler(limits)
        self._listeners: dict[int, trio.MemorySendChannel[Event]] = {}
        self._numbers = 0
        self._asked = trio.Event()
        self.failure: WorkerFailed | None = None
        self.closed = trio.Event()

    @property
    def running(self) -> int:
        """Answers under way."""
        return self._scheduler.running

    @property
    def waiting(self) -> int:
        """Answers that wait for a slot."""
        return self._scheduler.waiting

    async def encode(self, text: str) -> tuple[int, ...]:
        """The tokens of a text, to go on from. Raises InvalidSpec for a model without texts or a text that is too
        long, WorkerFailed."""
        if not self.opened.texts:
            raise InvalidSpec("prompt", "is a text, and this model makes no tokens of texts")
        raw = text.encode("utf-8", "replace")
        if len(raw) > MAX_PROMPT_BYTES:
            raise InvalidSpec("prompt", f"has {len(raw)} bytes, the limit is {MAX_PROMPT_BYTES}")
        return tuple(tokens_of(bytes((await self._call(Encode(), raw)).blobs[0])))

    async def converse(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The tokens of a conversation up to where its next answer begins. Raises as `encode`."""
        if not self.opened.texts:
            raise InvalidSpec("messages", "are texts, and this model makes no tokens of texts")
        turns = tuple(Turn(one.role, one.text.encode("utf-8", "replace").decode("utf-8")) for one in messages)
        return tuple(tokens_of(bytes((await self._call(Converse(turns))).blobs[0])))

    async def bind(self, schema: bytes) -> None:
        """Have the worker read a schema, before a request is bound to it. Raises InvalidSpec, WorkerFailed, Unavailable
        where what it needs is not installed."""
        if not self.opened.texts:
            raise InvalidSpec("schema", "is of texts, and this model makes no tokens of texts")
        if not self.opened.schemas:
            hint = "pip install 'celluler[schema]' where the model runs"
            raise Unavailable("nobody here binds an answer to a schema: llguidance is not installed", hint=hint)
        await self._call(Bind(), schema)

    @asynccontextmanager
    async def ask(self, request: Request) -> AsyncIterator[Answers]:
        """Its events until it is done; whoever leaves before has cancelled it. Its number is given here.

        deadline_s: of the request, by trio's clock. Raises Busy, InvalidSpec, and WorkerFailed of a worker that has.
        """
        if self.failure is not None:
            raise WorkerFailed(self.failure.reason, limit=self.failure.limit)
        self._numbers += 1
        request = replace(request, number=self._numbers)
        self._scheduler.submit(request)
        # Each token is an event at most, beside the end of each answer and of all: the channel never is full.
        most = request.n * (min(request.max_tokens, self.opened.length) + 1) + 1
        send, receive = trio.open_memory_channel[Event](most)
        self._listeners[request.number] = send
        self._asked.set()
        try:
            with receive:
                yield Answers(self, request.number, receive)
        finally:
            self._listeners.pop(request.number, None)
            self._scheduler.cancel(request.number)
            self._deliver()

    def stop(self, number: int, choice: int) -> None:
        """An answer has come to a stop that only its text shows."""
        self._scheduler.stop(number, choice)
        self._deliver()

    def expire(self) -> None:
        """End what has no time left, while the worker is at a tick."""
        self._scheduler.expire(trio.current_time())
        self._deliver()

    async def run(self) -> None:
        """As long as the worker does what it is asked."""
        while self.failure is None:
            tick = self._scheduler.plan(trio.current_time())
            self._deliver()
            if tick is None:
                await self._wait()
                continue
            try:
                record: Any = None
                for request, blobs in calls_of(tick):
                    record = (await self._call(request, *blobs)).record
                if self.failure is None:  # else it was closed while the worker was at it
                    self._scheduler.stepped(stepped_of(record))
            except WorkerFailed as error:
                self.close(error)
            self._deliver()

    def close(self, failure: WorkerFailed) -> None:
        """End all answers with `error`; whoever asks from now on is told of the failure."""
        self.failure = self.failure or failure
        self.closed.set()
        self._scheduler.fail()
        self._deliver()

    async def _wait(self) -> None:
        """Until somebody asks. Nobody waits meanwhile, so no deadline passes."""
        self._asked = trio.Event()
        await self._asked.wait()

    def _deliver(self) -> None:
        for event in self._scheduler.events():
            if (listener := self._listeners.get(event.number)) is not None:
                with suppress(trio.BrokenResourceError):  # whoever asked does not listen any more
                    listener.send_nowait(event)
                if isinstance(event, Done):
                    listener.close()
                    del self._listeners[event.number]


@dataclass(frozen=True, slots=True)
class Answers:
    """What comes of one request, to iterate over. number: it was given."""

    _generating: Generating
    number: int
    events: trio.MemoryReceiveChannel[Event]

    def stop(self, choice: int) -> None:
        """That answer has come to a stop that only its text shows; its end is told with the next events."""
        self._generating.stop(self.number, choice)


@asynccontextmanager
async def open_generating(
    call: Call, *, slots: int, length: int | None = None, template: str = "", queues: Queues = USUAL
) -> AsyncIterator[Generating]:
    """Ready on entry; on exit nothing more is asked of the worker, and answers under way have ended.

    call: of a worker that has a model. length: places of a slot, None for all that the model looks at. template: its
    chat template, a file that the worker may read, or empty. Raises WorkerFailed for a model that does not generate,
    and for slots that do not fit.
    """
    opened: SlotsOpen = (await call(OpenSlots(slots, length, template))).record
    generating = Generating(call, opened, slots, queues)
    async with own_nursery() as nursery:
        nursery.start_soon(generating.run)
        try:
            yield generating
        except WorkerFailed as failure:
            generating.close(failure)
            raise
        finally:
            generating.close(WorkerFailed("the model was unloaded"))
