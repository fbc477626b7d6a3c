"""What the node asks of a worker that runs one stage of a model, and what it answers. Imports no torch.

A worker holds one stage; slots hold sequences, as far as they were given. Inputs and outputs of a step are one blob
each: token ids as uint32 at the first stage, hidden states in the form that the slot was opened with
(`celluler.inference.hidden`), one row's behind another's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from celluler.inference.caching import MAX_SLOTS
from celluler.inference.stages import MAX_BLOCKS
from celluler.models.body import MAX_BODY_BYTES
from celluler.models.transforms.document import MAX_TRANSFORM_BYTES
from celluler.wire import U8, U32, U64, Length, Range, Text
from celluler_node.processes.words import Answer, PathText, Program
from celluler_node.processes.worker_generate_words import Converse, DrawnToken, Encode, Encoded, Slot
from celluler_node.processes.worker_words import Prepare, Prepared

KEEP, HIDDEN, DRAW = 0, 1, 2
"""What is wanted of a row: that the stage holds it from now on; what comes out of it, too; the next token."""
MAX_PLACES = 1 << 12
"""Of a row."""

BlockNumber = Annotated[int, Range(0, MAX_BLOCKS)]
_Bytes = Annotated[bytes, Length(0, MAX_TRANSFORM_BYTES)]


@dataclass(frozen=True, slots=True)
class LoadStage:
    """Blocks `first` to `until - 1` of a body, with `slots` of `length` places. → StageLoaded

    weights: a safetensors file, with holes where the tensors of other blocks are. preprocess, postprocess, tokenizer:
    as of `LoadModel`. template: the model's chat template, a file, or empty. check: hold it against the whole first,
    see `celluler.engines.stages_check`.
    """

    spec: Annotated[bytes, Length(2, MAX_BODY_BYTES)]
    weights: PathText
    first: BlockNumber
    until: BlockNumber
    slots: Annotated[int, Range(1, MAX_SLOTS)]
    length: U32
    preprocess: _Bytes = b""
    postprocess: _Bytes = b""
    tokenizer: Annotated[str, Length(0, 4096)] = ""
    template: Annotated[str, Length(0, 4096)] = ""
    check: bool = True


@dataclass(frozen=True, slots=True)
class StageLoaded:
    """texts: `Encode` and `Converse` may be asked, and what is drawn is read. apart: how far the check found it from
    the whole, of the largest value; 0 without a check."""

    weight_bytes: U64
    cache_bytes: U64
    texts: bool
    apart: float


@dataclass(frozen=True, slots=True)
class Drawing:
    """See `Sampling`."""

    temperature: float
    top_p: float
    top_k: U32
    seed: U64
    choice: U8
    logprobs: U8 | None


@dataclass(frozen=True, slots=True)
class OpenSequence:
    """Begin in a slot, whatever it held. With one blob: tokens that what is drawn is read behind, as those of a prompt.
    → SequenceOpen

    wire: of its hidden states. drawing: how tokens are drawn, at the last stage.
    """

    slot: Slot
    wire: Annotated[str, Length(1, 16)]
    drawing: Drawing | None


@dataclass(frozen=True, slots=True)
class SequenceOpen:
    """The slot is taken."""


@dataclass(frozen=True, slots=True)
class Row:
    """`count` places of the sequence in a slot, from `start` on. want: KEEP, HIDDEN or DRAW. place: of the token to be
    drawn in its answer."""

    slot: Slot
    start: U32
    count: Annotated[int, Range(1, MAX_PLACES)]
    want: Annotated[int, Range(KEEP, DRAW)]
    place: U32


@dataclass(frozen=True, slots=True)
class StepStage:
    """With one blob, the inputs of all rows. A slot has one row at most. → StageStepped"""

    rows: Annotated[tuple[Row, ...], Length(1, MAX_SLOTS)]


@dataclass(frozen=True, slots=True)
class RowDone:
    """failed: why a row was not computed, else empty: its slot is as it was. out_bytes: of the blob that are its.
    drawn: of a row that was to draw."""

    failed: Text
    out_bytes: U32
    drawn: DrawnToken | None


@dataclass(frozen=True, slots=True)
class StageStepped:
    """With one blob, the outputs. rows: as they were asked."""

    rows: Annotated[tuple[RowDone, ...], Length(1, MAX_SLOTS)]


@dataclass(frozen=True, slots=True)
class CloseSequence:
    """The sequence is over; of a slot that is free, nothing. → SequenceClosed"""

    slot: Slot


@dataclass(frozen=True, slots=True)
class SequenceClosed:
    """The slot is free."""


STAGE_REQUESTS = (LoadStage, OpenSequence, StepStage, CloseSequence, Encode, Converse, Prepare)
STAGE_REPLIES = (StageLoaded, SequenceOpen, StageStepped, SequenceClosed, Encoded, Prepared)

STAGE_WORKER = Program(
    name="stage",
    module="celluler_node.processes.worker_stages",
    requests=STAGE_REQUESTS,
    replies=STAGE_REPLIES,
    confined=True,
    answers={
        LoadStage: Answer((StageLoaded,)),
        OpenSequence: Answer((SequenceOpen,)),
        StepStage: Answer((StageStepped,), blobs=1),
        CloseSequence: Answer((SequenceClosed,)),
        Encode: Answer((Encoded,), blobs=1),
        Converse: Answer((Encoded,), blobs=1),
        Prepare: Answer((Prepared,)),
    },
)
