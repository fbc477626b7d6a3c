"""An averager that keeps the protocol's form and lies in its matter: one lie a round, in turn.

It is the real averager with another `Exchange` inside, so everything that it does not lie about is done right.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import Any

from celluler.aggregation.rule import Reduced as RuleResult
from celluler_node.processes import averager as averager_process
from celluler_node.processes.serving import Link
from celluler_protocols import averaging
from celluler_protocols.averaging_daemon import DaemonError
from celluler_protocols.averaging_exchange import Delivery, Exchange, Sealed
from celluler_protocols.averaging_messages import Reduced
from simulations.attacks.averager_lies import (
    BROKEN_STREAM,
    GARBAGE,
    OTHER_BYTES,
    OTHER_LENGTH,
    OTHER_SET,
    TORN_AGGREGATE,
    WRONG_AGGREGATE,
)


class LyingExchange(Exchange):
    def parts_to_send(self) -> list[Delivery]:
        deliveries = super().parts_to_send()
        match self.plan.round:
            case n if n == OTHER_BYTES:
                return [replace(each, body=_changed(each.body)) for each in deliveries]
            case n if n == OTHER_LENGTH:
                return [replace(each, message=replace(each.message, size=each.message.size - 2)) for each in deliveries]
            case n if n == BROKEN_STREAM:
                return [replace(each, body=memoryview(each.body)[:-2]) for each in deliveries]
        return deliveries

    def seal(self, part: int, used: tuple[int, ...], result: RuleResult) -> Sealed:
        if self.plan.round == WRONG_AGGREGATE:  # told to everybody alike: only who reduces anew can see it
            result = replace(result, mantissas=result.mantissas // 2)
        return super().seal(part, used, result)

    def publish(self, sealed: Sealed) -> list[Delivery]:
        deliveries = super().publish(sealed)
        match self.plan.round:
            case n if n == TORN_AGGREGATE:
                return [replace(each, body=_changed(each.body)) for each in deliveries]
            case n if n == OTHER_SET:
                return [replace(each, message=_of_another_set(each.message)) for each in deliveries]
        return deliveries


class LyingAverager(averaging.Averager):
    async def exchange(self, plan: Any, own: Any) -> Any:
        if plan.round == GARBAGE:
            others = [member.peer for member in plan.members if member.peer != self.peer_id]
            await asyncio.gather(*(self._throw(peer) for peer in others))
        return await super().exchange(plan, own)

    async def _throw(self, peer: str) -> None:
        """Streams of nonsense: no frames, a frame of four gigabytes, a word that begins nothing, and an early end."""
        for nonsense in (b"\xff" * 64, bytes(64), b"\0\0\0\4\x92\x04\x90\xc0", b"\0\0\0\3\x92\x04\x90", b"\0"):
            with contextlib.suppress(OSError, EOFError, DaemonError):
                _, writer = await self._open_stream(peer)
                writer.write(nonsense)
                writer.close()


def _changed(body: bytes | bytearray | memoryview) -> bytes:
    return bytes([body[0] ^ 1]) + bytes(body[1:])


def _of_another_set(message: Any) -> Reduced:
    return replace(message, set_hash=bytes(32))


def main(link: Link) -> None:
    averaging.Exchange = LyingExchange  # type: ignore[misc]
    averaging.Averager = LyingAverager  # type: ignore[misc]
    averager_process.main(link)
