"""A hostile program: what a model that has taken over its worker would try next. Each attempt says how it ended.

Written against the system calls themselves, by number, with machine code of its own where that matters: whoever has
taken a process over is not bound to what a library offers.
"""

from __future__ import annotations

import array
import ctypes
import errno
import importlib.machinery
import importlib.util
import mmap
import os
import platform
import resource
import shutil
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from celluler.wire import U64, Name
from celluler_node.processes.frames import encode
from celluler_node.processes.seccomp import DENIED, ON_CONDITION
from celluler_node.processes.serving import Link, serve_sync
from celluler_node.processes.words import Answer, Kind, Program, Reply
from tests.support.escapes_endless import ENDLESS, machine_code
from tests.support.sandbox_child import Attempt, Outcome


@dataclass(frozen=True, slots=True)
class Exceed:
    """A handler that runs into a limit and does not catch what comes of it. what: memory or write."""

    what: Name
    size: U64


@dataclass(frozen=True, slots=True)
class Other:
    """A word of the vocabulary that answers nothing that is asked here."""


REQUESTS, REPLIES = (Attempt, Exceed), (Outcome, Other)
HOSTILE = Program(
    "hostile",
    __name__,
    REQUESTS,
    REPLIES,
    confined=True,
    max_blob_bytes=1 << 20,
    answers={Attempt: Answer((Outcome,)), Exceed: Answer((Outcome,))},
)

X86_64 = platform.machine() == "x86_64"
_NUMBERS = {name: numbers[0 if X86_64 else 1] for name, numbers in (DENIED | ON_CONDITION).items()}
_LIBC = ctypes.CDLL(None, use_errno=True)
_THREAD_FLAGS = 0x00010F00  # CLONE_VM, FS, FILES, SIGHAND, THREAD
_link: list[Link] = []


def main(link: Link) -> None:
    _link.append(link)
    serve_sync(link, REQUESTS, REPLIES, {Attempt: _answer, Exceed: _exceed})


def _answer(request: Attempt, _: object) -> Reply:
    if request.what == "wrong record":
        return Reply(Other())
    return Reply(Outcome(attempt(request.what, request.on)), (b"x",) if request.what == "wrong blobs" else ())


def _exceed(request: Exceed, _: object) -> Outcome:
    if request.what == "write":
        Path("large").write_bytes(bytes(request.size))
    return Outcome(str(len(bytearray(request.size))))


def attempt(what: str, on: str) -> str:
    """`done`, what the attempt brought home, or the name of the refusal."""
    try:
        return str(ATTEMPTS[what](on) or "done")
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "OSError")
    except MemoryError:
        return "MemoryError"


def call(name: str | int, *arguments: int) -> int:
    number = name if isinstance(name, int) else _NUMBERS[name]
    assert number is not None
    result = int(_LIBC.syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments)))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


# --- many at once ------------------------------------------------------------------------------------------------


def _every_denied_call(_: str) -> str:
    """Whatever the table names, with arguments that would end in EBADF, EFAULT or EINVAL if it were let through."""
    through = []
    for name, number in _NUMBERS.items():
        if name in ON_CONDITION or number is None or name in ("fork", "vfork"):
            continue
        try:
            call(name, *(-1,) * 6)
            through.append(name)
        except OSError as error:
            if error.errno != errno.EPERM:
                through.append(f"{name}: {error}")
    return ", ".join(through) or "all EPERM"


def _every_family(_: str) -> str:
    made = []
    for family in range(48):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
            try:
                os.close(call("socket", family, kind, 0))
                made.append(f"{family}/{kind}")
            except OSError as error:
                if error.errno != errno.EPERM:
                    made.append(f"{family}/{kind}: {error}")
    return ", ".join(made) or "all EPERM"


def _open_all(on: str) -> str:
    """Paths, one a line: those that could be opened, for reading or writing or as a folder."""
    opened = []
    for path in on.splitlines():
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_DIRECTORY):
            try:
                os.close(os.open(path, flags | os.O_NONBLOCK))
                opened.append(path)
            except (PermissionError, NotADirectoryError, IsADirectoryError):
                continue
    return ", ".join(opened) or "all refused"


# --- one by one --------------------------------------------------------------------------------------------------


def _reopen(on: str) -> None:
    """A descriptor that stands for a path only, made into one that reads."""
    descriptor = os.open(on, os.O_PATH)
    try:
        os.close(os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY))
    finally:
        os.close(descriptor)


def _link_in(on: str) -> None:
    """A second name, inside the scratch folder, for a file that may not be read."""
    descriptor = os.open(on, os.O_PATH)
    try:
        if _LIBC.linkat(descriptor, b"", -100, b"stolen", 0x1000) < 0:  # AT_FDCWD, AT_EMPTY_PATH
            raise OSError(ctypes.get_errno(), "linkat")
    finally:
        os.close(descriptor)


def _allow_everything(_: str) -> None:
    """Put a rule of our own over the node's: it may only ever take away."""
    from celluler_node.processes import landlock  # noqa: PLC0415

    landlock.restrict({Path("/"): landlock.READ | landlock.WRITE_FILE})


def _no_thread_clone(_: str) -> None:
    pid = call("clone", 17, 0, 0, 0, 0)  # SIGCHLD alone: a fork
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _raw_fork(_: str) -> str:
    result = machine_code(bytes.fromhex("b839000000 0f05 c3"))  # mov eax, 57; syscall; ret
    if result == 0:
        os._exit(0)
    return errno.errorcode.get(-result, f"pid {result}")


def _other_numbers(_: str) -> None:
    """The second table of numbers of x86_64, which many a filter forgot."""
    call(0x40000000 | 41, socket.AF_INET, socket.SOCK_STREAM, 0)


def _load(on: str) -> str:
    """A library of our own out of the scratch folder: it is loaded, and stands within the same walls."""
    found = importlib.util.find_spec("_posixsubprocess") or importlib.util.find_spec("_socket")
    if found is None or not found.origin or not os.path.isfile(found.origin):
        found = importlib.util.find_spec("_msgpack") or importlib.util.find_spec("msgpack._cmsgpack")
    assert found is not None
    assert found.origin
    copied = os.path.join(on, os.path.basename(found.origin))
    shutil.copyfile(found.origin, copied)
    loader = importlib.machinery.ExtensionFileLoader(found.name, copied)
    spec = importlib.util.spec_from_file_location(found.name, copied, loader=loader)
    assert spec is not None
    importlib.util.module_from_spec(spec)
    library = ctypes.CDLL(copied, use_errno=True)
    if library.socket(2, 1, 0) >= 0:  # found through what it was linked with
        return "a socket"
    return "loaded, then " + errno.errorcode[ctypes.get_errno()]


def _execute_memory(_: str) -> None:
    descriptor = call("memfd_create", ctypes.addressof(ctypes.create_string_buffer(b"x")), 0)
    os.write(descriptor, b"#!/bin/sh\n")
    call("execveat", descriptor, ctypes.addressof(ctypes.create_string_buffer(b"")), 0, 0, 0x1000)


def _execute_scratch(on: str) -> None:
    path = os.path.join(on, "program")
    Path(path).write_text("#!/bin/sh\n")
    os.execv(path, [path])


def _handle_of_node(_: str) -> None:
    """The kernel gives whoever holds one end of a socket a handle of the process at the other."""
    handle = _link[0].sock.getsockopt(socket.SOL_SOCKET, 77)  # SO_PEERPIDFD
    call("pidfd_send_signal", handle, 0, 0, 0)


def _thread_asks(_: str) -> str:
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.append(_every_family("-")))
    thread.start()
    thread.join()
    return seen[0]


def _descriptors(_: str) -> str:
    """What was inherited: kinds, by number."""
    found = []
    for descriptor in range(256):
        try:
            mode = os.fstat(descriptor).st_mode
        except OSError:
            continue
        found.append({0o020000: "device", 0o010000: "pipe", 0o140000: "socket"}.get(mode & 0o170000, "file"))
    return " ".join(found)


def _give_descriptors(_: str) -> None:
    """From now on every answer carries descriptors to the node, as many as the kernel takes at once."""
    link = _link[0]
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 64))]

    def transmit(pieces: list[memoryview]) -> None:
        link.sock.sendmsg([b"".join(pieces)], rights)

    link.transmit = transmit


def _grow(on: str) -> None:
    """Little by little, as many small pieces as there are."""
    held = []
    while True:
        held.append(mmap.mmap(-1, int(on)))
        if len(held) > 100_000:
            return


def _reserve(on: str) -> None:
    """Address space without memory behind it."""
    mmap.mmap(-1, int(on), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, prot=0).close()  # MAP_NORESERVE


def _stretch(on: str) -> None:
    path, _, size = on.partition(" ")
    with open(path, "wb") as file:
        os.truncate(file.fileno(), int(size))


def _allocate(on: str) -> None:
    path, _, size = on.partition(" ")
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, int(size))


def _raise_limits(_: str) -> str:
    raised = []
    for name in ("RLIMIT_AS", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_CORE", "RLIMIT_CPU", "RLIMIT_NPROC"):
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        if hard == resource.RLIM_INFINITY:
            raised.append(f"{name} is not limited")
            continue
        try:
            resource.setrlimit(kind, (hard, hard + 1))
            raised.append(name)
        except (ValueError, OSError):
            continue
    return ", ".join(raised) or "all refused"


def _forge(_: str) -> None:
    """An answer to a question that nobody asked."""
    _link[0].transmit(encode(Kind.REPLY, Outcome("forged"), call=1 << 40))
    time.sleep(60)


ATTEMPTS: dict[str, Callable[[str], str | None]] = {
    **ENDLESS,
    "every denied call": _every_denied_call,
    "every family": _every_family,
    "every family in a thread": _thread_asks,
    "open": _open_all,
    "read": lambda on: str(len(Path(on).read_bytes())),
    "readlink": os.readlink,
    "reopen": _reopen,
    "link in": _link_in,
    "attributes": lambda on: str(os.listxattr(on)),
    "allow everything": _allow_everything,
    "fork": lambda _: str(os.fork() or os._exit(0)),
    "vfork": lambda _: str(call("vfork")),
    "clone": _no_thread_clone,
    "clone3": lambda _: str(call("clone3", 0, 88)),
    "clone namespace": lambda _: str(call("clone", _THREAD_FLAGS | 0x10000000, 0, 0, 0, 0)),
    "machine code": _raw_fork,
    "other numbers": _other_numbers,
    "exec": lambda on: os.execv(on, [on]),
    "exec scratch": _execute_scratch,
    "exec memory": _execute_memory,
    "load": _load,
    "trace me": lambda _: str(call("ptrace", 0, 0, 0, 0)),
    "attach": lambda on: str(call("ptrace", 16, int(on), 0, 0)),
    "seize": lambda on: str(call("ptrace", 0x4206, int(on), 0, 0)),
    "read memory": lambda on: str(call("process_vm_readv", int(on), 0, 0, 0, 0, 0)),
    "kill": lambda on: os.kill(int(on), 0),
    "thread kill": lambda on: str(call("tgkill", int(on), int(on), 0)),
    "queue": lambda on: str(call("rt_sigqueueinfo", int(on), 0, 0)),
    "handle": lambda on: str(call("pidfd_open", int(on), 0)),
    "handle of node": _handle_of_node,
    "own signals": lambda on: str(call("fcntl", 0, 8, int(on))),
    "limit": lambda on: str(call("prlimit64", int(on), 7, 0, 0)),
    "renice": lambda on: os.setpriority(os.PRIO_PROCESS, int(on), 19),
    "affinity": lambda on: str(call("sched_setaffinity", int(on), 0, 0)),
    "unshare": lambda on: str(call("unshare", int(on))),
    "outlive": lambda _: str(call("prctl", 1, 0, 0, 0, 0)),
    "dumpable": lambda _: str(call("prctl", 4, 1, 0, 0, 0)),
    "new filter": lambda _: str(call("prctl", 22, 2, 0, 0, 0)),
    "type": lambda _: str(call("ioctl", 0, 0x5412, 0)),
    "listen": lambda _: str(call("listen", _link[0].sock.fileno(), 1)),
    "accept": lambda _: str(call("accept4", _link[0].sock.fileno(), 0, 0, 0)),
    "connect": lambda _: str(call("connect", _link[0].sock.fileno(), 0, 0)),
    "bind": lambda _: str(call("bind", _link[0].sock.fileno(), 0, 0)),
    "set option": lambda _: _link[0].sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30),
    "descriptors": _descriptors,
    "environment": lambda _: "\n".join(f"{name}={value}" for name, value in os.environ.items()),
    "give descriptors": _give_descriptors,
    "map": lambda on: mmap.mmap(-1, int(on)).close(),
    "reserve": _reserve,
    "allocate memory": lambda on: str(len(bytearray(int(on)))),
    "grow": _grow,
    "file": lambda on: str(Path(on.split()[0]).write_bytes(bytes(int(on.split()[1])))),
    "stretch": _stretch,
    "preallocate": _allocate,
    "raise limits": _raise_limits,
    "wrong blobs": lambda _: None,
    "forge": _forge,
}
