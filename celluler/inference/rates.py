"""How much there is of something a second, lately: what was long ago counts less and less."""

from __future__ import annotations

import math

LATELY_S = 10.0
"""After so long something counts 1/e of what it did."""


class Rate:
    """Time is an argument, and never goes back."""

    def __init__(self, lately_s: float = LATELY_S) -> None:
        self._lately_s = lately_s
        self._sum, self._at = 0.0, 0.0
        self.total = 0

    def add(self, count: int, now: float) -> None:
        self._sum = self._decayed(now) + count
        self._at = now
        self.total += count

    def per_second(self, now: float) -> float:
        return self._decayed(now) / self._lately_s

    def _decayed(self, now: float) -> float:
        return self._sum * math.exp(-max(0.0, now - self._at) / self._lately_s)
