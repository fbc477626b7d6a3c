"""What the process has to tell: collected from all its threads, told in batches by one.

A batch waits a moment for more, since each costs the node a turn of its loop; at full speed a moment is a few chunks.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import TypeVar

from celluler_node.bulk.words import MAX_NEWS, Carried, Ended, News, Outcome, pack_outcomes
from celluler_node.processes.words import Reply

BATCH_S = 0.004
BATCH_OUTCOMES = 16
CARRIED_S = 1.0
"""How long a count of bytes sent may wait: it is for people to look at."""

_MAX_OUTCOMES = 1 << 14
_T = TypeVar("_T")


class Bulletin:
    """Threads put in; `tell` runs in one of its own. Bounded by what was asked: nothing comes in unasked."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._reader: Callable[[Reply], None] | None = None
        self._outcomes: deque[Outcome] = deque()
        self._ended: deque[Ended] = deque()
        self._released: deque[int] = deque()
        self._carried: Counter[str] = Counter()

    def wanted(self, answer: Callable[[Reply], None]) -> None:
        """The node awaits news: tell it by `answer`, once."""
        with self._changed:
            self._reader = answer
            self._changed.notify_all()

    def outcome(self, transfer: int, chunk: int, outcome: int) -> None:
        with self._changed:
            self._outcomes.append((transfer, chunk, outcome))
            if len(self._outcomes) in (1, BATCH_OUTCOMES):
                self._changed.notify_all()

    def ended(self, transfer: int, why: int, reason: str) -> None:
        with self._changed:
            self._ended.append(Ended(transfer, why, _short(reason)))
            self._changed.notify_all()

    def released(self, number: int) -> None:
        with self._changed:
            self._released.append(number)
            self._changed.notify_all()

    def carried(self, peer: str, count: int) -> None:
        with self._changed:
            self._carried[peer] += count

    def tell(self) -> None:
        """For ever."""
        while True:
            with self._changed:
                self._await_news()
                reader, self._reader = self._reader, None
                news = self._batch()
            assert reader is not None
            reader(news)

    def _await_news(self) -> None:
        self._changed.wait_for(lambda: self._reader is not None)
        while not self._changed.wait_for(lambda: self._outcomes or self._ended or self._released, CARRIED_S):
            if self._carried:
                return
        self._changed.wait_for(lambda: len(self._outcomes) >= BATCH_OUTCOMES or self._ended or self._released, BATCH_S)

    def _batch(self) -> Reply:
        outcomes = [self._outcomes.popleft() for _ in range(min(_MAX_OUTCOMES, len(self._outcomes)))]
        # an end is told only when every outcome before it has been
        ended = () if self._outcomes else _some(self._ended)
        carried = tuple(Carried(peer, count) for peer, count in self._carried.most_common(MAX_NEWS))
        for one in carried:
            del self._carried[one.peer]
        return Reply(News(ended, _some(self._released), carried), (pack_outcomes(outcomes),))


def _some(items: deque[_T]) -> tuple[_T, ...]:
    return tuple(items.popleft() for _ in range(min(MAX_NEWS, len(items))))


def _short(reason: str) -> str:
    return reason.encode("utf-8", "replace")[:300].decode("utf-8", "ignore")
