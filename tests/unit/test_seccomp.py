"""The filter is interpreted here as the kernel would, for both architectures, whatever machine this is."""

import errno
import platform
import re
from pathlib import Path

import pytest

from celluler_node.processes.seccomp import DENIED, ON_CONDITION, compile_filter

PID = 4321
ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
COLUMN = {"x86_64": 0, "aarch64": 1}
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
NEWER_THAN_MANY_HEADERS = {
    *("setxattrat", "removexattrat", "getxattrat", "listxattrat", "open_tree_attr", "file_setattr", "file_getattr"),
    *("fchmodat2", "statmount", "listmount", "lsm_set_self_attr", "listns"),
}

both = pytest.mark.parametrize("machine", ["x86_64", "aarch64"])


def verdict(machine: str, number: int, *arguments: int, audit: int | None = None) -> int:
    code = compile_filter(machine, PID)
    words = {0: number & 0xFFFFFFFF, 4: AUDIT[machine] if audit is None else audit}
    words |= {16 + 8 * place: argument & 0xFFFFFFFF for place, argument in enumerate(arguments)}
    accumulator = place = 0
    while True:
        operation, yes, no, k = code[place]
        place += 1
        match operation:
            case 0x20:
                accumulator = words.get(k, 0)
            case 0x54:
                accumulator &= k
            case 0x15:
                place += yes if accumulator == k else no
            case 0x35:
                place += yes if accumulator >= k else no
            case 0x06:
                return k


def number_of(machine: str, name: str) -> int:
    number = (DENIED | ON_CONDITION)[name][COLUMN[machine]]
    assert number is not None
    return number


@both
def test_every_call_of_the_table_is_refused(machine):
    for name, numbers in DENIED.items():
        if (number := numbers[COLUMN[machine]]) is not None:
            assert verdict(machine, number) == EPERM, name


@both
def test_a_call_that_is_not_in_the_table_is_allowed(machine):
    named = {numbers[COLUMN[machine]] for numbers in (DENIED | ON_CONDITION).values()}
    for number in range(500):
        if number not in named:
            assert verdict(machine, number) == ALLOW, number


@both
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("clone", (0x3D0F00,), ALLOW),  # what a thread of libc is made with
        ("clone", (0x01200011,), EPERM),  # what a fork is made with
        ("clone", (0x4111,), EPERM),  # vfork
        ("clone", (0x3D0F00 | 0x10000000,), EPERM),  # a thread in a user namespace of its own
        ("clone3", (1, 88), ENOSYS),
        ("kill", (PID, 6), ALLOW),
        ("kill", (PID + 1, 0), EPERM),
        ("kill", (-1, 9), EPERM),
        ("kill", (0, 9), EPERM),
        ("tgkill", (PID, PID, 6), ALLOW),
        ("tgkill", (1, 1, 6), EPERM),
        ("prlimit64", (0, 7), ALLOW),
        ("prlimit64", (1, 7), EPERM),
        ("sched_setaffinity", (0,), ALLOW),
        ("sched_setaffinity", (1,), EPERM),
        ("prctl", (15,), ALLOW),
        ("prctl", (1, 0), EPERM),  # not to die with the node
        ("prctl", (4, 1), EPERM),  # to be dumpable again
        ("prctl", (22, 2), EPERM),
        ("fcntl", (3, 2), ALLOW),
        ("fcntl", (3, 8), EPERM),
        ("fcntl", (3, 1024), EPERM),
        ("ioctl", (0, 0x5401), ALLOW),
        ("ioctl", (0, 0x5412), EPERM),  # typing into a terminal
        ("ioctl", (0, 0x40086602), EPERM),  # attributes of a file
    ],
)
def test_calls_that_depend_on_their_arguments(machine, name, arguments, expected):
    assert verdict(machine, number_of(machine, name), *arguments) == expected


@both
def test_calls_of_another_architecture_kill(machine):
    assert verdict(machine, 1, audit=0x40000003) == KILL


def test_the_second_set_of_numbers_of_x86_64_is_refused_whole():
    assert verdict("x86_64", 0x40000000 | 1) == EPERM
    assert verdict("x86_64", 0x40000000 | 41) == EPERM


@both
def test_the_numbers_are_those_of_the_kernels_headers(machine):
    if not HEADERS[machine].exists():
        pytest.skip(f"no kernel headers here: {HEADERS[machine]}")
    defines = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", HEADERS[machine].read_text())
    known = {name: int(number) for name, number in defines}
    for name, numbers in (DENIED | ON_CONDITION).items():
        if name in known or name not in NEWER_THAN_MANY_HEADERS:
            assert numbers[COLUMN[machine]] == known.get(name), name


def test_both_architectures_refuse_the_same_of_all_calls_that_both_have():
    if missing := [str(path) for path in HEADERS.values() if not path.exists()]:
        pytest.skip(f"no kernel headers here: {', '.join(missing)}")
    numbers = {}
    for machine, path in HEADERS.items():
        defines = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", path.read_text())
        numbers[machine] = {name: int(number) for name, number in defines}
    shared = numbers["x86_64"].keys() & numbers["aarch64"].keys()
    assert len(shared) > 250
    refused = set()
    for name in shared:
        for arguments in ((0, 0), (1, 1), (PID, PID), (3, 1024), (0xFFFFFFFF, 9), (0x3D0F00,), (0x1200011,)):
            one, other = (verdict(machine, numbers[machine][name], *arguments) for machine in HEADERS)
            assert one == other, (name, arguments)
            refused |= {name} if one != ALLOW else set()
    reaching = {
        "socket",
        "connect",
        "execve",
        "execveat",
        "ptrace",
        "process_vm_readv",
        "kill",
        "clone",
        "clone3",
        "mount",
    }
    assert reaching | {"bpf", "io_uring_setup", "unshare", "setns", "memfd_create", "keyctl", "seccomp"} <= refused


@both
def test_a_filter_fits_what_the_kernel_takes(machine):
    code = compile_filter(machine, PID)
    assert len(code) <= 4096
    assert all(yes < 256 and no < 256 for _, yes, no, _ in code)


def test_this_machine_is_one_the_filter_is_written_for():
    if platform.machine() not in AUDIT:
        pytest.skip(f"no filter for {platform.machine()}: a worker here runs with reduced isolation")
    assert compile_filter(platform.machine(), PID)
