"""Writes a run down as one member saw it, so that a stranger can check it afterwards.

Each member keeps the certificates, what was signed, the aggregates and its own updates: the others' it never has whole.
The file is content like any other once the run is over; `celluler verify` reads several of them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import trio

from celluler.aggregation.q16 import part_slices
from celluler.learning.messages import Certificate
from celluler.learning.run import Run
from celluler.learning.transcript import Opening, Signatures, TranscriptWriter
from celluler_node.training.trainer import Update
from celluler_protocols.averaging_messages import VALUE_BYTES

MAX_BYTES = 1 << 30
"""A run of which more would be written keeps no transcript."""
COPY_BYTES = 1 << 20


def expected_bytes(members: int, dimension: int, rounds: int) -> int:
    """About what one member's file takes: its own updates and the aggregates; what is signed weighs little."""
    return rounds * (2 * dimension * VALUE_BYTES + members * members * 128)


class Chronicle:
    """One run's file. One height at a time, in their order."""

    def __init__(self, file: BinaryIO, path: Path, opening: Opening, parts: int) -> None:
        """file: empty, at `path`; the caller closes it."""
        self.path = path
        self._file, self._written, self._size = file, 0, 0
        self._grown = trio.Event()
        self._pieces = part_slices(opening.dimension, parts)
        self._writer = TranscriptWriter(file, opening, parts=parts)
        self._note(0)

    async def reached(self, heights: int) -> None:
        """Until so many are written down."""
        while self._written < heights:
            await self._grown.wait()

    def copy(self, path: Path) -> None:
        """All heights that are written down by now, as a file. Touches the disk: call it in a thread."""
        size = self._size
        with self.path.open("rb") as source, path.open("wb") as target:
            while size and (data := source.read(min(size, COPY_BYTES))):
                target.write(data)
                size -= len(data)

    async def applied(self, run: Run, aggregate: dict[int, bytes], update: Update | None) -> None:
        """The height that was just applied. update: ours, if it was among the inputs."""
        if run.certificates[-1].body.round < self._written:
            return  # written down before we were left behind
        own = {} if update is None else {run.me: self._cut(update)}
        certificate, signed = run.certificates[-1], run.signatures()
        await trio.to_thread.run_sync(lambda: self._writer.add(certificate, signed, aggregate=aggregate, wires=own))
        self._note(1)

    async def missed(self, chain: Sequence[Certificate]) -> None:
        """Heights that were certified without us: nothing is here of them but that."""
        newer = chain[self._written : -1]  # the last one is still to be applied
        for certificate in newer:
            await trio.to_thread.run_sync(self._writer.add, certificate, Signatures())
        self._note(len(newer))

    async def closed(self, run: Run, certificate: Certificate) -> None:
        """The closing height, which certifies the final state."""
        signed = run.signatures()
        await trio.to_thread.run_sync(self._writer.add, certificate, signed)

    def _note(self, heights: int) -> None:
        self._written += heights
        self._size = self._file.tell()
        self._grown.set()
        self._grown = trio.Event()

    def _cut(self, update: Update) -> dict[int, bytes]:
        whole = memoryview(update.mantissas)
        return {
            part: bytes(whole[piece.start * VALUE_BYTES : piece.stop * VALUE_BYTES])
            for part, piece in enumerate(self._pieces)
        }
