"""What may be evicted, and in which order: least recently used first, neither pinned nor in use.

`Uses` counts who holds what and remembers when each content was last used. `victims` chooses. Knows neither files nor
tables: a store tells it what a content would free.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from celluler.errors import QuotaExceeded
from celluler.quantities import format_bytes

Result = TypeVar("Result")


class NoRoom(QuotaExceeded):
    """The quota is too small by so many bytes, as things stand."""

    def __init__(self, extra_bytes: int, used_bytes: int, quota_bytes: int) -> None:
        left = max(0, quota_bytes - used_bytes)
        super().__init__(
            f"{format_bytes(extra_bytes)} are more than what is left of the quota: {format_bytes(left)} of "
            f"{format_bytes(quota_bytes)}",
            hint="free some with `celluler blob gc`, or raise the quota",
        )
        self.short_bytes = used_bytes + extra_bytes - quota_bytes


@dataclass(frozen=True, slots=True)
class Evictable:
    """A content as far as eviction cares. own_bytes: what only it counts for. leaves: its leaves' sizes, which go
    with the last content that needs them."""

    root: bytes
    last_used_s: float
    own_bytes: int
    leaves: Mapping[bytes, int]
    pinned: bool


class Uses:
    """Holds by root, and the time of each use until the store writes it down. Safe from any thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._holds: Counter[bytes] = Counter()
        self._used_s: dict[bytes, float] = {}

    @contextmanager
    def hold(self, root: bytes) -> Iterator[None]:
        with self._lock:
            self._holds[root] += 1
        try:
            yield
        finally:
            with self._lock:
                self._holds[root] -= 1
                if not self._holds[root]:
                    del self._holds[root]
            self.note(root)

    def held(self, root: bytes) -> bool:
        return root in self._holds

    def note(self, root: bytes) -> None:
        """It is used now."""
        self._used_s[root] = self._clock()

    def last_used_s(self, root: bytes, recorded_s: float) -> float:
        return max(recorded_s, self._used_s.get(root, recorded_s))

    def drain(self) -> dict[bytes, float]:
        """What was noted since the last call."""
        noted, self._used_s = self._used_s, {}
        return noted

    def restore(self, noted: Mapping[bytes, float]) -> None:
        """They could not be written down."""
        self._used_s = {**noted, **self._used_s}


def victims(
    contents: Sequence[Evictable], used_bytes: int, target_bytes: int, spared: Callable[[Evictable], bool]
) -> tuple[list[bytes], int]:
    """Roots to evict, in order, until no more than the target is used; and what is used then.

    When everything that may go is not enough, it is all of that.
    """
    needed_by = Counter(leaf for content in contents for leaf in content.leaves)
    chosen = []
    for content in sorted(contents, key=lambda content: (content.last_used_s, content.root)):
        if used_bytes <= target_bytes:
            break
        if content.pinned or spared(content):
            continue
        chosen.append(content.root)
        needed_by.subtract(content.leaves.keys())
        lonely = sum(size for leaf, size in content.leaves.items() if not needed_by[leaf])
        used_bytes -= content.own_bytes + lonely
    return chosen, used_bytes


def with_room(call: Callable[[], Result], extra_bytes: int, make_room: Callable[[int], bool]) -> Result:
    """What the call returns, tried again for as long as room can be made for it.

    extra_bytes: what it needs on a disk that is full, when the quota is not.
    """
    while True:
        try:
            return call()
        except QuotaExceeded as full:
            if not make_room(full.short_bytes if isinstance(full, NoRoom) else extra_bytes):
                raise


def needs_any(content: Evictable, blocks: Collection[bytes]) -> bool:
    """Whether the content, or a leaf of it, is among these."""
    return content.root in blocks or not content.leaves.keys().isdisjoint(blocks)
