"""What every process of ours submits to, sandboxed or not: it dies with its node and takes only what it was given."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys

from celluler_node.processes.words import Limits

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_NO_NEW_PRIVS = 38

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

_THREADS_TO_SPARE = 4096
_OOM_SCORE = 500
"""When memory runs out the kernel takes this process rather than the node."""


def prctl(option: int, value: int) -> bool:
    """True when the kernel took it. Linux only."""
    return bool(ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) == 0)


def die_with_parent(parent: int) -> bool:
    """Have the kernel kill this process when the thread that started it ends; False where no kernel does that.

    Exits at once when the parent has gone before. Fit as `preexec_fn` of a grandchild: `partial(die_with_parent, pid)`.
    """
    held = sys.platform == "linux" and prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    return held


def apply(limits: Limits) -> None:
    """Set the resource limits of this process and of all that it starts; they cannot be raised again."""
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, limits.open_files)
    _limit(resource.RLIMIT_AS, limits.memory_bytes)
    _limit(resource.RLIMIT_FSIZE, limits.file_bytes)
    _limit(resource.RLIMIT_CPU, limits.cpu_s, grace=1)  # SIGXCPU says why; SIGKILL, a second later, is sure
    if limits.niceness:
        os.nice(limits.niceness)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write(str(_OOM_SCORE))


def few_processes() -> None:
    """A bound for threads made without end, until the node, which counts them, puts an end to that.

    The kernel compares it with all threads of this user on the whole machine, so it stands far above all that run
    now, of whomever. It does not bind root.
    """
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/loadavg") as load:
        running = int(load.read().split()[3].partition("/")[2])
        _limit(resource.RLIMIT_NPROC, running + _THREADS_TO_SPARE)


def _limit(kind: int, value: int | None, grace: int = 0) -> None:
    """Never above what this process was given itself."""
    if value is None:
        return
    hard = resource.getrlimit(kind)[1]
    highest = value + grace if hard == resource.RLIM_INFINITY else min(value + grace, hard)
    resource.setrlimit(kind, (min(value, highest), highest))
