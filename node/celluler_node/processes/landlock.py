"""Which files a confined process may touch, enforced by Landlock: nothing but what a rule names.

Written over ctypes because the call interface is three system calls and two structs, and every version of the kernel
adds rights that must be left out on an older one. Binds the calling thread and what it starts, so it must come before
any other thread does. Source: Linux, Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Mapping
from pathlib import Path

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (1 << bit for bit in range(6, 13))
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15

READ = READ_FILE | READ_DIR
LIST = READ_DIR
WRITE_DEVICE = READ_FILE | WRITE_FILE
SCRATCH = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | REFER | TRUNCATE

_FIRST_RIGHTS = (1 << 13) - 1
_RIGHTS_SINCE = {2: REFER, 3: TRUNCATE, 5: IOCTL_DEV}
_NETWORK_SINCE, _NETWORK_RIGHTS = 4, 0b11  # TCP bind and connect: handled, and allowed by no rule
_SCOPES_SINCE, _SCOPES = 6, 0b11  # abstract Unix sockets, signals to outside
_RIGHTS_OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # the same on x86_64 and aarch64
_VERSION_FLAG, _PATH_BENEATH = 1, 1


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def version() -> int:
    """Of the kernel's interface; 0 where Landlock is not built in, not switched on, or forbidden from outside."""
    return max(0, int(_libc().syscall(_CREATE, None, ctypes.c_size_t(0), _VERSION_FLAG)))


def restrict(rules: Mapping[Path, int], *, network: bool = False) -> None:
    """From here on only this: path -> rights on it and on all beneath it. A path that cannot be reached is left out.

    network: leave TCP alone, for a process that is there for it. Needs no_new_privs. Raises OSError.
    """
    kernel = version()
    files = _FIRST_RIGHTS | sum(right for since, right in _RIGHTS_SINCE.items() if kernel >= since)
    attributes = _Ruleset(
        files,
        _NETWORK_RIGHTS if kernel >= _NETWORK_SINCE and not network else 0,
        _SCOPES if kernel >= _SCOPES_SINCE else 0,
    )
    size = 24 if kernel >= _SCOPES_SINCE else 16 if kernel >= _NETWORK_SINCE else 8
    ruleset = _checked(_libc().syscall(_CREATE, ctypes.byref(attributes), ctypes.c_size_t(size), 0))
    try:
        for path, rights in rules.items():
            _allow(ruleset, path, rights & files)
        _checked(_libc().syscall(_RESTRICT, ruleset, 0))
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _RIGHTS_OF_A_FILE  # the kernel refuses a file's rule that names rights of folders
        rule = _PathBeneath(rights, descriptor)
        _checked(_libc().syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0))
    finally:
        os.close(descriptor)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "landlock")
    return result
