"""What a process does with memory that it has freed. Knows nothing of what it was for."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of glibc's mallopt(3)
_NEVER_TRIM = (1 << 31) - 1
_LARGEST_KEPT = 1 << 30


def keep_freed_memory() -> bool:
    """Use freed memory again instead of giving it back; False where the C library cannot be told.

    For a process that needs as much again and again, many megabytes at a time: measured in an averager, the kernel
    took more time to give it fresh pages than it took to compute what is in them. It never becomes smaller then.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    told = [mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT), mallopt(_TRIM_THRESHOLD, _NEVER_TRIM), mallopt(_ARENA_MAX, 1)]
    return all(told)
