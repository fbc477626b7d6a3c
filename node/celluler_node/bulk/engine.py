"""The bulk process as the node has it: started when it is first needed, started anew when it died, and listened to.

Everything that hangs on the process ends with it: movers raise, roots are held no more. After it failed several times
in a row it is left alone for a while, longer each time, and transfers go over libp2p meanwhile.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import trio

from celluler.errors import CellulerError, Unavailable, WorkerFailed
from celluler_node.bulk.mover import BulkMover
from celluler_node.bulk.words import BULK, BULK_LIMITS, Await, News, Open, Opened, unpack_outcomes
from celluler_node.processes.supervisor import Child, open_process
from celluler_node.processes.words import Reply

OPEN_S = 20.0
FIRST_REST_S, MAX_REST_S = 0.5, 30.0
"""After the second failure in a row, and at most."""
HEALTHY_S = 60.0
"""A process that lived so long has not failed at once."""

_log = structlog.get_logger("celluler.bulk")


@dataclass(eq=False)
class Running:
    """A process that is open. movers: by transfer. held: by number of the ticket."""

    child: Child
    opened: Opened
    movers: dict[int, BulkMover] = field(default_factory=dict)
    held: dict[int, ExitStack] = field(default_factory=dict)
    failure: CellulerError | None = None

    def hold(self, number: int, held: ExitStack) -> None:
        """Keep this until the process releases the number, or dies. Raises Unavailable when it has died."""
        if self.failure is not None:
            held.close()
            raise self.failure
        self.held[number] = held

    def close(self, error: CellulerError) -> None:
        self.failure = error
        for mover in self.movers.values():
            mover.fail(error)
        for stack in self.held.values():
            stack.close()
        self.held.clear()


class _Attempt:
    """One process, or the way to it."""

    def __init__(self) -> None:
        self.ready = trio.Event()
        self.running: Running | None = None
        self.failure: CellulerError | None = None


class Engine:
    """`nursery` carries the process. on_sent: told how many bytes of content went to whom."""

    def __init__(
        self,
        order: Open,
        scratch: Callable[[str], AbstractAsyncContextManager[Path]],
        nursery: trio.Nursery,
        on_sent: Callable[[str, int], None],
    ) -> None:
        self._order, self._scratch, self._nursery, self._on_sent = order, scratch, nursery, on_sent
        self._attempt: _Attempt | None = None
        self._failures = 0
        self._rest_until_s = float("-inf")

    @property
    def running(self) -> Running | None:
        """The process, if it is there."""
        return self._attempt.running if self._attempt is not None else None

    async def start(self) -> Running:
        """The process, started if it is not there. Raises Unavailable."""
        if self._attempt is None:
            if trio.current_time() < self._rest_until_s:
                raise Unavailable("the bulk process failed a moment ago")
            self._attempt = _Attempt()
            self._nursery.start_soon(self._keep, self._attempt)
        attempt = self._attempt
        await attempt.ready.wait()
        if attempt.running is None or attempt.failure is not None:
            raise Unavailable(f"no bulk process: {attempt.failure}")
        return attempt.running

    async def _keep(self, attempt: _Attempt) -> None:
        """The life of one process."""
        began_s = trio.current_time()
        try:
            async with (
                self._scratch("bulk") as scratch,
                open_process(BULK, limits=BULK_LIMITS, scratch=scratch) as child,
            ):
                attempt.running = await self._open(child)
                attempt.ready.set()
                while True:
                    self._take(attempt.running, await child.call(Await()))
        except (CellulerError, OSError) as error:
            attempt.failure = error if isinstance(error, CellulerError) else Unavailable(str(error))
            _log.warning("bulk.failed", reason=str(error))
            self._rest(trio.current_time() - began_s)
        finally:
            self._attempt = None
            attempt.failure = attempt.failure or Unavailable("the node is stopping")
            if attempt.running is not None:
                attempt.running.close(Unavailable(f"the bulk process ended: {attempt.failure}"))
            attempt.ready.set()

    async def _open(self, child: Child) -> Running:
        with trio.move_on_after(OPEN_S):
            opened = (await child.call(self._order)).record
            if not isinstance(opened, Opened):
                raise WorkerFailed("bulk: another answer than the one due")
            if opened.reason:
                _log.warning("bulk.cannot_listen", reason=opened.reason)
            _log.info("bulk.open", port=opened.port, confined=opened.confined)
            return Running(child, opened)
        raise WorkerFailed(f"bulk: not open within {OPEN_S:g} s")

    def _take(self, running: Running, reply: Reply) -> None:
        news = reply.record
        if not isinstance(news, News) or len(reply.blobs) > 1:
            raise WorkerFailed("bulk: another answer than the one due")
        try:
            for transfer, number, outcome in unpack_outcomes(b"".join(reply.blobs)):
                if (mover := running.movers.get(transfer)) is not None:
                    mover.came(number, outcome)
        except struct.error:
            raise WorkerFailed("bulk: outcomes cut short") from None
        for ended in news.ended:
            if (mover := running.movers.get(ended.transfer)) is not None:
                mover.end(ended)
        for number in news.released:
            if (stack := running.held.pop(number, None)) is not None:
                stack.close()
        for carried in news.carried:
            self._on_sent(carried.peer, carried.sent_bytes)

    def _rest(self, lived_s: float) -> None:
        self._failures = 1 if lived_s >= HEALTHY_S else self._failures + 1
        if self._failures > 1:
            rest_s = min(MAX_REST_S, FIRST_REST_S * 2 ** min(self._failures - 2, 16))
            self._rest_until_s = trio.current_time() + rest_s
