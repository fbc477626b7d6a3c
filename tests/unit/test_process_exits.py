import signal

import pytest

from celluler_node.processes.exits import reason_of
from celluler_node.processes.words import Limits

LIMITS = Limits(memory_bytes=512 << 20, cpu_s=3)


@pytest.mark.parametrize(
    ("status", "lines", "expected"),
    [
        (0, (), "ended by itself"),
        (7, ("one", "two", ""), "exited with status 7: two"),
        (1, ("Traceback", "ImportError: no torch"), "exited with status 1: ImportError: no torch"),
        (1, ("MemoryError",), "memory limit of 512 MiB: MemoryError"),
        (-signal.SIGABRT, ("  what():  std::bad_alloc",), "memory limit of 512 MiB:   what():  std::bad_alloc"),
        (-signal.SIGKILL, ("MemoryError",), "killed by SIGKILL (by somebody, or by the kernel for want of memory)"),
        (-signal.SIGSEGV, (), "killed by SIGSEGV"),
        (-signal.SIGXCPU, (), "processor time limit of 3 s"),
        (-signal.SIGXFSZ, (), "file size limit"),
        (-signal.SIGSYS, (), "killed for a system call that its sandbox forbids"),
        (-99, (), "killed by signal 99"),
    ],
)
def test_a_reason_says_what_ended_a_process(status, lines, expected):
    assert reason_of(status, lines, LIMITS) == expected
