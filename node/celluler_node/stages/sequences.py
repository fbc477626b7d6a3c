"""One answer on its way through a line of stages: the prompt in pieces that follow each other through the stages, then
token by token; what was sent is kept, and given again to whoever takes a lost stage over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import trio

from celluler.errors import Busy, CellulerError, LocalError, PeerViolation, Unavailable
from celluler.inference.hidden import hidden_bytes
from celluler.inference.sampling import Chosen, Sampling
from celluler.inference.stages_journal import StagesJournal
from celluler_node.bounded import bounded, plain
from celluler_node.stages.lines import Line
from celluler_protocols.generation.messages import TOKEN_BYTES
from celluler_protocols.stages import Answer
from celluler_protocols.stages_messages import DRAW, HIDDEN, KEEP, MAX_DATA_BYTES, Forward
from celluler_protocols.stages_serving import Stage as OpenedStage

CHUNK = 64
"""Places of a prompt in one piece: while one stage has a piece, the stage before it has the next."""
REPLAY_PLACES = 512
STEP_S = 30.0
"""For one piece or token at one stage."""
MAX_LOSSES = 8
"""Of stages, while one piece or token is at one of them."""
MAX_JOURNAL_BYTES = 1 << 30
_READ_BEFORE = 8
"""Tokens of the prompt that a text's reading begins with."""

Measured = Callable[[str, int, float], None]
"""Told of a peer: bytes of weights that it went through for one place, and how many seconds that took."""


@dataclass(frozen=True, slots=True)
class _Piece:
    start: int
    count: int
    data: bytes


class StagedSequence:
    """One answer. number: its place in the line. prompt: with the tokens of the answer that there are already, so many
    of them `given`."""

    def __init__(
        self, line: Line, number: int, prompt: tuple[int, ...], given: int, sampling: Sampling, measured: Measured
    ) -> None:
        """Raises Busy for one whose journal would be too large."""
        self._line, self._number, self._prompt, self._sampling = line, number, prompt, sampling
        self._measured = measured
        self._said = list(prompt[len(prompt) - given :])
        self._context = prompt[max(0, len(prompt) - given - _READ_BEFORE) : len(prompt) - given]
        widths = [one.stage.given for one in line.positions]
        each = tuple(hidden_bytes(line.wire, 1, width) if width else TOKEN_BYTES for width in widths)
        if sum(each) * line.length > MAX_JOURNAL_BYTES:
            raise Busy("the journal of so long an answer would not fit")
        self._journal = StagesJournal(each)
        self._chunk = max(1, min(CHUNK, MAX_DATA_BYTES // max(*each, *(TOKEN_BYTES,))))
        self._begun = [0] * len(each)
        """Generation of the peer at each stage that knows of this sequence; 0 for none."""
        self._places = 0

    @property
    def places(self) -> int:
        """That all stages hold."""
        return self._places

    async def first(self) -> Chosen | None:
        """The token behind the prompt. Raises as `next`."""
        tokens = np.array(self._prompt, dtype="<u4")
        starts = range(0, len(tokens), self._chunk)
        pieces = [_Piece(at, len(some), some.tobytes()) for at in starts for some in (tokens[at : at + self._chunk],)]
        told: list[Chosen | None] = []
        try:
            async with trio.open_nursery() as nursery:
                send, receive = trio.open_memory_channel[_Piece](len(pieces))
                for piece in pieces:
                    send.send_nowait(piece)
                send.close()
                for stage in range(len(self._line.positions)):
                    onwards, following = trio.open_memory_channel[_Piece](1)
                    nursery.start_soon(self._pass, stage, receive, onwards, told)
                    receive = following
        except BaseExceptionGroup as group:
            raise plain(group) from None
        self._places = len(self._prompt)
        (chosen,) = told
        return self._drawn(chosen)

    async def next(self) -> Chosen | None:
        """The token behind the last one drawn; None where the model gave no logit that is a number.

        Raises NoPeers when a stage is lost and nobody takes it over.
        """
        start, data = self._places, np.array(self._said[-1:], dtype="<u4").tobytes()
        last = len(self._line.positions) - 1
        for stage in range(last):
            out = await self._forward(stage, _Piece(start, 1, data), HIDDEN)
            if not isinstance(out, bytes):
                raise LocalError("hidden states were wanted")
            data = out
        chosen = await self._forward(last, _Piece(start, 1, data), DRAW)
        self._places += 1
        return self._drawn(None if isinstance(chosen, bytes) else chosen)

    async def end(self) -> None:
        """Free its room at all stages, where they still answer."""
        for place, generation in enumerate(self._begun):
            opened = self._line.positions[place].opened
            if opened is not None and generation == self._line.positions[place].generation:
                try:
                    await opened.end(self._number)
                except CellulerError:
                    continue

    def _drawn(self, chosen: Chosen | None) -> Chosen | None:
        if chosen is not None:
            self._said.append(chosen.token)
        return chosen

    async def _pass(
        self,
        stage: int,
        pieces: trio.MemoryReceiveChannel[_Piece],
        onwards: trio.MemorySendChannel[_Piece],
        told: list[Chosen | None],
    ) -> None:
        """All pieces of the prompt through one stage, one after another."""
        is_last = stage == len(self._line.positions) - 1
        async with pieces, onwards:
            async for piece in pieces:
                ends = piece.start + piece.count == len(self._prompt)
                want = (DRAW if ends else KEEP) if is_last else HIDDEN
                out = await self._forward(stage, piece, want)
                if isinstance(out, bytes):
                    await onwards.send(_Piece(piece.start, piece.count, out))
                elif ends:
                    told.append(out)

    async def _forward(self, stage: int, piece: _Piece, want: int) -> Answer:
        """Through one stage, whichever peer has it by then."""
        self._journal.send(stage, piece.start, piece.data)
        for _ in range(MAX_LOSSES):
            opened, generation = await self._line.at(stage)
            peer = self._line.positions[stage].part.peer
            began = trio.current_time()
            try:
                with bounded(STEP_S, "a stage", peer=peer):
                    if self._begun[stage] != generation:
                        await self._begin(opened, stage, piece.start)
                        self._begun[stage], began = generation, trio.current_time()
                    message = Forward(self._number, piece.start, piece.count, want, len(self._said), piece.data)
                    out = await opened.forward(message)
            except (Unavailable, PeerViolation, LocalError) as error:
                self._begun[stage] = 0
                await self._line.replace(stage, generation, error)
                continue
            if piece.count == 1:
                weights = self._line.positions[stage].stage.weight_bytes
                self._measured(peer, weights, trio.current_time() - began)
            return out
        raise Unavailable(f"a stage was lost {MAX_LOSSES} times over one token")

    async def _begin(self, opened: OpenedStage, stage: int, until: int) -> None:
        """Let the peer that has this stage now hold what was sent before."""
        is_last = stage == len(self._line.positions) - 1
        sampling = self._sampling if is_last else None
        context = (*self._context, *self._said) if is_last else ()
        await opened.begin(self._number, sampling, context)
        for piece in self._journal.replay(stage, until, places=REPLAY_PLACES, byte_count=MAX_DATA_BYTES):
            await opened.forward(Forward(self._number, piece.start, piece.count, KEEP, 0, piece.data))
