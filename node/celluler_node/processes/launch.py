"""What a process is started with: its command, its environment, and the paths that its imports need."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from celluler.errors import LocalError
from celluler_node.processes.limits import THREAD_VARIABLES
from celluler_node.processes.words import Boot, Limits, Program

_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
"""All of the node's environment that its processes see: where libraries are, and which accelerators to use."""

_PACKAGES = ("celluler", "celluler_protocols", "celluler_node")


def start(program: Program, limits: Limits, scratch: Path, theirs: socket.socket) -> subprocess.Popen[bytes]:
    """The running process, its end of the channel inherited, stdout and stderr in one pipe.

    Must be called in the thread that runs the node: the kernel ties PDEATHSIG to the thread that forks, and one from
    a pool ends when it has idled (so trio's own `open_process` would have our processes killed after ten seconds).
    A session of its own keeps a Ctrl-C on the node's terminal away from it.
    """
    descriptor = theirs.fileno()
    return subprocess.Popen(
        [sys.executable, "-P", "-s", "-m", f"{__package__}.child", str(descriptor), str(os.getpid()), program.name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(descriptor,),
        cwd=scratch,
        env=_environment(limits, scratch) | dict(program.environment),
        start_new_session=True,
    )


def boot(program: Program, limits: Limits, readable: Sequence[Path], scratch: Path) -> Boot:
    """What the process is told first."""
    code, listable = _code_paths(program.module)
    return Boot(
        name=program.name,
        module=program.module,
        limits=limits,
        confined=program.confined,
        readable=tuple(str(path.resolve()) for path in (*code, *readable)) if program.confined else (),
        listable=tuple(str(path) for path in listable) if program.confined else (),
        scratch=str(scratch.resolve()),
        max_blob_bytes=program.max_blob_bytes,
    )


def _environment(limits: Limits, scratch: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return kept | {
        "PYTHONPATH": os.pathsep.join(str(root) for root in _source_roots()),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        "PYTHONFAULTHANDLER": "1",
        "HOME": str(scratch.resolve()),
        "TMPDIR": str(scratch.resolve()),
        **dict.fromkeys(THREAD_VARIABLES, str(limits.threads)),
        "OMP_WAIT_POLICY": "passive",  # threads that spin while they wait take the cores from everybody else here
    }


def _source_roots() -> tuple[Path, ...]:
    """Where our packages are imported from: three folders in a checkout, site-packages when installed."""
    return tuple(dict.fromkeys(_folder_of(package).parent for package in _PACKAGES))


def _folder_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise LocalError(f"no such package: {package}")
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def _code_paths(module: str) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """(folders to read whole, folders whose names an import lists).

    Not the source roots themselves: beside our packages may lie whatever its owner keeps there.
    """
    ours = tuple(_folder_of(package) for package in dict.fromkeys((*_PACKAGES, module.partition(".")[0])))
    python = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    shared = {Path(sys.base_prefix, "lib"), Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")}  # libpython
    read = (*ours, *sorted(python | shared))
    return read, tuple(dict.fromkeys((*_source_roots(), *(folder.parent for folder in ours))))
