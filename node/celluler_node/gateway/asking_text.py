"""Answers that are asked for over HTTP: so many at once, the rest turned away, and each counted."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

import trio

from celluler.errors import Busy, CellulerError
from celluler.inference.questions import Event, Finished, Generated, Question, Said
from celluler_node.gateway.counted import Counted
from celluler_node.gateway.failures import kind_of
from celluler_node.operations import Operations

MAX_ASKED = 256
"""Questions at once, at work or waiting for a slot of their model."""

FAULT = "Fault"

OnBegun = Callable[[Sequence[Generated]], Awaitable[None]]
OnTold = Callable[[int, Event], Awaitable[None]]
"""With the place of the question among those of the request."""


class AskingText:
    """counted: told of every answer. most: questions at once."""

    def __init__(self, operations: Operations, counted: Counted, *, most: int = MAX_ASKED) -> None:
        self._operations, self._counted, self._most = operations, counted, most
        self.under_way = 0
        self.silent = 0
        """Those of them that have not said a word yet: in a queue, or being read."""

    async def generate(
        self, model: str, questions: Sequence[Question], on_begun: OnBegun, on_told: OnTold, *, peer: str = ""
    ) -> None:
        """All questions of one request, at once. Raises what `Operations.generate` does, and Busy when there are too
        many already."""
        if self.under_way + len(questions) > self._most:
            self._counted.not_written["Busy"] += 1
            raise Busy(f"{self._most} answers are being written here already")
        self.under_way += len(questions)
        failed = "Cancelled"  # which comes in groups where nurseries are between: told by nothing else having come
        try:
            async with AsyncExitStack() as stack:
                began = time.monotonic()
                opened = [
                    await stack.enter_async_context(self._operations.generate(model, one, peer=peer))
                    for one in questions
                ]
                await on_begun(opened)
                await self._follow_all(opened, began, on_told)
            failed = ""
        except Exception as error:
            failed = kind_of(error) if isinstance(error, CellulerError) else FAULT
            raise
        finally:
            self.under_way -= len(questions)
            if failed:
                self._counted.not_written[failed] += 1

    async def _follow_all(self, opened: Sequence[Generated], began: float, on_told: OnTold) -> None:
        if len(opened) == 1:
            await self._follow(0, opened[0], began, on_told)
            return
        failures: list[CellulerError] = []

        async def follow(place: int, one: Generated) -> None:
            try:
                await self._follow(place, one, began, on_told)
            except CellulerError as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for place, one in enumerate(opened):
                nursery.start_soon(follow, place, one)
        if failures:
            raise failures[0]

    async def _follow(self, place: int, one: Generated, began: float, on_told: OnTold) -> None:
        first: float | None = None
        self.silent += 1
        try:
            async for event in one:
                if first is None and isinstance(event, Said):
                    first, self.silent = time.monotonic(), self.silent - 1
                    self._counted.first_said(one.model, first - began)
                if isinstance(event, Finished):
                    now = time.monotonic()
                    self._counted.written(one.model, event, now - began, now - (first or now))
                await on_told(place, event)
        finally:
            self.silent -= first is None
