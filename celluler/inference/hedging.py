"""When somebody else is asked the same: a deadline drawn from what answers took before, and a budget.

Source: Dean and Barroso, The Tail at Scale, Communications of the ACM 56(2), 2013: hedged requests. Knows no clock: all
times are arguments.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class HedgeConfig:
    """quantile: of earlier answers, beyond which another peer is asked. enough: answers, before there is a deadline.
    kept: answers of a model. models: of which answers are kept. least_s, most_s: bounds of the deadline.

    share: of requests that may be hedged, in the long run; spare: of hedges at once beyond it. stalls: how many times
    the longest of the usual pauses between tokens a pause may take, within least_stall_s and most_stall_s.
    """

    quantile: float = 0.95
    enough: int = 20
    kept: int = 256
    models: int = 128
    least_s: float = 0.05
    most_s: float = 10.0
    share: float = 0.1
    spare: float = 10.0
    stalls: float = 8.0
    least_stall_s: float = 5.0
    most_stall_s: float = 60.0


USUAL = HedgeConfig()


class History(Generic[K]):
    """The last durations of each key, bounded; the key that was used least recently goes."""

    def __init__(self, keys: int, kept: int) -> None:
        self._keys, self._kept = keys, kept
        self._of: OrderedDict[K, deque[float]] = OrderedDict()

    def add(self, key: K, seconds: float) -> None:
        """What is no duration is passed over."""
        if not (math.isfinite(seconds) and seconds >= 0.0):
            return
        known = self._of.pop(key, None) or deque(maxlen=self._kept)
        known.append(seconds)
        self._of[key] = known
        if len(self._of) > self._keys:
            self._of.popitem(last=False)

    def count(self, key: K) -> int:
        return len(self._of.get(key, ()))

    def quantile(self, key: K, share: float) -> float | None:
        """The least that so large a share is not above; None of nothing."""
        known = sorted(self._of.get(key, ()))
        return known[min(len(known) - 1, max(0, math.ceil(share * len(known)) - 1))] if known else None


@dataclass(slots=True)
class Hedging(Generic[K]):
    """Of models by their key. first_s of an answer: until its first token, or the whole of a prediction."""

    config: HedgeConfig = USUAL
    _first: History[K] = field(init=False)
    _pauses: History[K] = field(init=False)
    _budget: float = field(init=False)

    def __post_init__(self) -> None:
        self._first = History(self.config.models, self.config.kept)
        self._pauses = History(self.config.models, self.config.kept)
        self._budget = self.config.spare

    def asked(self) -> None:
        """Each request earns a part of a hedge."""
        self._budget = min(self.config.spare, self._budget + self.config.share)

    def answered(self, model: K, first_s: float) -> None:
        self._first.add(model, first_s)

    def paused(self, model: K, seconds: float) -> None:
        """Between two tokens of an answer."""
        self._pauses.add(model, seconds)

    def hedge_after(self, model: K) -> float | None:
        """Seconds after which another peer is asked as well; None while too little is known."""
        if self._first.count(model) < self.config.enough:
            return None
        seconds = self._first.quantile(model, self.config.quantile)
        assert seconds is not None
        return min(self.config.most_s, max(self.config.least_s, seconds))

    def spend(self) -> bool:
        """Whether one may be hedged now; it counts when it may."""
        if self._budget < 1.0:
            return False
        self._budget -= 1.0
        return True

    def stall_after(self, model: K) -> float:
        """Seconds without a further token, after which a peer is left."""
        usual = self._pauses.quantile(model, 0.99) if self._pauses.count(model) >= self.config.enough else None
        if usual is None:
            return self.config.most_stall_s / 3
        return min(self.config.most_stall_s, max(self.config.least_stall_s, self.config.stalls * usual))
