"""A file that a process says it has written. What it says is no path to follow: it may name any file of the node's."""

from __future__ import annotations

import stat
from pathlib import Path

from celluler.errors import WorkerFailed


def written(scratch: Path, name: str) -> Path:
    """The file of this name that a process was told, or says, to have written into its scratch folder.

    Raises WorkerFailed when there is none, for something else than a plain file with one name, and for a path.
    """
    if Path(name).name != name or name in ("", "..") or scratch.is_symlink():
        raise WorkerFailed(f"{name!r} is no plain file name")
    path = scratch / name
    try:
        found = path.lstat()
    except OSError as error:
        raise WorkerFailed(f"it did not write {name}: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        raise WorkerFailed(f"{name} is no plain file of its own")
    return path
