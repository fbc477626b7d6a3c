"""What a hostile program does that does not end by itself, see `escapes`."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

_THREAD_FLAGS = 0x00010F00  # CLONE_VM, FS, FILES, SIGHAND, THREAD


def machine_code(code: bytes) -> int:
    """Run bytes that were made here: nothing forbids a process to write code for itself."""
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return int(ctypes.CFUNCTYPE(ctypes.c_long)(address)())


def _spin(_: str) -> None:
    while True:
        pass


def _spin_deaf(_: str) -> None:
    """As `spin`, and no signal that can be ignored is heard."""
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    while True:
        pass


def _old_gate(_: str) -> str:
    """The system calls of 32 bits, by their interrupt."""
    return str(machine_code(bytes.fromhex("b814000000 cd80 c3")))  # mov eax, 20 (getpid); int 0x80; ret


def _threads(_: str) -> str:
    """As many as there can be, each with nothing but what the kernel keeps of it."""
    stack = mmap.mmap(-1, 1 << 16)
    top = ctypes.addressof(ctypes.c_char.from_buffer(stack)) + (1 << 16) - 64
    park = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    # start: mov eax, 56 (clone); syscall; test eax, eax; jz sleep; ret; sleep: mov eax, 34 (pause); syscall; jmp sleep
    park.write(bytes.fromhex("b838000000 0f05 85c0 7401 c3 b822000000 0f05 ebf7"))
    start = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_long)(
        ctypes.addressof(ctypes.c_char.from_buffer(park))
    )
    made = 0
    while start(_THREAD_FLAGS, top, 0, 0, 0) > 0:
        made += 1
    time.sleep(60)
    return str(made)


def _fill(on: str) -> None:
    """One file after another, each within the limit."""
    for number in range(1 << 20):
        Path(on, str(number)).write_bytes(bytes(1 << 20))


def _many_names(on: str) -> None:
    for number in range(1 << 24):
        os.close(os.open(f"{on}/{number}", os.O_CREAT | os.O_WRONLY))


def _nest(on: str) -> None:
    """Folders in folders, until a path is too long for anybody."""
    os.chdir(on)
    for _ in range(1100):
        os.mkdir("n" * 200)
        os.chdir("n" * 200)
    time.sleep(60)


def _hide(on: str) -> None:
    """A folder that can be written and not listed."""
    os.mkdir(f"{on}/hidden", 0o300)
    if os.geteuid() == 0:  # nothing is hidden from root
        _fill(f"{on}/hidden")
    Path(on, "hidden/file").write_bytes(bytes(1 << 20))
    time.sleep(60)


def _sleep(on: str) -> None:
    time.sleep(float(on))


def _stay_busy(_: str) -> None:
    """The answer comes at once, and the processor is used on behind it."""
    threading.Thread(target=_spin, args=("-",), daemon=True).start()


def _flood(_: str) -> None:
    """Text without end to the node's log."""
    while True:
        os.write(1, b"x" * 200 + b"\n")


ENDLESS: dict[str, Callable[[str], str | None]] = {
    "spin": _spin,
    "spin deaf": _spin_deaf,
    "old gate": _old_gate,
    "threads": _threads,
    "fill": _fill,
    "many names": _many_names,
    "nest": _nest,
    "hide": _hide,
    "sleep": _sleep,
    "stay busy": _stay_busy,
    "flood": _flood,
}
