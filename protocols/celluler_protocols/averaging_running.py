"""An exchange that runs: what is awaited in it, and what comes in on its streams. asyncio; knows no network library."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from celluler.errors import PeerViolation
from celluler_protocols.averaging_exchange import Exchange, Sealed, Slot
from celluler_protocols.averaging_messages import Ready, Reduced, Taken
from celluler_protocols.averaging_stream import Stream


@dataclass(slots=True)
class Running:
    """changed: something has come. tasks: those that end with it.

    foreseen: of each part whose inputs go to all, what we find by ourselves once they are there.
    """

    exchange: Exchange
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    foreseen: dict[int, asyncio.Task[Sealed | None]] = field(default_factory=dict)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    async def gathered(self, part: int) -> None:
        """Until all inputs of a part are there, or the gathering time is over."""
        gathering = self.exchange.gatherings[part]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.exchange.plan.gather_s):
                while not gathering.complete:
                    self.changed.clear()
                    await self.changed.wait()

    async def foresee(self, part: int) -> Sealed | None:
        """Compute beside its reducer what it will tell us. None when inputs are missing: then we must be told."""
        gathering = self.exchange.gatherings[part]
        await self.gathered(part)
        if not gathering.complete:
            return None
        gathering.closed = True
        used = sum(1 << member for member in gathering.there)
        return await asyncio.to_thread(self.exchange.foresee, part, used)

    async def is_found(self, peer: str, message: Reduced) -> bool:
        """Whether we have found by ourselves what a reducer announces; what it used may be less than what we have."""
        exchange = self.exchange
        if not exchange.plan.to_all:
            return False
        exchange.is_announced(peer, message)
        sealed = await asyncio.shield(self.foreseen[message.part])
        if sealed is None or sealed.result.used != message.used:
            exchange.gatherings[message.part].closed = True
            sealed = await asyncio.to_thread(exchange.foresee, message.part, message.used)
        exchange.is_announced(peer, message)  # another stream may have brought it meanwhile
        return sealed is not None and exchange.settle(message, sealed)

    async def receive(self, stream: Stream, slots: Sequence[Slot]) -> None:
        """One after another. What is wrong with one is told at the end: the others count."""
        wrong: PeerViolation | None = None
        left = list(slots)
        try:
            await stream.say(Ready())
            while left:
                await stream.receive_into(left[0].target)
                try:
                    self.exchange.finish(left.pop(0))
                except PeerViolation as error:
                    wrong = wrong or error
                self.changed.set()
        except BaseException:
            for slot in left:
                self.exchange.broken(slot)
            raise
        if wrong is not None:
            raise wrong
        await stream.say(Taken())
