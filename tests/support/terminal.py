"""A program at a terminal: what a person would see of it and type."""

from __future__ import annotations

import os
import pty
import select
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """`seen`: all that was shown."""

    def __init__(self, side: int, process: subprocess.Popen[bytes]) -> None:
        self._side, self._process = side, process
        self._read = 0
        self.seen = b""

    def until(self, text: str, *, within_s: float = 30.0) -> None:
        """Wait for what is shown after all that was waited for before."""
        deadline = time.monotonic() + within_s
        while (at := self.seen.find(text.encode(), self._read)) < 0:
            ready, _, _ = select.select([self._side], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {text!r} after {within_s:g} s in {self.seen[self._read :]!r}"
            self.seen += os.read(self._side, 1 << 16)
        self._read = at + len(text.encode())

    def type(self, text: str) -> None:
        os.write(self._side, text.encode())

    def end(self, *, within_s: float = 30.0) -> int:
        """Exit code of a program that ends by itself."""
        return self._process.wait(within_s)


@contextmanager
def open_terminal(command: Sequence[str], env: Mapping[str, str]) -> Iterator[Terminal]:
    """The program, and nothing else, hears what is typed. Gone at the end."""
    side, other = pty.openpty()
    name = shlex.quote(os.ttyname(other))
    # Opened by the leader of a session it is that session's terminal: Ctrl-C is a signal there.
    program = f"exec {shlex.join(command)} <>{name} >&0 2>&0"
    process = subprocess.Popen(["/bin/sh", "-c", program], env={**env, "TERM": "dumb"}, start_new_session=True)
    try:
        yield Terminal(side, process)
    finally:
        process.kill()
        process.wait()
        os.close(side)
        os.close(other)  # until the program has opened it, nobody else has, and there would be nothing to read
