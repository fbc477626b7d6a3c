"""A confined program that tries what it should not, by name, and says how each attempt ended."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from celluler.wire import Name, Text
from celluler_node.processes.serving import Link, serve_sync
from celluler_node.processes.words import Program

_X86_64_ONLY = os.uname().machine == "x86_64"


@dataclass(frozen=True, slots=True)
class Attempt:
    """what: a name in `ATTEMPTS`. on: the path or number it is tried on."""

    what: Name
    on: Text


@dataclass(frozen=True, slots=True)
class Outcome:
    """`done`, or the exception's class and errno's name."""

    text: Text


CONFINED = Program("confined", __name__, (Attempt,), (Outcome,), confined=True, max_blob_bytes=1 << 20)


def main(link: Link) -> None:
    serve_sync(link, (Attempt,), (Outcome,), {Attempt: lambda request, _: Outcome(_try(request))})


def _try(request: Attempt) -> str:
    try:
        return str(ATTEMPTS[request.what](request.on) or "done")
    except OSError as error:
        return f"{type(error).__name__}"
    except (ValueError, RuntimeError, MemoryError) as error:
        return f"{type(error).__name__}: {error}"


def _call(number: int, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _fork(_: str) -> str:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "done"


def _thread(_: str) -> str:
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(1))
    thread.start()
    thread.join()
    return "done" if seen else "nothing"


def _thread_socket(_: str) -> str:
    """The filter holds in other threads too."""
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.append(_try(Attempt("inet", "-"))))
    thread.start()
    thread.join()
    return seen[0]


def _train(scratch: str) -> str:
    import torch  # noqa: PLC0415
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    x, y = torch.randn(64, 1, 8, 8), torch.randint(0, 2, (64,))
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    path = Path(scratch) / "weights.safetensors"
    save_file(model.state_dict(), path)
    model.load_state_dict(load_file(path))
    with torch.inference_mode():
        assert model(x).shape == (64, 2)
    return "done" if losses[-1] < losses[0] else "did not learn"


ATTEMPTS: dict[str, Callable[[str], str | None]] = {
    "read": lambda on: str(len(Path(on).read_bytes()) >= 0),
    "list": lambda on: str(len(os.listdir(on)) >= 0),
    "write": lambda on: str(Path(on).write_bytes(b"x")),
    "unlink": os.unlink,
    "mkdir": os.mkdir,
    "link": lambda on: os.link(on, "linked"),
    "rename": lambda on: os.rename(on, "renamed"),
    "symlink": lambda on: os.symlink("/etc/passwd", on),
    "truncate": lambda on: os.truncate(on, 0),
    "chmod": lambda on: os.chmod(on, 0o777),
    "chown": lambda on: os.chown(on, 1, 1),
    "utime": os.utime,
    "inet": lambda _: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close(),
    "udp": lambda _: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close(),
    "unix": lambda _: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).close(),
    "netlink": lambda _: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
    "packet": lambda _: socket.socket(17, socket.SOCK_RAW).close(),
    "pair": lambda _: [end.close() for end in socket.socketpair()] and None,
    "fork": _fork,
    "vfork": lambda _: _call(58) if _X86_64_ONLY else os.fork() and None,
    "exec": lambda on: os.execv(on, [on]),
    "spawn": lambda on: str(subprocess.run([on], check=False).returncode),
    "posix_spawn": lambda on: str(os.posix_spawn(on, [on], {})),
    "kill": lambda on: os.kill(int(on), 0),
    "stop": lambda on: os.kill(int(on), signal.SIGSTOP),
    "ptrace": lambda on: _call(101 if _X86_64_ONLY else 117, 16, int(on), 0, 0),
    "limit_other": lambda on: str(resource.prlimit(int(on), resource.RLIMIT_NOFILE)),
    "raise_limit": lambda _: resource.setrlimit(resource.RLIMIT_AS, (1 << 50, 1 << 50)),
    "renice": lambda on: os.setpriority(os.PRIO_PROCESS, int(on), 19),
    "outlive": lambda _: _call(157 if _X86_64_ONLY else 167, 1, 0, 0, 0, 0),
    "unshare": lambda _: _call(272 if _X86_64_ONLY else 97, 0x10000000),
    "bpf": lambda _: _call(321 if _X86_64_ONLY else 280, 0, 0, 0),
    "io_uring": lambda _: _call(425, 1, 0),
    "userfaultfd": lambda _: _call(323 if _X86_64_ONLY else 282, 0),
    "keyctl": lambda _: _call(250 if _X86_64_ONLY else 219, 0, 0xFFFFFFFD, 0),
    "memfd": lambda _: os.close(os.memfd_create("x")),
    "map": lambda on: mmap.mmap(-1, int(on)).close(),
    "file": lambda on: str(Path(on).write_bytes(bytes(3 << 20))),
    "thread": _thread,
    "thread_socket": _thread_socket,
    "train": _train,
    "environment": lambda _: " ".join(sorted(os.environ)),
    "descriptors": lambda _: " ".join(str(fd) for fd in range(256) if _open(fd)),
}


def _open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
