"""What a confined process takes that no limit of the kernel counts: threads, disk in all, processor time unasked.

Looked at from outside, a few times a second, so a limit may be passed by what a process can do in that time. Knows
nothing of what the process is for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from celluler_node.processes.exits import End
from celluler_node.processes.words import Limits

LOOK_S = 0.2
LOOKS_A_WALK = 5
"""Threads are counted at every look, files at every fifth: that walk costs more."""
MOST_NAMES = 10_000
"""Files and folders in a scratch folder: whoever makes more does not work, it fills the disk's tables."""
LEAST_FREE_BYTES = 256 << 20
"""On the disk of the scratch folder. Files that have no name any more are seen by nothing but this."""

UNASKED_S = 10.0
UNASKED_SHARE = 0.02
"""Processor time while the node asks for nothing: so much, and a share of that while. Whoever computes then computes
for itself."""

_USER_FIELD, _SYSTEM_FIELD, _THREADS_FIELD = 11, 12, 17
"""Of /proc/<pid>/stat, counted behind the command's closing parenthesis."""


@dataclass(frozen=True, slots=True)
class Work:
    """What the node asks of a process. calls: how many so far. pending: some of them have no answer yet."""

    calls: int
    pending: bool

    def none_since(self, before: Work) -> bool:
        return not (self.pending or before.pending) and self.calls == before.calls


def threads_allowed(limits: Limits) -> int:
    """Several libraries keep a pool each, as large as they were told; autograd, pyarrow and Python add their own."""
    return 64 + 16 * limits.threads


class Watch:
    """Over one process and its scratch folder."""

    def __init__(self, pid: int, limits: Limits, scratch: Path) -> None:
        self._pid, self._limits, self._scratch = pid, limits, scratch
        self._free = _free_bytes(scratch)
        self._looks = 0
        self._before: tuple[Work, float, float] | None = None
        self._unasked_s = self._idle_s = 0.0

    def look(self, work: Work, now: float) -> End | None:
        """What it has passed, or None. now: in seconds, of any clock. Blocks while it walks over its files."""
        self._looks += 1
        most, taken = threads_allowed(self._limits), usage_of(self._pid)
        if taken.threads > most:
            return End(f"thread limit of {most}", "threads")
        if self._before is not None and work.none_since(self._before[0]):
            self._unasked_s += max(0.0, taken.cpu_s - self._before[1])
            self._idle_s += now - self._before[2]
        self._before = work, taken.cpu_s, now
        if self._unasked_s > UNASKED_S + UNASKED_SHARE * self._idle_s:
            return End(
                f"processor time limit: it took {self._unasked_s:.0f} s while it was asked for nothing", "processor"
            )
        if self._limits.disk_bytes is None or self._looks % LOOKS_A_WALK:
            return None
        return self._disk(self._limits.disk_bytes)

    def _disk(self, most: int) -> End | None:
        used = 0
        try:
            for names, size in enumerate(_sizes(self._scratch), 1):
                used += size
                if names > MOST_NAMES:
                    return End(f"disk limit of {MOST_NAMES} files and folders", "disk")
        except OSError:
            return End("disk limit: it hid a folder of its own", "disk")
        if used > most:
            return End(f"disk limit of {most >> 20} MiB", "disk")
        free = _free_bytes(self._scratch)
        if free < LEAST_FREE_BYTES and self._free - free > LEAST_FREE_BYTES:
            return End(f"disk limit: less than {LEAST_FREE_BYTES >> 20} MiB are left on the disk", "disk")
        return None


@dataclass(frozen=True, slots=True)
class Usage:
    """threads: now. cpu_s: of its whole life."""

    threads: int = 0
    cpu_s: float = 0.0


def usage_of(pid: int) -> Usage:
    """Nothing where that cannot be seen: when it has ended, and on other systems than Linux."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        ticks = int(told[_USER_FIELD]) + int(told[_SYSTEM_FIELD])
        return Usage(int(told[_THREADS_FIELD]), ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return Usage()


def _sizes(folder: Path) -> Iterator[int]:
    """Bytes on disk of everything below, each of several names of one file counted. What vanishes meanwhile is left
    out. Raises OSError for a folder that cannot be read, or whose path is too long to be one of an honest process."""
    folders = [os.fspath(folder)]
    while folders:
        try:
            entries = os.scandir(folders.pop())
        except FileNotFoundError:
            continue
        with entries:
            for entry in entries:
                try:
                    yield entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                except FileNotFoundError:
                    continue


def _free_bytes(folder: Path) -> int:
    told = os.statvfs(folder)
    return told.f_bavail * told.f_frsize
