"""Folders for work in progress: of processes, and of files on their way into the store.

All of them lie under one folder of the node's home, each is gone after its use, and what a killed node left is removed
by the next one.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import trio

ScratchRoot = Callable[[str], AbstractAsyncContextManager[Path]]
"""Opens a folder for this purpose."""


@asynccontextmanager
async def open_scratch(root: Path) -> AsyncIterator[ScratchRoot]:
    """Empty on entry, removed on exit."""
    await trio.to_thread.run_sync(_empty, root)

    @asynccontextmanager
    async def scratch(purpose: str) -> AsyncIterator[Path]:
        folder = Path(tempfile.mkdtemp(prefix=f"{purpose}-", dir=root))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    try:
        yield scratch
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _empty(root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
