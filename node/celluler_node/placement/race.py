"""A prediction, from whoever gives it first: the best peer, and the next one when it is late, gone or wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import trio

from celluler.content.digest import Digest
from celluler.errors import CellulerError, TimedOut
from celluler.identity import PeerId
from celluler.inference.hedging import Hedging
from celluler_node.placement.chooser import final, gravest
from celluler_protocols.nursery import own_nursery

T = TypeVar("T")

ANSWER_S = 120.0
"""End to end, however many peers are asked: one of them may have to fetch and load the model first."""
LATE_S = 15.0
"""When another is asked, while it is not known how long an answer takes."""
MAX_ASKED = 8


@dataclass(slots=True)
class _Outcome(Generic[T]):
    peer: PeerId
    answer: T | None = None
    failure: CellulerError | None = None


@dataclass(slots=True)
class Race(Generic[T]):
    """peers: whom to ask, in this order. ask: one of them; what it raises is held against the peer by itself."""

    model: Digest
    peers: Sequence[PeerId]
    ask: Callable[[PeerId], Awaitable[T]]
    hedging: Hedging[bytes]
    _failures: list[CellulerError] = field(default_factory=list)
    _running: int = 0

    async def run(self) -> tuple[PeerId, T]:
        """The first answer, and whose it is; who lost is cancelled. Raises LocalError at once, else when all have
        failed Busy if one was, or what the last one failed with; TimedOut."""
        won: _Outcome[T] | None = None
        try:
            with trio.fail_after(ANSWER_S):
                async with own_nursery() as nursery:
                    won = await self._first(nursery)
        except trio.TooSlowError:
            raise TimedOut(f"no prediction within {ANSWER_S:g} s") from None
        assert won is not None
        assert won.answer is not None
        return won.peer, won.answer

    async def _first(self, nursery: trio.Nursery) -> _Outcome[T]:
        send, receive = trio.open_memory_channel[_Outcome[T]](MAX_ASKED)
        waiting = list(self.peers[:MAX_ASKED])
        self.hedging.asked()
        hedge_at = trio.current_time() + (self.hedging.hedge_after(self.model) or LATE_S)
        self._start(nursery, waiting, send)
        while self._running:
            outcome: _Outcome[T] | None = None
            with trio.move_on_at(hedge_at if waiting else float("inf")):
                outcome = await receive.receive()
            if outcome is None:
                hedge_at = float("inf")
                if self.hedging.spend():
                    self._start(nursery, waiting, send)
            elif outcome.failure is None:
                return outcome
            else:
                self._running -= 1
                self._failures.append(outcome.failure)
                if final(outcome.failure):
                    raise outcome.failure
                self._start(nursery, waiting, send)
        raise gravest(self._failures)

    def _start(self, nursery: trio.Nursery, waiting: list[PeerId], send: trio.MemorySendChannel[_Outcome[T]]) -> None:
        if waiting:
            self._running += 1
            nursery.start_soon(self._run_one, waiting.pop(0), send)

    async def _run_one(self, peer: PeerId, send: trio.MemorySendChannel[_Outcome[T]]) -> None:
        try:
            outcome = _Outcome(peer, await self.ask(peer))
        except CellulerError as error:
            outcome = _Outcome(peer, failure=error)
        send.send_nowait(outcome)
