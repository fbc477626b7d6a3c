"""Writes a run down as one member saw it, so that a stranger can check it afterwards.

Each member keeps the certificates, what was signed, the aggregates and its own updates; of others' updates only the
parts that prove a lie, so that it can be seen anew when their members are gone. The file is content like any other once
the run is over; `celluler verify` reads several of them together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import structlog
import trio

from celluler.aggregation.q16 import part_slices
from celluler.learning.messages import Certificate, open_message, places
from celluler.learning.run import Run
from celluler.learning.transcript import HeightRecord, Opening, Signatures, Transcript, TranscriptWriter
from celluler_node.training.trainer import Update
from celluler_protocols.averaging_messages import VALUE_BYTES

log = structlog.get_logger()

MAX_BYTES = 1 << 30
"""A run of which more would be written keeps no transcript."""
MAX_PROOF_BYTES = 1 << 28
"""Of others' updates, in one run."""
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
        self._proofs: dict[tuple[int, int, int, int, bytes], bytes] = {}
        """By whom it is against, round, member, part and the hash by which it was committed to."""
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

    def prove(
        self, against: int, round_number: int, part: int, inputs: Mapping[int, bytes], named: Mapping[int, bytes]
    ) -> None:
        """Part of updates of a round by which `against` was found to lie, by roster place; for `finish`.

        named: the hash by which each member committed to it. What would be too much is left out.
        """
        for member, data in inputs.items():
            size = sum(len(one) for one in self._proofs.values()) + len(data)
            if size <= MAX_PROOF_BYTES:
                self._proofs[against, round_number, member, part, named[member]] = data

    def finish(self, expelled: int) -> None:
        """Put what the run expelled members for beside its rounds; `path` moves. After the last height.

        expelled: mask of roster places. Touches the disk, and leaves the file as it is where there is no room.
        """
        self._proofs = {key: data for key, data in self._proofs.items() if expelled >> key[0] & 1}
        if not self._proofs:
            return
        whole = self.path.with_name(f"{self.path.name}-proven")
        try:
            with self.path.open("rb") as source, whole.open("wb") as target:
                found = Transcript(source)
                found.scan(len(self._pieces))
                writer = TranscriptWriter(target, found.opening, parts=len(self._pieces))
                for number in range(len(found)):
                    self._add_again(writer, found, number)
        except OSError as error:
            log.warning("proofs_not_written", reason=str(error))
            whole.unlink(missing_ok=True)
        else:
            self.path = whole

    def _add_again(self, writer: TranscriptWriter, found: Transcript, number: int) -> None:
        record, pieces = found.height(number), found.pieces(number)
        assert record is not None
        wires = self._proven(record)
        for wire in record.wires:
            wires[wire.member] = {part: pieces.wire(wire.member, part) or b"" for part in places(wire.parts)}
        aggregate = {part: pieces.aggregate(part) or b"" for part in places(record.aggregate)}
        signed = Signatures(record.commits, record.proposal, record.statements)
        writer.add(record.certificate, signed, aggregate=aggregate, wires=wires)

    def _proven(self, record: HeightRecord) -> dict[int, dict[int, bytes]]:
        """By member and part. Who is in the certified set is shown with what the set names alone: a member that signed
        two updates must not make this file contradict itself."""
        body = record.certificate.body
        hashes = [open_message(raw).record.hashes for raw in record.commits] or [()] * body.members.bit_count()
        in_set = dict(zip(places(body.members), hashes, strict=True))
        wires: dict[int, dict[int, bytes]] = {}
        for (_, number, member, part, name), data in self._proofs.items():
            if number == body.round and (member not in in_set or in_set[member][part : part + 1] == (name,)):
                wires.setdefault(member, {})[part] = data
        return wires

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
