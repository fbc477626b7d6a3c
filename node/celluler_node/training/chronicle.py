"""Writes a run down as one member saw it, so that a stranger can check it afterwards.

Each member keeps the certificates, what was signed, the aggregates and its own updates; of others' updates only the
parts that prove a reducer's lie, so that it can be computed anew when their members are gone. The file is content like
any other once the run is over; `celluler verify` reads several of them together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import trio

from celluler.aggregation.q16 import part_slices
from celluler.learning.messages import Certificate, open_message, places
from celluler.learning.run import Run
from celluler.learning.transcript import Opening, Signatures, TranscriptWriter
from celluler_node.training.trainer import Update
from celluler_protocols.averaging_messages import VALUE_BYTES

MAX_BYTES = 1 << 30
"""A run of which more would be written keeps no transcript."""
MAX_PROOF_BYTES = 1 << 28
"""Of others' updates, in one run."""
COPY_BYTES = 1 << 20


def expected_bytes(members: int, dimension: int, rounds: int) -> int:
    """About what one member's file takes: its own updates and the aggregates; what is signed weighs little."""
    return rounds * (2 * dimension * VALUE_BYTES + members * members * 128)


@dataclass(frozen=True, slots=True)
class _Proof:
    """Part of a member's update. named: the hash by which it committed to it."""

    member: int
    part: int
    named: bytes
    data: bytes


class Chronicle:
    """One run's file. One height at a time, in their order."""

    def __init__(self, file: BinaryIO, path: Path, opening: Opening, parts: int) -> None:
        """file: empty, at `path`; the caller closes it."""
        self.path = path
        self._file, self._written, self._size = file, 0, 0
        self._grown = trio.Event()
        self._pieces = part_slices(opening.dimension, parts)
        self._writer = TranscriptWriter(file, opening, parts=parts)
        self._proofs: dict[int, list[_Proof]] = {}
        self._proof_bytes = 0
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
        certificate, signed = run.certificates[-1], run.signatures()
        wires = self._proven(certificate, signed)
        wires |= {} if update is None else {run.me: self._cut(update)}
        await trio.to_thread.run_sync(lambda: self._writer.add(certificate, signed, aggregate=aggregate, wires=wires))
        self._note(1)

    def prove(self, round_number: int, part: int, inputs: Mapping[int, bytes], named: Mapping[int, bytes]) -> None:
        """Inputs by which a reducer of this part was found to lie, by roster place; written down with their round.

        named: the hash by which each member committed to its input.
        """
        size = sum(map(len, inputs.values()))
        if round_number < self._written or self._proof_bytes + size > MAX_PROOF_BYTES:
            return
        self._proof_bytes += size
        proofs = self._proofs.setdefault(round_number, [])
        proofs += [_Proof(member, part, named[member], data) for member, data in inputs.items()]

    def _proven(self, certificate: Certificate, signed: Signatures) -> dict[int, dict[int, bytes]]:
        """What proves lies of this round, by member and part. Who is in its set is shown with what the set names alone:
        a member that signed two updates must not make this file contradict itself."""
        body = certificate.body
        hashes = [open_message(raw).record.hashes for raw in signed.commits]
        in_set = dict(zip(places(body.members), hashes or [()] * body.members.bit_count(), strict=True))
        wires: dict[int, dict[int, bytes]] = {}
        for one in self._proofs.pop(body.round, ()):
            if one.member not in in_set or (one.named,) == in_set[one.member][one.part : one.part + 1]:
                wires.setdefault(one.member, {})[one.part] = one.data
        return wires

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
