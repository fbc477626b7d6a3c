"""Waiting for another process: bounded, and failing with what was seen last."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
POLL_S = 0.1


def eventually(what: Callable[[], T], *, within_s: float = 30.0) -> T:
    """Ask again until the answer is true. For what another process tells only when asked."""
    deadline = time.monotonic() + within_s
    while not (answer := what()):
        assert time.monotonic() < deadline, f"still {answer!r} after {within_s:g} s"
        time.sleep(POLL_S)
    return answer
