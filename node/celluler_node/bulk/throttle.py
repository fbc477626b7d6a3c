"""The process's limits of bandwidth, shared by its threads."""

from __future__ import annotations

import threading
import time

from celluler.content.rate import Bucket


class Throttle:
    """One direction. Every byte of content that passes is taken here, whoever moves it."""

    def __init__(self, rate_bytes_s: int) -> None:
        self._bucket, self._lock = Bucket(rate_bytes_s), threading.Lock()

    def take(self, count: int) -> float:
        """Seconds to wait before these bytes may pass."""
        if not self._bucket.limited:
            return 0.0
        with self._lock:
            return self._bucket.take(count, time.monotonic())

    def wait(self, count: int, stop: threading.Event) -> float:
        """Wait until they may pass, or until `stop`. Returns for how long."""
        wait_s = self.take(count)
        if wait_s > 0:
            stop.wait(wait_s)
        return wait_s

    def slice_bytes(self, most: int) -> int:
        """How many bytes to let pass at a time."""
        return self._bucket.slice_bytes(most)
