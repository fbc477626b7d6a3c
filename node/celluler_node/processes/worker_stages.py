"""The worker of one stage of a model: hidden states in, hidden states or tokens out. Started confined, before this
module and torch are imported.

Rows of one place are computed all at once, longer ones one after another. A row that does not fit, or whose hidden
states are no numbers, fails alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from celluler.engines.prepare import prepare
from celluler.engines.stages import StageSlots, load_stage
from celluler.engines.stages_check import check_split
from celluler.engines.transforms.decoding import codec_of
from celluler.errors import CellulerError, InvalidSpec, LocalError
from celluler.inference.hidden import WIRES, decode_hidden, encode_hidden, hidden_bytes
from celluler.inference.requests import Drawn, Stepped
from celluler.inference.sampling import Sampling, UndefinedLogits, choose
from celluler.inference.stages import stage_of
from celluler.models.body import SPEC, parse_body
from celluler.models.interface import read_interface
from celluler.models.transforms.decoding import TextCodec, TextStream
from celluler_node.processes.serving import Link, serve_sync
from celluler_node.processes.words import Reply
from celluler_node.processes.worker_generate_words import DrawnToken, reply_of, tokens_of
from celluler_node.processes.worker_stages_words import (
    DRAW,
    KEEP,
    STAGE_REPLIES,
    STAGE_REQUESTS,
    CloseSequence,
    LoadStage,
    OpenSequence,
    Row,
    RowDone,
    SequenceClosed,
    SequenceOpen,
    StageLoaded,
    StageStepped,
    StepStage,
)
from celluler_node.processes.worker_texts import Texts
from celluler_node.processes.worker_words import Prepare, Prepared

Blobs = tuple[bytearray, ...]
_TOKEN_BYTES = 4


def main(link: Link) -> None:
    torch.set_num_threads(max(1, link.boot.limits.threads))
    torch.set_num_interop_threads(1)
    worker = StageWorker(link.boot.limits.memory_bytes)
    serve_sync(link, STAGE_REQUESTS, STAGE_REPLIES, worker.handlers)


@dataclass(slots=True)
class _Sequence:
    """drawing: None at a stage that draws nothing. stream: reads what is drawn."""

    wire: str
    drawing: Sampling | None
    stream: TextStream | None


class StageWorker:
    """One stage, once it is loaded."""

    def __init__(self, memory_bytes: int | None = None) -> None:
        """memory_bytes: what this process may take."""
        self._memory = memory_bytes
        self._slots: StageSlots | None = None
        self._codec: TextCodec | None = None
        self._texts = Texts(lambda: self._codec)
        self._open: dict[int, _Sequence] = {}

    @property
    def handlers(self) -> Mapping[type, Callable[[Any, Blobs], Any]]:
        return {
            LoadStage: self.load,
            OpenSequence: self.open,
            StepStage: self.step,
            CloseSequence: self.close,
            Prepare: self.prepare,
            **self._texts.handlers,
        }

    def load(self, request: LoadStage, _: Blobs) -> StageLoaded:
        body = parse_body(SPEC, request.spec)
        stage = stage_of(body, request.first, request.until)
        interface = read_interface(body, request.preprocess, request.postprocess)
        self._slots, self._codec, self._open = None, None, {}
        module = load_stage(stage, Path(request.weights))
        apart = check_split(stage, module) if request.check else 0.0
        self._slots = StageSlots(
            stage, module, slots=request.slots, length=request.length, memory_bytes=self._memory
        )  # fmt: skip
        if stage.is_first or stage.is_last:
            self._codec = codec_of(interface, Path(request.tokenizer) if request.tokenizer else None)
        self._texts.use(request.template)
        return StageLoaded(stage.weight_bytes, self._slots.cache_bytes, self._codec is not None, apart)

    def open(self, request: OpenSequence, blobs: Blobs) -> SequenceOpen:
        slots = self._need()
        if request.wire not in WIRES:
            raise InvalidSpec("wire", f"is {request.wire!r}, must be one of {', '.join(WIRES)}")
        drawing, stream, told = None, None, request.drawing
        if told is not None:
            drawing = Sampling(
                told.temperature, told.top_p, told.top_k, told.seed, told.choice, told.logprobs
            )  # fmt: skip
            if self._codec is not None:
                stream = self._codec.stream()
                for token in tokens_of(_only(blobs)):
                    stream.feed(token)
        slots.clear(request.slot)
        self._open[request.slot] = _Sequence(request.wire, drawing, stream)
        return SequenceOpen()

    def close(self, request: CloseSequence, _: Blobs) -> SequenceClosed:
        self._open.pop(request.slot, None)
        return SequenceClosed()

    def step(self, request: StepStage, blobs: Blobs) -> Reply:
        slots, data = self._need(), memoryview(_only(blobs))
        if len({row.slot for row in request.rows}) != len(request.rows):
            raise LocalError("a slot has two rows")
        parts = self._parts(request.rows, data)
        done: dict[int, RowDone] = {}
        outs: dict[int, bytes] = {}
        given: dict[int, Tensor] = {}
        for row, part in zip(request.rows, parts, strict=True):
            try:
                given[row.slot] = self._given(row, part)
                if row.count > 1 or row.want == KEEP:
                    told = slots.prefill(row.slot, row.start, given.pop(row.slot), told=row.want != KEEP)
                    done[row.slot], outs[row.slot] = self._told(row, told)
                elif row.start > slots.filled(row.slot) or row.start >= slots.length:
                    raise LocalError(f"slot {row.slot} has no place {row.start} yet, or none at all")
            except CellulerError as error:
                given.pop(row.slot, None)
                done[row.slot], outs[row.slot] = _failed(error), b""
        singles = sorted((row for row in request.rows if row.slot in given), key=lambda row: row.slot)
        if singles:
            x = torch.cat([given[row.slot] for row in singles])
            out = slots.decode([row.slot for row in singles], [row.start for row in singles], x)
            for place, row in enumerate(singles):
                done[row.slot], outs[row.slot] = self._told(row, out[place : place + 1])
        rows = tuple(done[row.slot] for row in request.rows)
        return Reply(StageStepped(rows), (b"".join(outs[row.slot] for row in request.rows),))

    def prepare(self, _: Prepare, __: Blobs) -> Prepared:
        prepare()
        return Prepared()

    def _parts(self, rows: tuple[Row, ...], data: memoryview) -> list[memoryview]:
        """The inputs of each row. Raises LocalError when they are not what the rows say, or a slot is not open."""
        width, parts, start = self._need().stage.given, [], 0
        for row in rows:
            if row.slot not in self._open:
                raise LocalError(f"slot {row.slot} is not open")
            size = hidden_bytes(self._open[row.slot].wire, row.count, width) if width else _TOKEN_BYTES * row.count
            parts.append(data[start : start + size])
            start += size
        if start != len(data):
            raise LocalError(f"inputs of {len(data)} bytes, must be {start}")
        return parts

    def _given(self, row: Row, part: memoryview) -> Tensor:
        stage = self._need().stage
        if row.want == DRAW and (not stage.is_last or self._open[row.slot].drawing is None):
            raise LocalError("a token is drawn by the last stage alone, in a slot that was opened to draw")
        if stage.given:
            wire = self._open[row.slot].wire
            return torch.from_numpy(decode_hidden(wire, part, row.count, stage.given))
        tokens = np.frombuffer(part, dtype="<u4").astype(np.int64)
        if int(tokens.max()) >= stage.body.vocabulary:
            raise LocalError(f"a token that is not below {stage.body.vocabulary}")
        return torch.from_numpy(tokens)

    def _told(self, row: Row, out: Tensor | None) -> tuple[RowDone, bytes]:
        if out is None:
            return RowDone("", 0, None), b""
        if row.want == DRAW:
            return RowDone("", 0, self._draw(row, out[-1])), b""
        data = encode_hidden(self._open[row.slot].wire, out.cpu().numpy())
        return RowDone("", len(data), None), data

    def _draw(self, row: Row, logits: Tensor) -> DrawnToken:
        its, vocabulary = self._open[row.slot], self._need().stage.body.vocabulary
        assert its.drawing is not None
        try:
            chosen = choose(logits[:vocabulary].cpu().numpy(), its.drawing, row.place)
        except UndefinedLogits:
            return reply_of(Stepped(0, (Drawn(row.slot, None),))).drawn[0]
        if its.stream is not None:
            top_texts = tuple(its.stream.peek(token) for token, _ in chosen.top)
            chosen = replace(chosen, text=its.stream.feed(chosen.token), top_texts=top_texts)
        return reply_of(Stepped(0, (Drawn(row.slot, chosen),))).drawn[0]

    def _need(self) -> StageSlots:
        if self._slots is None:
            raise LocalError("no stage is loaded")
        return self._slots


def _only(blobs: Blobs) -> bytearray:
    if len(blobs) != 1:
        raise LocalError(f"{len(blobs)} blobs, must be one")
    return blobs[0]


def _failed(error: CellulerError) -> RowDone:
    told = f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:1024].decode("utf-8", "ignore")
    return RowDone(told, 0, None)
