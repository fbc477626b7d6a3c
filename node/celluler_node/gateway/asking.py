"""Predictions that are asked for over HTTP, whichever surface they come by: so many at work, so many waiting, the
rest turned away at once."""

from __future__ import annotations

import time

import trio

from celluler.errors import Busy, CellulerError
from celluler.tensors import Tensor
from celluler.views import Prediction
from celluler_node.gateway.counted import Counted
from celluler_node.gateway.failures import kind_of
from celluler_node.operations import Operations

MAX_AT_WORK = 64
MAX_WAITING = 256


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

    async def predict(self, ref: str, inputs: Tensor, output: str = "") -> Prediction:
        """As `Operations.predict`. Raises Busy, too, when so many wait already."""
        began = time.monotonic()
        try:
            prediction = await self._predicted(ref, inputs, output)
        except CellulerError as error:
            self.counted.refused[kind_of(error)] += 1
            raise
        samples = inputs.shape[0] if inputs.shape else 0
        self.counted.predicted(prediction.model, samples, time.monotonic() - began)
        return prediction

    async def _predicted(self, ref: str, inputs: Tensor, output: str) -> Prediction:
        if self.waiting >= self._most_waiting:
            raise Busy(f"{self._most_waiting} predictions wait here already")
        async with self._places:
            return await self._operations.predict(ref, inputs, output)
