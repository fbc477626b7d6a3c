"""What every driver of a run does alike: hand events to a machine, carry out what it asks for, keep its time.

What an effect means is the driver's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import trio

from celluler.errors import Unavailable
from celluler.identity import PeerId
from celluler_node.bounded import plain
from celluler_protocols.rounds import Rounds

E_co = TypeVar("E_co", covariant=True)
E = TypeVar("E")


class Machine(Protocol[E_co]):
    """Sans-IO. Times are those of trio's clock."""

    @property
    def settled(self) -> bool: ...

    def start(self, now: float) -> tuple[E_co, ...]: ...

    def receive(self, peer: PeerId, data: bytes, now: float, /) -> tuple[E_co, ...]: ...

    def tick(self, now: float) -> tuple[E_co, ...]: ...

    def next_deadline(self) -> float | None: ...


class Drive(Generic[E]):
    """One machine at work. `run` it once.

    nursery: of everything that the driver begins for it. finished: set by the driver when the result is there. settled:
    set when every member alive says that it has finished: nobody needs us any more.
    """

    nursery: trio.Nursery

    def __init__(self, machine: Machine[E], streams: Rounds, carry_out: Callable[[E], None]) -> None:
        self._machine, self._streams, self._carry_out = machine, streams, carry_out
        self._changed = trio.Event()
        self._failure: Unavailable | None = None
        self.finished, self.settled = trio.Event(), trio.Event()

    async def run(self) -> None:
        """Until the caller cancels. Raises what `fail` was given, and what the work raises."""
        try:
            async with trio.open_nursery() as self.nursery:
                self.nursery.start_soon(self._listen)
                self.perform(self._machine.start(trio.current_time()))
                await self._keep_time()
        except BaseExceptionGroup as group:
            raise plain(group) from None

    def perform(self, effects: tuple[E, ...]) -> None:
        for effect in effects:
            self._carry_out(effect)
        if self._machine.settled:
            self.settled.set()
        self._changed.set()

    def fail(self, failure: Unavailable) -> None:
        """The run is over without a result."""
        self._failure = failure
        self._changed.set()

    async def _listen(self) -> None:
        async for peer, data in self._streams:
            self.perform(self._machine.receive(peer, data, trio.current_time()))

    async def _keep_time(self) -> None:
        while self._failure is None:
            self._changed = trio.Event()
            deadline = self._machine.next_deadline()
            with trio.move_on_at(math.inf if deadline is None else deadline):
                await self._changed.wait()
                continue
            self.perform(self._machine.tick(trio.current_time()))
        raise self._failure
