"""What a confined process takes that no limit of the kernel counts for one process: threads, and disk in all.

Looked at from outside, a few times a second, so a limit may be passed by what a process can do in that time. Knows
nothing of what the process is for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
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

_THREADS_FIELD = 17  # of /proc/<pid>/stat, counted behind the command's closing parenthesis


def threads_allowed(limits: Limits) -> int:
    """Several libraries keep a pool each, as large as they were told; autograd, pyarrow and Python add their own."""
    return 64 + 16 * limits.threads


class Watch:
    """Over one process and its scratch folder."""

    def __init__(self, pid: int, limits: Limits, scratch: Path) -> None:
        self._pid, self._limits, self._scratch = pid, limits, scratch
        self._free = _free_bytes(scratch)
        self._looks = 0

    def look(self) -> End | None:
        """What it has passed, or None. Blocks for as long as a walk over its files takes."""
        self._looks += 1
        most = threads_allowed(self._limits)
        if thread_count(self._pid) > most:
            return End(f"thread limit of {most}", "threads")
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


def thread_count(pid: int) -> int:
    """0 where that cannot be seen: when it has ended, and on other systems than Linux."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[_THREADS_FIELD])
    except (OSError, ValueError, IndexError):
        return 0


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
