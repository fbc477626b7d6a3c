"""The node's half of one transfer: asks go to the bulk process, what became of them comes back in its news."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import trio

from celluler.content.movers import Chunk, Falsified, Lacking, Moved, Placed
from celluler.errors import Busy, CellulerError, LocalError, ProtocolViolation, QuotaExceeded, Unavailable
from celluler_node.bulk import words
from celluler_node.bulk.words import Ended, Fetch, pack_chunks
from celluler_node.processes.words import Reply

Call = Callable[..., Awaitable[Reply]]
"""A request and its blobs, to the process."""

_OUTCOMES: dict[int, type[Placed | Lacking | Falsified]] = {
    words.PLACED: Placed,
    words.LACKING: Lacking,
    words.FALSIFIED: Falsified,
}


class BulkMover:
    """Implements `Mover` over a transfer of the process. on_placed: told the length of what came, once a chunk."""

    def __init__(self, transfer: int, peer: str, call: Call, on_placed: Callable[[int], None]) -> None:
        self.transfer, self.peer = transfer, peer
        self._call, self._on_placed = call, on_placed
        self._numbers = itertools.count()
        self._asked: dict[int, Chunk] = {}
        self._moved: deque[Moved] = deque()
        self._ended = False
        self._failure: CellulerError | None = None
        self._news = trio.Event()

    async def ask(self, chunks: Sequence[Chunk]) -> None:
        self._check()
        numbered = [(next(self._numbers) % (1 << 32), chunk) for chunk in chunks]
        self._asked.update(numbered)
        await self._call(Fetch(self.transfer), pack_chunks(numbered))

    async def receive(self) -> Sequence[Moved]:
        while not self._moved and not self._ended:
            self._news = trio.Event()
            await self._news.wait()
        moved = tuple(self._moved)
        self._moved.clear()
        if not moved:
            self._check(gone_is_error=False)
        return moved

    # --- what the process tells; the owner of the process calls these ----------------------------------------------

    def came(self, number: int, outcome: int) -> None:
        """Ignores what was not asked: it is the process that is wrong then, and a fetch does not depend on it."""
        chunk, kind = self._asked.pop(number, None), _OUTCOMES.get(outcome)
        if chunk is None or kind is None:
            return
        if kind is Placed:
            self._on_placed(chunk.length)
        self._moved.append(kind(chunk.digest))
        self._news.set()

    def end(self, ended: Ended) -> None:
        """It ended by itself."""
        reason = ended.reason
        match ended.why:
            case words.BUSY:
                self._failure = Busy(reason, peer=self.peer)
            case words.VIOLATION:
                self._failure = ProtocolViolation(reason, peer=self.peer)
            case words.DISK:
                self._failure = LocalError(f"the store's disk: {reason}")
            case words.FULL:
                self._failure = QuotaExceeded(f"the disk is full: {reason}")
        self._ended = True
        self._news.set()

    def fail(self, error: CellulerError) -> None:
        """The process has gone."""
        self._failure, self._ended = self._failure or error, True
        self._news.set()

    def _check(self, *, gone_is_error: bool = True) -> None:
        if self._failure is not None:
            raise self._failure
        if self._ended and gone_is_error:
            raise Unavailable("the source went away", peer=self.peer)
