"""Predictions of one worker, computed together where they may be: see `celluler.inference.windows`.

A batch is one call of the worker, inputs one behind another along the batch axis and the answer cut up again. Who asks
alone is answered in the task that asks. An error of a batch is told nobody: its members are asked one by one, each with
an error of its own. A worker that has ended fails all that was asked of it.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from celluler.errors import CellulerError, WorkerFailed
from celluler.inference.together import group_of, most_together
from celluler.inference.windows import USUAL, Ask, Window, WindowLimits
from celluler.models.interface import Interface
from celluler_node.processes.words import Reply
from celluler_node.processes.worker_words import Predict
from celluler_protocols.nursery import own_nursery

MAX_GROUPS = 256

Call = Callable[..., Awaitable[Reply]]
"""`Child.call` of a worker in which a model is loaded."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the model makes of one ask: its part of the batch."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(slots=True)
class _Asked:
    request: Predict
    data: bytes
    answered: trio.Event = field(default_factory=trio.Event)
    outcome: Told | CellulerError | None = None

    def settle(self, outcome: Told | CellulerError) -> None:
        self.outcome = outcome
        self.answered.set()


class Batching:
    """Of one loaded model. on_batch: told the samples of every batch that was computed."""

    def __init__(
        self,
        call: Call,
        interface: Interface,
        limits: WindowLimits,
        *,
        apart: bool,
        ended: Callable[[], bool],
        on_batch: Callable[[int], None],
    ) -> None:
        """apart: whether a trial has shown samples to stand apart. ended: whether the worker has."""
        self._call, self._interface, self._apart, self._ended = call, interface, apart, ended
        self._on_batch = on_batch
        self._window = Window(limits)
        self._asked: dict[int, _Asked] = {}
        self._groups: dict[Hashable, Hashable | None] = {}
        self._numbers = itertools.count(1)
        self._handed: tuple[Ask, ...] | None = None
        self._changed = trio.Event()
        self._failure: WorkerFailed | None = None

    @property
    def waiting(self) -> int:
        return self._window.waiting

    @property
    def running(self) -> int:
        return self._window.flying

    async def ask(self, request: Predict, data: bytes, client: str) -> Told:
        """A call that fits the model's interface. client: who takes turns with others.

        Raises Busy, WorkerFailed.
        """
        if self._failure is not None:
            raise WorkerFailed(self._failure.reason, limit=self._failure.limit)
        group = self._group(request, client)
        mine = Ask(next(self._numbers), client, group, request.shape[0], len(data))
        self._window.submit(mine, trio.current_time())
        asked = self._asked[mine.number] = _Asked(request, data)
        try:
            if self._handed is None:
                batch = self._window.plan(trio.current_time())
                if batch == (mine,):
                    await self._compute(batch)
                elif batch is not None or self._window.deadline is not None:
                    self._handed = batch
                    self._changed.set()
            await asked.answered.wait()
        finally:
            del self._asked[mine.number]
            if asked.outcome is None:
                self._window.cancel(mine.number)
        if isinstance(asked.outcome, Told):
            return asked.outcome
        raise asked.outcome or WorkerFailed("no answer")

    def _group(self, request: Predict, client: str) -> Hashable | None:
        """As `group_of`, of which the last are remembered: clients ask the same way again and again."""
        kind = request.dtype, request.shape[1:], request.output, client
        if kind not in self._groups:
            if len(self._groups) >= MAX_GROUPS:
                self._groups.clear()
            self._groups[kind] = group_of(
                self._interface, request.dtype, request.shape, request.output, client, apart=self._apart
            )
        return self._groups[kind]

    async def run(self) -> None:
        """Compute batch after batch, as long as the worker lives."""
        while True:
            batch, self._handed = self._handed or self._window.plan(trio.current_time()), None
            if batch is not None:
                await self._compute(batch)
                continue
            self._changed = trio.Event()
            with trio.move_on_at(self._window.deadline or float("inf")):
                await self._changed.wait()

    def close(self, failure: WorkerFailed) -> None:
        """Everybody who waits is told, and whoever asks from now on."""
        self._failure = self._failure or failure
        self._handed = None
        self._window.clear()
        for asked in self._asked.values():
            if asked.outcome is None:
                asked.settle(WorkerFailed(self._failure.reason, limit=self._failure.limit))

    async def _compute(self, batch: tuple[Ask, ...]) -> None:
        members = [asked for one in batch if (asked := self._asked.get(one.number)) is not None]
        try:
            told = await self._told(members)
        except CellulerError as error:
            if self._ended():
                self.close(error if isinstance(error, WorkerFailed) else WorkerFailed(str(error)))
                return
            blamed = {one.number for one in self._window.failed(trio.current_time())}
            for number in blamed & self._asked.keys():
                self._asked[number].settle(error)
            self._changed.set()
            return
        except BaseException:  # whoever asked has left; the worker computes on, and others may be asked meanwhile
            if self._failure is None:
                self._window.done(trio.current_time())
            self._changed.set()
            raise
        if self._failure is None:
            self._window.done(trio.current_time())
            self._on_batch(sum(one.samples for one in batch))
            for asked, its in zip(members, told, strict=True):
                asked.settle(its)
        if self._window.waiting:
            self._changed.set()

    async def _told(self, members: Sequence[_Asked]) -> list[Told]:
        """One call for all of them. Raises WorkerFailed."""
        if not members:
            return []
        first, samples = members[0].request, [one.request.shape[0] for one in members]
        joined = members[0].data if len(members) == 1 else b"".join(one.data for one in members)
        request = Predict(first.dtype, (sum(samples), *first.shape[1:]), first.output)
        reply = await self._call(request, joined)
        answer: Any = reply.record
        data = memoryview(reply.blobs[0])
        if answer.shape[0] != sum(samples) or len(data) % sum(samples):
            raise WorkerFailed(f"the worker gave {answer.shape[0]} answers to {sum(samples)} samples")
        per, told, start = len(data) // sum(samples), [], 0
        for count in samples:
            part = bytes(data[start : start + count * per])
            told.append(Told(answer.dtype, (count, *answer.shape[1:]), part))
            start += count * per
        return told


@asynccontextmanager
async def open_batching(
    call: Call,
    interface: Interface,
    *,
    samples: int = USUAL.samples,
    queue: int = USUAL.queue,
    apart: bool,
    ended: Callable[[], bool],
    on_batch: Callable[[int], None] = lambda _: None,
) -> AsyncIterator[Batching]:
    """Ready on entry; on exit everybody who still waits is told that the model was unloaded, or with what WorkerFailed.

    samples: that are computed together at most, 1 to have each prediction computed alone.
    """
    limits = WindowLimits(samples=most_together(interface, samples), queue=queue, client_queue=max(1, queue // 2))
    batching = Batching(call, interface, limits, apart=apart, ended=ended, on_batch=on_batch)
    async with own_nursery() as nursery:
        nursery.start_soon(batching.run)
        try:
            yield batching
        except WorkerFailed as failure:
            batching.close(failure)
            raise
        finally:
            batching.close(WorkerFailed("the model was unloaded"))
