"""A bandwidth limit, sans-IO: a token bucket that may go into debt.

Who wants to pass takes its bytes at once and is told how long to wait. Nobody is refused and nobody is woken to ask
again; whoever comes later waits behind, since the debt is larger then. So the waits of many takers follow the order
in which they took, and their sum keeps to the rate whatever the sizes. Time is an argument.
"""

from __future__ import annotations

from celluler.errors import LocalError

BURST_S = 0.25
"""What an idle bucket saves up: this long at its rate, and at least `MIN_BURST_BYTES`."""
MIN_BURST_BYTES = 1 << 16


class Bucket:
    """rate_bytes_s: 0 sets no limit. Not for several threads at once."""

    def __init__(self, rate_bytes_s: int) -> None:
        if rate_bytes_s < 0:
            raise LocalError(f"a rate of {rate_bytes_s} bytes a second")
        self.rate_bytes_s = rate_bytes_s
        self._burst = max(MIN_BURST_BYTES, rate_bytes_s * BURST_S)
        self._tokens, self._at_s = self._burst, float("-inf")

    @property
    def limited(self) -> bool:
        return self.rate_bytes_s > 0

    def take(self, count: int, now: float) -> float:
        """Seconds to wait before these bytes may pass. A clock that steps back adds nothing."""
        if not self.limited:
            return 0.0
        if now > self._at_s:
            self._tokens = min(self._burst, self._tokens + (now - self._at_s) * self.rate_bytes_s)
            self._at_s = now
        self._tokens -= count
        return max(0.0, -self._tokens / self.rate_bytes_s)

    def slice_bytes(self, most: int) -> int:
        """How much to take at a time so that what passes is spread over time: a tenth of a second's worth."""
        return most if not self.limited else max(1 << 12, min(most, self.rate_bytes_s // 10))
