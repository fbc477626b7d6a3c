"""What the ways of bringing a content have in common: processes that do as they are told, one line of JSON a time.

A way is a function from an empty folder to the seconds it took to have the content in it, durably. Providers and
clients are processes of their own, started before anything is timed and used for all repeats.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

MIB = 1 << 20
ANSWER_S = 300.0

Way = Callable[[Path], float]
"""Brings the content into this folder, which is empty; the seconds from the first packet to the last byte on disk."""


class Missing(Exception):
    """A way that this machine has not got, or that failed; the text says why. The others are measured all the same."""


@dataclass(frozen=True, slots=True)
class Content:
    """What is brought: random bytes in a file."""

    path: Path
    scratch: Path

    @property
    def size(self) -> int:
        return self.path.stat().st_size


class Child:
    """Another process of ours. It introduces itself by a line and then answers each line with one."""

    def __init__(self, module: str, *arguments: str) -> None:
        command = [sys.executable, "-m", module, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.about: dict[str, Any] = {}

    def __enter__(self) -> Self:
        try:
            self.about = self._answer()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The end of its input is its order to go."""
        with suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def ask(self, **what: Any) -> dict[str, Any]:
        """Raises Missing when it ended instead, or did not answer in time."""
        return self.ask_and_watch(lambda _: None, **what)

    def ask_and_watch(self, watch: Callable[[dict[str, Any]], None], **what: Any) -> dict[str, Any]:
        """As `ask`; lines before the answer are news: they have a key `news`."""
        with suppress(OSError):
            self._process.stdin.write(json.dumps(what) + "\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
        while "news" in (answer := self._answer()):
            watch(answer)
        return answer

    def seconds(self, **what: Any) -> float:
        return float(self.ask(**what)["seconds"])

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=ANSWER_S)
        except queue.Empty:
            self.kill()
            raise Missing(f"no answer within {ANSWER_S:g} s") from None
        if not line:
            raise Missing(f"its process ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "missing" in answer:
            raise Missing(answer["missing"])
        return answer

    def _read(self) -> None:
        for line in self._process.stdout:  # type: ignore[union-attr]
            self._lines.put(line)
        self._lines.put("")


def say(**what: Any) -> None:
    """A child's line."""
    print(json.dumps(what), flush=True)


def orders() -> Iterable[dict[str, Any]]:
    """What a child is told, until its parent has no more."""
    for line in sys.stdin:
        yield json.loads(line)


def make_durable(path: Path) -> None:
    """For those who leave what they wrote in the kernel's memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
