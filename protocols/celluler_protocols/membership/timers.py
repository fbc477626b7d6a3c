"""Alarms for a machine without a clock: what is to be done, and when."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush


class Timer:
    """One alarm. After `cancel` it never fires."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[float], None]) -> None:
        self.action: Callable[[float], None] | None = action

    def cancel(self) -> None:
        self.action = None


class Timers:
    """A heap of alarms; those for the same time fire in the order they were set."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._serial = 0

    def at(self, when: float, action: Callable[[float], None]) -> Timer:
        """`action(now)` is called at or after `when`."""
        timer = Timer(action)
        self._serial += 1
        heappush(self._heap, (when, self._serial, timer))
        return timer

    def next(self) -> float | None:
        """When the earliest alarm is due."""
        heap = self._heap
        while heap and heap[0][2].action is None:
            heappop(heap)
        return heap[0][0] if heap else None

    def fire(self, now: float) -> None:
        """Do everything that is due, also what becomes due by it."""
        while (due := self.next()) is not None and due <= now:
            timer = heappop(self._heap)[2]
            action, timer.action = timer.action, None
            if action is not None:
                action(now)

    def postpone(self, delay_s: float) -> None:
        """Move every alarm."""
        self._heap = [(when + delay_s, serial, timer) for when, serial, timer in self._heap]
        heapify(self._heap)
