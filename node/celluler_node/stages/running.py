"""One stage in its worker: what is asked of it by several askers goes through it in one batch after another.

A step takes one row of every slot that waits, the longest waiting first, up to so many places: places of a long prompt
hold up the others by that much at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from celluler.errors import CellulerError, Unavailable, WorkerFailed
from celluler.inference.caching import MAX_SLOTS
from celluler.inference.questions import Message, Prompt
from celluler.inference.requests import Drawn
from celluler.inference.sampling import Chosen, Sampling
from celluler_node.processes.words import Reply
from celluler_node.processes.worker_generate_words import (
    Converse,
    Encode,
    SlotsStepped,
    Turn,
    blob_of,
    stepped_of,
    tokens_of,
)
from celluler_node.processes.worker_stages_words import (
    CloseSequence,
    Drawing,
    OpenSequence,
    Row,
    RowDone,
    StepStage,
)

PLACES_A_STEP = 256

Call = Callable[..., Awaitable[Reply]]


@dataclass(slots=True)
class _Waiting:
    row: Row
    data: bytes
    done: trio.Event = field(default_factory=trio.Event)
    told: bytes | Chosen | None = None
    failure: CellulerError | None = None


class RunningStage:
    """`run` must run. A worker that has failed fails all that is asked, from then on."""

    def __init__(self, call: Call, slots: int) -> None:
        """call: of a worker in which the stage is loaded."""
        self._call = call
        self._free = list(range(slots))
        self._waiting: deque[_Waiting] = deque()
        self._asked = trio.Event()
        self._failure: WorkerFailed | None = None

    @property
    def free(self) -> int:
        """Slots that nobody has."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """So many slots, or as many as there are."""
        taken, self._free = self._free[:count], self._free[count:]
        return taken

    async def give_back(self, slots: list[int]) -> None:
        """Whoever opens one next empties it in any case."""
        try:
            for slot in slots:
                await self.close(slot)
        finally:
            self._free += slots

    async def read(self, prompt: Prompt) -> tuple[int, ...]:
        """Tokens of a text or a conversation."""
        self._check()
        if isinstance(prompt, str):
            reply = await self._call(Encode(), prompt.encode("utf-8", "replace"))
        else:
            messages = [one for one in prompt if isinstance(one, Message)]
            turns = (Turn(one.role, one.text.encode("utf-8", "replace").decode("utf-8")) for one in messages)
            reply = await self._call(Converse(tuple(turns)))
        return tuple(tokens_of(bytes(reply.blobs[0])))

    async def open(self, slot: int, wire: str, sampling: Sampling | None, context: tuple[int, ...]) -> None:
        self._check()
        drawing = None if sampling is None else _drawing(sampling)
        await self._call(OpenSequence(slot, wire, drawing), blob_of(context))

    async def close(self, slot: int) -> None:
        if self._failure is None:
            await self._call(CloseSequence(slot))

    async def step(self, row: Row, data: bytes) -> bytes | Chosen | None:
        """Hidden states, or a token, or nothing, as the row wants. Raises Unavailable for a row that failed."""
        self._check()
        waiting = _Waiting(row, data)
        self._waiting.append(waiting)
        self._asked.set()
        try:
            await waiting.done.wait()
        except trio.Cancelled:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            raise
        if waiting.failure is not None:
            raise waiting.failure
        return waiting.told

    async def run(self) -> None:
        """As long as the worker does what it is asked."""
        while self._failure is None:
            rows = self._next()
            if not rows:
                self._asked = trio.Event()
                await self._asked.wait()
                continue
            try:
                await self._step(rows)
            except WorkerFailed as error:
                for one in rows:
                    self._settle(one, failure=error)
                self.fail(error)

    def fail(self, failure: WorkerFailed) -> None:
        """Whoever waits, and whoever asks from now on, is told."""
        self._failure = self._failure or failure
        while self._waiting:
            self._settle(self._waiting.popleft(), failure=self._failure)
        self._asked.set()

    def _next(self) -> list[_Waiting]:
        """What the next step takes; one row of a slot, since an asker has one under way."""
        taken: list[_Waiting] = []
        slots: set[int] = set()
        places = 0
        for one in tuple(self._waiting):
            if one.row.slot in slots or len(taken) == MAX_SLOTS:
                continue
            if taken and places + one.row.count > PLACES_A_STEP:
                continue
            taken.append(one)
            slots.add(one.row.slot)
            places += one.row.count
        for one in taken:
            self._waiting.remove(one)
        return taken

    async def _step(self, rows: list[_Waiting]) -> None:
        reply = await self._call(StepStage(tuple(one.row for one in rows)), b"".join(one.data for one in rows))
        told: tuple[RowDone, ...] = reply.record.rows
        out, start = bytes(reply.blobs[0]), 0
        if len(told) != len(rows) or sum(one.out_bytes for one in told) != len(out):
            raise WorkerFailed("the worker's answer is not that of the rows it was asked")
        for one, done in zip(rows, told, strict=True):
            data, start = out[start : start + done.out_bytes], start + done.out_bytes
            if done.failed:
                self._settle(one, failure=Unavailable(done.failed))
            elif done.drawn is not None:
                self._settle(one, _chosen(one.row, done))
            else:
                self._settle(one, data or None)

    def _settle(
        self, one: _Waiting, told: bytes | Chosen | None = None, *, failure: CellulerError | None = None
    ) -> None:
        one.told, one.failure = told, failure
        one.done.set()

    def _check(self) -> None:
        if self._failure is not None:
            raise WorkerFailed(self._failure.reason, limit=self._failure.limit)


def _drawing(its: Sampling) -> Drawing:
    return Drawing(float(its.temperature), float(its.top_p), its.top_k, its.seed, its.choice, its.logprobs)


def _chosen(row: Row, done: RowDone) -> Chosen | None:
    assert done.drawn is not None
    drawn: Drawn = stepped_of(SlotsStepped(0, (done.drawn,))).drawn[0]
    return drawn.chosen
