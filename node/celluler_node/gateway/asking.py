"""Predictions that are asked for over HTTP, whichever surface they come by: so many at work, so many waiting, the
rest turned away at once."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

import trio
from starlette.exceptions import HTTPException
from starlette.requests import Request

from celluler.errors import Busy, CellulerError, InvalidSpec
from celluler.tensors import Tensor
from celluler.views import Prediction
from celluler_node.gateway.counted import Counted
from celluler_node.gateway.failures import kind_of
from celluler_node.operations import Operations
from celluler_protocols.nursery import own_nursery

T = TypeVar("T")

CLIENT_GONE = 499
"""As nginx counts it; no standard has one."""
MAX_AT_WORK = 64
MAX_WAITING = 256
MAX_ANSWER_BYTES = 1 << 28
"""Of all tensors of one answer."""
MAX_JSON_BYTES = 1 << 25
"""Of those that are written as JSON, which takes five times as much and more."""


class Asking:
    """counted: told of every prediction."""

    def __init__(
        self,
        operations: Operations,
        counted: Counted | None = None,
        *,
        at_work: int = MAX_AT_WORK,
        waiting: int = MAX_WAITING,
    ) -> None:
        self._operations, self.counted = operations, counted or Counted()
        self._places = trio.CapacityLimiter(at_work)
        self._most_waiting = waiting

    @property
    def at_work(self) -> int:
        return self._places.borrowed_tokens

    @property
    def waiting(self) -> int:
        return self._places.statistics().tasks_waiting

    async def predict(self, ref: str, inputs: Tensor, output: str = "", *, peer: str = "") -> Prediction:
        """As `Operations.predict`. Raises Busy, too, when so many wait already."""
        return await self._counting(partial(self._operations.predict, ref, inputs, output, peer=peer), inputs)

    async def ensemble(
        self, refs: Sequence[str], inputs: Tensor, output: str, *, members: int, aggregate: str
    ) -> Prediction:
        """As `Operations.ensemble`, and as `predict`; one prediction in the counts."""
        ask = partial(self._operations.ensemble, refs, inputs, output, members=members, aggregate=aggregate)
        return await self._counting(ask, inputs)

    async def _counting(self, ask: Callable[[], Awaitable[Prediction]], inputs: Tensor) -> Prediction:
        began = time.monotonic()
        try:
            prediction = await self._placed(ask)
        except CellulerError as error:
            self.counted.refused[kind_of(error)] += 1
            raise
        samples = inputs.shape[0] if inputs.shape else 0
        self.counted.predicted(prediction.model, samples, time.monotonic() - began)
        return prediction

    async def _placed(self, ask: Callable[[], Awaitable[Prediction]]) -> Prediction:
        if self.waiting >= self._most_waiting:
            raise Busy(f"{self._most_waiting} predictions wait here already")
        async with self._places:
            return await ask()


class Answer:
    """Predictions gathered for one answer: counted as they come, so that nobody has this node hold any number."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking
        self._bytes = {True: 0, False: 0}

    async def predict(self, ref: str, inputs: Tensor, output: str, *, binary: bool = False) -> Prediction:
        """As `Asking.predict`. Raises InvalidSpec, too, when all so far come to more than an answer may bear."""
        prediction = await self._asking.predict(ref, inputs, output)
        self._bytes[binary] += len(prediction.outputs.data)
        if self._bytes[False] > MAX_JSON_BYTES:
            told = f"come to more than {MAX_JSON_BYTES} bytes, too many for JSON; ask with less, or in binary"
            raise InvalidSpec("outputs", told)
        if sum(self._bytes.values()) > MAX_ANSWER_BYTES:
            raise InvalidSpec("outputs", f"come to more than {MAX_ANSWER_BYTES} bytes; ask with less")
        return prediction


async def while_wanted(request: Request, work: Callable[[], Awaitable[T]]) -> T:
    """What the work gives, whose request was read to its end. A client that goes away cancels it: here, in a worker and
    at a peer nobody computes for nobody. Raises HTTPException then, which is sent to no one."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        nursery.cancel_scope.cancel()

    async with own_nursery() as nursery:
        nursery.start_soon(watch)
        return await work()
    raise HTTPException(CLIENT_GONE, "the client has gone")
