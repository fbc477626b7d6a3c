"""The walls around a process that runs what strangers made. Entered before torch is imported, never left.

Order, each step resting on the one before: no new privileges and no capabilities (without the first an unprivileged
process may neither restrict files nor filter calls), then files, then system calls (which forbid the calls that made
the other walls). Limits and the bond to the node are set already (`limits`). A wall that the system cannot build is
named in `Isolation.missing`, and the node shows it; one that fails to stand where it could ends the process.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from celluler_node.processes import landlock, limits, seccomp
from celluler_node.processes.words import Boot, Isolation

_LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/etc/ld.so.cache")
_OWN = ("/proc/self/cmdline",)
"""Of this process alone: TensorFlow ends when it cannot read it."""
_HARDWARE = ("/proc/cpuinfo", "/sys/devices/system/cpu", "/sys/devices/system/node", "/dev/urandom")
_CAPABILITY_VERSION = 0x20080522


def enter(boot: Boot, dies_with_node: bool) -> Isolation:
    """Close every wall this system has. Raises OSError."""
    if sys.platform != "linux":
        return Isolation(dies_with_node, True, False, 0, False, (f"{sys.platform} has no Landlock and no seccomp",))
    limits.few_processes()
    missing: list[str] = []
    if not dies_with_node:
        missing.append("this kernel does not end a process with its parent")
    _give_up_privileges()
    version = landlock.version()
    if version:
        landlock.restrict(rules(boot))
    else:
        missing.append("this kernel has no Landlock: files are not confined")
    lacking = seccomp.available()
    if lacking is None:
        seccomp.install()
    else:
        missing.append(lacking)
    return Isolation(dies_with_node, True, True, version, lacking is None, tuple(missing))


def rules(boot: Boot) -> dict[Path, int]:
    """Path to rights. Nothing may be executed; libraries are mapped, which is reading."""
    granted = dict.fromkeys(map(Path, boot.listable), landlock.LIST)
    granted |= dict.fromkeys(map(Path, (*_LIBRARIES, *_HARDWARE, *_OWN, *boot.readable)), landlock.READ)
    return granted | {Path("/dev/null"): landlock.WRITE_DEVICE, Path(boot.scratch): landlock.SCRATCH}


def _give_up_privileges() -> None:
    """Nothing this process ever starts gains a right; as root it loses root's; nobody may look into its memory."""
    if not limits.prctl(limits.PR_SET_NO_NEW_PRIVS, 1) or not limits.prctl(limits.PR_SET_DUMPABLE, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, nothing) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    os.umask(0o077)
