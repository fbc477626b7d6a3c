"""How much one peer may influence us: a token bucket for each sender, in bounded memory."""

from __future__ import annotations

from celluler.identity import PeerId

MAX_SENDERS = 8192


class Buckets:
    """`burst` at once, then `rate` a second, for each sender apart. Senders long silent are forgotten first."""

    def __init__(self, *, burst: float, rate: float) -> None:
        self._burst, self._rate = burst, rate
        self._buckets: dict[PeerId, tuple[float, float]] = {}  # sender -> (tokens, as of)

    def take(self, sender: PeerId, now: float) -> bool:
        """True when the sender may have one more."""
        tokens, since = self._buckets.pop(sender, (self._burst, now))
        tokens = min(self._burst, tokens + (now - since) * self._rate)
        if len(self._buckets) >= MAX_SENDERS:
            del self._buckets[next(iter(self._buckets))]
        allowed = tokens >= 1.0
        self._buckets[sender] = (tokens - 1.0 if allowed else tokens, now)
        return allowed
