"""The end of a process: taking its descendants with it, and saying why it ended in words fit for a job's failure."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from celluler_node.processes.words import Limits

_MEMORY_SIGNS = ("MemoryError", "bad_alloc", "can't allocate memory", "Cannot allocate memory")
_SESSION_FIELD = 3  # of /proc/<pid>/stat, counted behind the command's closing parenthesis: state, ppid, pgrp, session


def kill_session(leader: int) -> None:
    """SIGKILL to all that a session's leader has started. Call it before the leader is reaped: until then its number
    names nobody else."""
    with contextlib.suppress(OSError):
        os.killpg(leader, signal.SIGKILL)
    for entry in Path("/proc").glob("[0-9]*/stat"):  # those that left the group; none on other systems
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = entry.read_text(errors="replace").rpartition(")")[2].split()
            pid = int(entry.parent.name)
            if int(fields[_SESSION_FIELD]) == leader and pid != leader:
                os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class End:
    """Why a process ended. limit: which one it ran into, one of `words.LIMITS`, or None."""

    reason: str
    limit: str | None = None


def memory_limit(limits: Limits) -> str:
    return "memory limit" if limits.memory_bytes is None else f"memory limit of {limits.memory_bytes >> 20} MiB"


def file_limit(limits: Limits) -> str:
    return "file size limit" if limits.file_bytes is None else f"file size limit of {limits.file_bytes >> 20} MiB"


def end_of(status: int, last_lines: tuple[str, ...], limits: Limits, cpu_s: float = 0.0) -> End:
    """status: as subprocess reports it, negative for a signal. last_lines: the end of what it wrote to stderr.
    cpu_s: processor time it took. A process that does not hear SIGXCPU is killed, and then only that time says why."""
    last = next((line for line in reversed(last_lines) if line), "")
    said = f": {last}" if last else ""
    if status in (1, -signal.SIGABRT) and any(sign in last for sign in _MEMORY_SIGNS):
        return End(memory_limit(limits) + said, "memory")
    spent = limits.cpu_s is not None and cpu_s >= limits.cpu_s
    match -status:
        case 0:
            return End("ended by itself")
        case signal.SIGXCPU:
            return End(f"processor time limit of {limits.cpu_s} s", "processor")
        case signal.SIGKILL if spent:
            return End(f"processor time limit of {limits.cpu_s} s", "processor")
        case signal.SIGKILL:
            return End("killed by SIGKILL (by somebody, or by the kernel for want of memory)")
        case signal.SIGXFSZ:
            return End(file_limit(limits), "file")
        case signal.SIGSYS:
            return End("killed for a system call that its sandbox forbids")
        case number if number > 0:
            return End(f"killed by {_signal_name(number)}{said}")
    return End(f"exited with status {status}{said}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
