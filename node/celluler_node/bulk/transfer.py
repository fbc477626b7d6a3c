"""What is fetched from one source: a thread that receives, hashes and writes, and nothing else in between.

Asks come from the thread of the channel and never wait: requests are small, and a server that reads none of them is
left. What is written was hashed before, so a file never holds a byte of ours that is not what it stands for.

Knows nothing of the node's index, nor which chunks make up a content.
"""

from __future__ import annotations

import errno
import itertools
import os
import ssl
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable

from celluler.content.bulk_frames import Answer, Client, FalseLength, Status
from celluler.content.digest import digest_of
from celluler.content.manifest import MAX_BLOCK_BYTES
from celluler.content.movers import Chunk
from celluler.errors import LocalError, ProtocolViolation
from celluler_node.bulk.dialling import Impostor, dial
from celluler_node.bulk.news import Bulletin
from celluler_node.bulk.throttle import Throttle
from celluler_node.bulk.wire import Wire
from celluler_node.bulk.words import (
    BUSY,
    DISK,
    FALSIFIED,
    FULL,
    GONE,
    LACKING,
    MAX_QUEUED,
    PLACED,
    VIOLATION,
    Dial,
    Dialled,
    Patience,
)

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class _Disk(Exception):
    """Our file could not be written."""


class _Busy(Exception):
    """The source has no time."""


class _False(Exception):
    """The source sent something else than was asked for."""


class Transfer:
    """One connection to one source, from the dialling to the end; `run` is its thread."""

    def __init__(
        self, order: Dial, context: ssl.SSLContext, bulletin: Bulletin, throttle: Throttle, patience: Patience
    ) -> None:
        self._order, self._context, self._bulletin = order, context, bulletin
        self._throttle, self._patience = throttle, patience
        self._answers = Client(bytearray(MAX_BLOCK_BYTES), max_in_flight=order.max_in_flight)
        self._queue: deque[tuple[int, Chunk]] = deque()
        self._asked: dict[int, tuple[int, Chunk]] = {}  # by number on the wire
        self._wire_numbers = itertools.cycle(range(1 << 32))
        self._asking = threading.Lock()
        self._wire: Wire | None = None
        self._file = -1
        self._owing_since_s = 0.0  # the source: since its last answer, or the first ask after it owed nothing
        self.stopping = threading.Event()
        self.ended = threading.Event()

    # --- the thread of the channel ---------------------------------------------------------------------------------

    def ask(self, chunks: list[tuple[int, Chunk]]) -> None:
        """Queue these, and send what may be sent. Raises LocalError for too many, or one longer than any chunk."""
        if len(self._queue) + len(self._asked) + len(chunks) > MAX_QUEUED:
            raise LocalError(f"more than {MAX_QUEUED} chunks asked of one source")
        if any(not 0 < chunk.length <= MAX_BLOCK_BYTES for _, chunk in chunks):
            raise LocalError(f"a chunk longer than {MAX_BLOCK_BYTES} bytes, or empty")
        if not self._answers.owes:
            self._owing_since_s = time.monotonic()
        self._queue.extend(chunks)
        try:
            self._request()
        except OSError:  # its own thread finds out and says why
            self.stop()

    def stop(self) -> None:
        """End it soon, whatever it waits for."""
        self.stopping.set()
        if self._wire is not None:
            self._wire.cut()

    # --- its own thread --------------------------------------------------------------------------------------------

    def run(self, dialled: Callable[[Dialled], None]) -> None:
        """Connect, say so, and move chunks until either end has enough."""
        try:
            if self._open(dialled):
                self._bulletin.ended(self._order.transfer, *self._move())
        except Exception:  # the boundary: whoever asked must hear that it is over
            traceback.print_exc()
            self._bulletin.ended(self._order.transfer, GONE, "a fault of ours")
        finally:
            if self._wire is not None:
                self._wire.close()
            if self._file >= 0:
                os.close(self._file)
            self.ended.set()

    def _use(self, wire: Wire) -> None:
        self._wire = wire
        if self.stopping.is_set():  # it came too late to be cut by `stop`
            wire.cut()

    def _open(self, dialled: Callable[[Dialled], None]) -> bool:
        order, patience = self._order, self._patience
        try:
            self._file = os.open(order.path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            wire = dial(
                order.hosts,
                order.port,
                order.pin,
                self._context,
                connect_s=patience.connect_s,
                stuck_s=patience.stuck_s,
                stopping=self.stopping,
                on_wire=self._use,
            )
            wire.send_now(order.ticket)
        except OSError as error:
            dialled(Dialled(str(error)[:300] or type(error).__name__, isinstance(error, Impostor)))
            return False
        dialled(Dialled("", False))
        return True

    def _move(self) -> tuple[int, str]:
        """Until it ends: why, and in words."""
        try:
            while not self.stopping.is_set():
                answer = self._next_answer()
                if answer is None:
                    return GONE, "the source closed the connection"
                self._settle(answer)
                self._request()
        except FalseLength as error:
            self._falsified(self._asked.pop(error.number)[0])
            return GONE, "the source lied"
        except _False:
            return GONE, "the source lied"
        except ProtocolViolation as error:
            return VIOLATION, str(error)
        except _Busy:
            return BUSY, "the source has no time"
        except _Disk as error:
            full = isinstance(error.__cause__, OSError) and error.__cause__.errno in _NO_ROOM
            return (FULL if full else DISK), str(error)
        except OSError as error:
            return GONE, str(error) or type(error).__name__
        return GONE, "stopped"

    def _next_answer(self) -> Answer | None:
        """None when the source has closed between two answers. Raises OSError, ProtocolViolation."""
        assert self._wire is not None
        self._owing_since_s = time.monotonic()
        answer = None
        while answer is None and not self.stopping.is_set():
            space = self._answers.space()
            count = self._receive(space[: self._throttle.slice_bytes(len(space))])
            if not count:
                return None
            answer = self._answers.filled(count)
            self._owing_since_s += self._throttle.wait(count, self.stopping)
        return answer

    def _receive(self, view: memoryview) -> int:
        """A source that owes nothing may be silent: it closes when it has had enough of that."""
        assert self._wire is not None
        while True:
            try:
                return self._wire.receive_into(view, self._owing_since_s + self._patience.stuck_s)
            except TimeoutError:
                owing_s = time.monotonic() - self._owing_since_s if self._answers.owes else 0.0
                if self.stopping.is_set() or owing_s > self._patience.stuck_s:
                    raise
                if not self._answers.owes:
                    self._owing_since_s = time.monotonic()

    def _settle(self, answer: Answer) -> None:
        if answer.status is Status.BUSY:
            raise _Busy
        number, chunk = self._asked.pop(answer.number)
        if answer.status is Status.NOT_FOUND:
            self._bulletin.outcome(self._order.transfer, number, LACKING)
        elif digest_of(answer.data) != chunk.digest:
            self._falsified(number)
            raise _False
        else:
            self._write(answer.data, chunk.places)
            self._bulletin.outcome(self._order.transfer, number, PLACED)

    def _falsified(self, number: int) -> None:
        self._bulletin.outcome(self._order.transfer, number, FALSIFIED)

    def _write(self, data: memoryview, places: tuple[int, ...]) -> None:
        try:
            for place in places:
                written = 0
                while written < len(data):
                    written += os.pwrite(self._file, data[written:], place + written)
        except OSError as error:
            raise _Disk(error.strerror or str(error)) from error

    def _request(self) -> None:
        """Send as many requests as may be in flight, from either thread."""
        with self._asking:
            parts = []
            while self._queue and self._answers.room:
                number, chunk = self._queue.popleft()
                wire_number = next(self._wire_numbers)
                self._asked[wire_number] = number, chunk
                parts.append(self._answers.request(wire_number, chunk.digest, chunk.length))
            if parts and self._wire is not None:
                self._wire.send_now(b"".join(parts))
