"""What a model server counts of its work, since the node started. Plain numbers, for whoever shows them."""

from __future__ import annotations

from bisect import bisect_left

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Upper bounds of samples in a batch."""
LOADING_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Buckets:
    """How many values there were up to each bound and beyond the last one, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Figures:
    """batches: samples of each. loads: seconds of each model that got ready; failed: those that did not."""

    def __init__(self) -> None:
        self.batches, self.loads, self.failed = Buckets(BATCHES), Buckets(LOADING_S), 0

    def batch(self, samples: int) -> None:
        self.batches.add(samples)

    def loaded(self, seconds: float | None) -> None:
        if seconds is None:
            self.failed += 1
        else:
            self.loads.add(seconds)
