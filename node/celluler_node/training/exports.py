"""Weights of a run as files, each under a name of its own: what one reads, the next export does not overwrite."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from celluler_node.training.trainer import Trainer


class Exports:
    """One run's at one member."""

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        """folder: an existing one, on the disk on which the trainer writes."""
        self._trainer, self._folder = trainer, folder
        self._one, self._count = trio.Lock(), 0

    @asynccontextmanager
    async def weights(self) -> AsyncIterator[tuple[int, Path]]:
        """(rounds that are in them, the file, which is gone afterwards). Raises WorkerFailed."""
        async with self._one:
            rounds, written = await self._trainer.export()
            self._count += 1
            path = written.rename(self._folder / f"weights-{self._count}.safetensors")
        try:
            yield rounds, path
        finally:
            path.unlink(missing_ok=True)
