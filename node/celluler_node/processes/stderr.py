"""What a process writes to stdout and stderr: the last lines are kept for the reason of its end, the first logged."""

from __future__ import annotations

import os
from collections import deque
from typing import Any

import trio

from celluler_node.processes.channel import printable

_KEPT_LINES = 50
_LOGGED_LINES = 2000
_LINE_BYTES = 500
_FLOOD_PAUSE_S = 0.05


class Tail:
    """Owns the reading end of the pipe. A process that writes without end costs neither memory nor disk."""

    def __init__(self, descriptor: int, log: Any) -> None:
        self._stream = trio.lowlevel.FdStream(os.dup(descriptor))
        self._log = log
        self._kept: deque[str] = deque(maxlen=_KEPT_LINES)
        self._count = 0
        self.ended = trio.Event()

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(self._kept)

    async def read(self) -> None:
        partial = b""
        try:
            async with self._stream:
                while chunk := await self._stream.receive_some(1 << 14):
                    *whole, partial = (partial + chunk).split(b"\n")
                    for line in whole:
                        self._take(line)
                    partial = partial[-_LINE_BYTES:]
                    if self._count > _LOGGED_LINES:  # it floods: let it wait for us, and not the node for it
                        await trio.sleep(_FLOOD_PAUSE_S)
        except trio.BrokenResourceError:
            pass
        finally:
            if partial:
                self._take(partial)
            self.ended.set()

    def _take(self, raw: bytes) -> None:
        line = printable(raw.decode("utf-8", "replace").strip(), _LINE_BYTES)
        self._kept.append(line)
        self._count += 1
        if self._count <= _LOGGED_LINES:
            self._log.debug("process.output", line=line)
        elif self._count == _LOGGED_LINES + 1:
            self._log.info("process.output_no_longer_logged", lines=_LOGGED_LINES)
