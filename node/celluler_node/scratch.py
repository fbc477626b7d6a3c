"""Folders for work in progress: of processes, and of files on their way into the store.

All of them lie under one folder of the node's home, each is gone after its use, and what a killed node left is removed
by the next one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path

import trio

from celluler.errors import LocalError

ScratchRoot = Callable[[str], AbstractAsyncContextManager[Path]]
"""Opens a folder for this purpose. Raises LocalError where none can be made, as on a full disk."""


@contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """A folder where this system keeps temporary files, for a process of ours to write; gone afterwards, whatever it
    has made of it."""
    folder = Path(tempfile.mkdtemp(prefix=f"celluler-{purpose}-"))
    try:
        yield folder
    finally:
        remove(folder)


@asynccontextmanager
async def open_scratch(root: Path) -> AsyncIterator[ScratchRoot]:
    """Empty on entry, removed on exit."""
    await trio.to_thread.run_sync(_empty, root)

    @asynccontextmanager
    async def scratch(purpose: str) -> AsyncIterator[Path]:
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"{purpose}-", dir=root))
        except OSError as error:
            raise LocalError(f"no folder can be made in {root}: {error.strerror}") from error
        try:
            yield folder
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(remove, folder)

    try:
        yield scratch
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(remove, root)


def _empty(root: Path) -> None:
    remove(root)
    root.mkdir(parents=True)


def remove(folder: Path) -> None:
    """A folder with all that is in it, whatever the process that wrote it has done: folders nested without end, and
    such as not even their owner may read. What cannot be removed stays. Nobody else may write there meanwhile.

    Folders are lifted to the top before they are emptied: no path grows longer than two names, and nothing recurses
    (`shutil.rmtree` ends in a RecursionError at a thousand).
    """
    while folders := _remove_files(folder):
        if not any([_lift(folder, name) for name in folders]):  # noqa: C419  all of them, at each turn
            break
    with contextlib.suppress(OSError):
        folder.rmdir()


def _remove_files(folder: Path) -> list[str]:
    """The names of the folders that are left in it."""
    folders = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
    return folders


def _lift(top: Path, name: str) -> bool:
    """Remove `top/name`, after what folders it holds have come to lie beside it. True when it has gone."""
    folder = top / name
    with contextlib.suppress(OSError):
        folder.chmod(0o700)
        for inner in _remove_files(folder):
            (folder / inner).chmod(0o700)  # the kernel wants to write into what it moves
            (folder / inner).rename(top / secrets.token_hex(16))
        folder.rmdir()
        return True
    return False
