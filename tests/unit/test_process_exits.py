import signal

import pytest

from celluler_node.processes.exits import End, end_of
from celluler_node.processes.words import Limits

LIMITS = Limits(memory_bytes=512 << 20, cpu_s=3, file_bytes=1 << 20)
SHOT = "killed by SIGKILL (by somebody, or by the kernel for want of memory)"


@pytest.mark.parametrize(
    ("status", "lines", "expected"),
    [
        (0, (), End("ended by itself")),
        (7, ("one", "two", ""), End("exited with status 7: two")),
        (1, ("Traceback", "ImportError: no torch"), End("exited with status 1: ImportError: no torch")),
        (1, ("MemoryError",), End("memory limit of 512 MiB: MemoryError", "memory")),
        (
            -signal.SIGABRT,
            ("what(): bad_alloc",),
            End("memory limit of 512 MiB: what(): bad_alloc", "memory"),
        ),
        (-signal.SIGKILL, ("MemoryError",), End(SHOT)),
        (-signal.SIGSEGV, (), End("killed by SIGSEGV")),
        (-signal.SIGXCPU, (), End("processor time limit of 3 s", "processor")),
        (-signal.SIGXFSZ, (), End("file size limit of 1 MiB", "file")),
        (-signal.SIGSYS, (), End("killed for a system call that its sandbox forbids")),
        (-99, (), End("killed by signal 99")),
    ],
)
def test_a_reason_says_what_ended_a_process(status, lines, expected):
    assert end_of(status, lines, LIMITS) == expected


def test_who_did_not_hear_of_its_limit_is_told_apart_by_the_time_it_took():
    assert end_of(-signal.SIGKILL, (), LIMITS, cpu_s=3.9).limit == "processor"
    assert end_of(-signal.SIGKILL, (), LIMITS, cpu_s=2.9) == End(SHOT)
    assert end_of(-signal.SIGKILL, (), Limits(), cpu_s=99.0) == End(SHOT)
