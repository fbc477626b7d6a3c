"""What became of the requests of one arm: how long they took, how they failed, and how often another arm said the same.

Bounded whatever comes: buckets, and kinds of errors that there are. Knows no clock.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

from celluler.tensors import Tensor

STEP = 1.15
"""A quantile is told at most so many times too high."""
SHORTEST_S, BUCKETS = 0.0002, 112
"""The last bucket is from 1100 s on."""
MAX_COMPARED_ITEMS = 1 << 16
SCORES = frozenset({"raw", "probabilities"})
"""Outputs whose rows are scores: what counts is which is the highest."""
TOLERANCE = 1e-3
_BOUNDS: tuple[float, ...] = tuple(SHORTEST_S * STEP**place for place in range(BUCKETS))


class Latencies:
    """Durations in buckets, each `STEP` times as long as the one before."""

    def __init__(self) -> None:
        self._counts = [0] * (BUCKETS + 1)
        self.count, self.sum_s = 0, 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(_BOUNDS, seconds)] += 1
        self.count += 1
        self.sum_s += seconds

    def quantile(self, share: float) -> float | None:
        """Seconds that so many took at most, by the bound of their bucket; None while there are none."""
        if not self.count:
            return None
        wanted, seen = max(1.0, share * self.count), 0
        for bound, count in zip(_BOUNDS, self._counts, strict=False):
            seen += count
            if seen >= wanted:
                return bound
        return _BOUNDS[-1] * STEP


@dataclass(slots=True)
class ArmCounts:
    """Of one arm. errors: by kind. tokens: of prompts and answers. compared, agreed: samples that another arm was
    asked, too, and those of them where it said the same."""

    requests: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    cached: int = 0
    samples: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    compared: int = 0
    agreed: int = 0
    latencies: Latencies = field(default_factory=Latencies)

    def answered(self, seconds: float, *, samples: int = 0, prompt: int = 0, generated: int = 0) -> None:
        self.requests += 1
        self.samples += samples
        self.prompt_tokens += prompt
        self.generated_tokens += generated
        self.latencies.add(seconds)

    def failed(self, kind: str) -> None:
        self.requests += 1
        self.errors[kind] += 1


def agreement(one: Tensor, other: Tensor, output: str) -> tuple[int, int]:
    """(samples compared, samples that agree). Whole numbers and texts agree when they are equal, scores when the same
    one is highest, other numbers within `TOLERANCE`. Of answers of two shapes no sample agrees."""
    samples = one.shape[0] if one.shape else 1
    if one.dtype != other.dtype or one.shape != other.shape:
        return samples, 0
    width = len(one.data) // samples if samples else 0
    if not width:
        return samples, samples
    items = width // (4 if one.dtype == "float32" else 1)
    samples = min(samples, max(1, MAX_COMPARED_ITEMS // items))
    rows = ((each.data[n * width : (n + 1) * width] for each in (one, other)) for n in range(samples))
    if one.dtype != "float32":
        return samples, sum(left == right for left, right in rows)
    same = _same_best if output in SCORES and len(one.shape) > 1 and items > 1 else _close
    return samples, sum(same(_floats(left), _floats(right)) for left, right in rows)


def _floats(row: bytes) -> memoryview[float]:
    return memoryview(row).cast("f")  # little-endian, as every machine that celluler runs on


def _same_best(left: memoryview[float], right: memoryview[float]) -> bool:
    return max(range(len(left)), key=left.__getitem__) == max(range(len(right)), key=right.__getitem__)


def _close(left: memoryview[float], right: memoryview[float]) -> bool:
    return all(abs(a - b) <= TOLERANCE * max(1.0, abs(a)) for a, b in zip(left, right, strict=True))
