"""Answers that are given again to whoever asks the same of the same model: bounded in bytes, least recently used first
out, forgotten after a while.

Only what a model would say again is kept: predictions, and text that is drawn greedily or from a seed of the client's.
A key holds everything that the answer depends on, and who asks: nobody learns by a quick answer what others asked.
Time is an argument, in seconds of any clock.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from blake3 import blake3

from celluler.content.digest import Digest
from celluler.inference.questions import Question
from celluler.tensors import Tensor

TTL_S = 3600.0
ENTRY_BYTES = 512
"""What an entry takes beside its answer, about."""
LARGEST_SHARE = 8
"""An answer that takes more than this part of the room is not kept."""

V = TypeVar("V")


@dataclass(slots=True)
class _Kept(Generic[V]):
    value: V
    byte_count: int
    until: float


class AnswerCache(Generic[V]):
    """Answers by key. hits, misses, evicted: counted since it was made."""

    def __init__(self, limit_bytes: int, *, ttl_s: float = TTL_S) -> None:
        self.limit_bytes, self._ttl_s = limit_bytes, ttl_s
        self._kept: OrderedDict[bytes, _Kept[V]] = OrderedDict()  # the least recently used first
        self.used_bytes = self.hits = self.misses = self.evicted = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes, now: float) -> V | None:
        """None, and a miss, for what is not here or too old."""
        kept = self._kept.get(key)
        if kept is not None and kept.until <= now:
            self._drop(key)
            kept = None
        if kept is None:
            self.misses += 1
            return None
        self.hits += 1
        self._kept.move_to_end(key)
        return kept.value

    def put(self, key: bytes, value: V, byte_count: int, now: float) -> None:
        """Keep it, if it is not too large, in the place of what was used least recently."""
        if key in self._kept:
            self._drop(key)
        byte_count += ENTRY_BYTES
        if byte_count > self.limit_bytes // LARGEST_SHARE:
            return
        while self.used_bytes + byte_count > self.limit_bytes:
            self._drop(next(iter(self._kept)))
            self.evicted += 1
        self._kept[key] = _Kept(value, byte_count, now + self._ttl_s)
        self.used_bytes += byte_count

    def _drop(self, key: bytes) -> None:
        self.used_bytes -= self._kept.pop(key).byte_count


def prediction_key(asker: str, model: Digest, inputs: Tensor, output: str) -> bytes:
    """asker: who asks, as far as one client is told from another."""
    told = repr(("predict", asker, bytes(model), output, inputs.dtype, inputs.shape)).encode()
    hasher = blake3(len(told).to_bytes(8, "big") + told)
    hasher.update(inputs.data)
    return hasher.digest()


def question_key(asker: str, model: Digest, question: Question, *, seeded: bool) -> bytes | None:
    """seeded: the seed is the client's own. None for a question that would be answered differently each time.

    How long its answer may take is no part of what is asked; everything else is, whatever is added to it.
    """
    if question.sampling.temperature > 0 and not seeded:
        return None
    asked = replace(question, timeout_s=1.0)
    if question.sampling.temperature == 0:
        asked = replace(asked, sampling=replace(asked.sampling, seed=0))
    return blake3(repr(("generate", asker, bytes(model), asked)).encode("utf-8", "surrogatepass")).digest()
