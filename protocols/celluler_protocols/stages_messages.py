"""Words of /celluler/stage/1. Spec: docs/reference/protocols/stages.md"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from celluler.inference import questions
from celluler.inference.caching import MAX_SLOTS
from celluler.inference.sampling import Chosen, Sampling
from celluler.inference.stages import MAX_BLOCKS
from celluler.wire import U8, U32, U64, Bytes32, Frames, Length, Range, Text
from celluler_protocols.generation.messages import (
    TOKEN_BYTES,
    Drawing,
    OfText,
    OfTurns,
    Said,
    Token,
    said_of,
    said_words,
)
from celluler_protocols.inference import Refused

PROTOCOL_ID = "/celluler/stage/1"
KEEP, HIDDEN, DRAW = 0, 1, 2
"""What is wanted of places: that the stage holds them; what comes out of them, too; the token behind the last."""
MAX_DATA_BYTES = 4 << 20
"""Of hidden states or tokens in one message."""
MAX_PLACES = 1 << 12
MAX_CONTEXT_TOKENS = 1 << 17
MAX_READ_TOKENS = 1 << 17
MAX_FRAME_BYTES = MAX_DATA_BYTES + 4096

BlockNumber = Annotated[int, Range(0, MAX_BLOCKS)]
SequenceNumber = Annotated[int, Range(0, MAX_SLOTS - 1)]


@dataclass(frozen=True, slots=True)
class OpenStage:
    """Hold blocks `first` to `until - 1` of a model, with room for `slots` sequences of `length` places.

    model: digest of its manifest. wire: form of hidden states, in both directions, see `celluler.inference.hidden`.
    """

    model: Bytes32
    first: BlockNumber
    until: BlockNumber
    slots: Annotated[int, Range(1, MAX_SLOTS)]
    length: Annotated[int, Range(1, 2**32 - 1)]
    wire: Annotated[str, Length(1, 16)]


@dataclass(frozen=True, slots=True)
class StageReady:
    """slots: sequences that there is room for, at most as many as were asked for: numbers below are free to use.
    weight_bytes, cache_bytes: what it takes. texts: `Read` may be asked."""

    slots: Annotated[int, Range(1, MAX_SLOTS)]
    weight_bytes: U64
    cache_bytes: U64
    texts: bool


@dataclass(frozen=True, slots=True)
class Read:
    """Which tokens does the model make of this? Of a stage at either end. One at a time."""

    prompt: OfText | OfTurns


@dataclass(frozen=True, slots=True)
class Tokens:
    tokens: Annotated[bytes, Length(0, TOKEN_BYTES * MAX_READ_TOKENS)]


@dataclass(frozen=True, slots=True)
class Unread:
    """A Read that cannot be answered. code: a `Refusal`."""

    code: U8
    message: Text


@dataclass(frozen=True, slots=True)
class Begin:
    """A sequence with nothing in it yet, whatever its number was used for. drawing: at the last stage, how tokens are
    drawn. context: tokens behind which what is drawn is read: the last of the prompt, and those drawn already."""

    sequence: SequenceNumber
    drawing: Drawing | None
    context: Annotated[bytes, Length(0, TOKEN_BYTES * MAX_CONTEXT_TOKENS)]


@dataclass(frozen=True, slots=True)
class Forward:
    """`count` places from `start` on, which is where the sequence ends, or before it: it is then cut off there.

    want: KEEP, HIDDEN or DRAW. place: of a token to be drawn, in its answer. data: token ids as 4 bytes each at the
    first stage, else hidden states. No other of the same sequence before this one's answer.
    """

    sequence: SequenceNumber
    start: U32
    count: Annotated[int, Range(1, MAX_PLACES)]
    want: U8
    place: U32
    data: Annotated[bytes, Length(1, MAX_DATA_BYTES)]


@dataclass(frozen=True, slots=True)
class Held:
    """The sequence has `end` places."""

    sequence: SequenceNumber
    end: U32


@dataclass(frozen=True, slots=True)
class Hidden:
    """And this came out of those that were sent."""

    sequence: SequenceNumber
    end: U32
    data: Annotated[bytes, Length(1, MAX_DATA_BYTES)]


@dataclass(frozen=True, slots=True)
class Drawn:
    """And this token comes next; None where the model gave no logit that is a number."""

    sequence: SequenceNumber
    end: U32
    token: Token | None


@dataclass(frozen=True, slots=True)
class Failed:
    """A Begin or Forward that was not done; the sequence is to be begun anew. code: a `Refusal`."""

    sequence: SequenceNumber
    code: U8
    message: Text


@dataclass(frozen=True, slots=True)
class End:
    """The sequence is over, and its room is free."""

    sequence: SequenceNumber


Asked = OpenStage | Read | Begin | Forward | End
Told = StageReady | Refused | Tokens | Unread | Held | Hidden | Drawn | Failed


def frames() -> Frames:
    words = (
        *(OpenStage, StageReady, Refused, Read, Tokens, Unread),
        *(Begin, Forward, Held, Hidden, Drawn, Failed, End),
    )
    return Frames(words, limit=MAX_FRAME_BYTES)  # wire tag = position


def drawing_of(sampling: Sampling) -> Drawing:
    return Drawing(
        float(sampling.temperature),
        float(sampling.top_p),
        sampling.top_k,
        sampling.seed,
        sampling.choice,
        sampling.logprobs,
    )


def sampling_of(drawing: Drawing) -> Sampling:
    """Raises InvalidSpec for a value out of range."""
    return Sampling(
        drawing.temperature, drawing.top_p, drawing.top_k, drawing.seed, drawing.choice, drawing.logprobs
    )  # fmt: skip


def token_words(chosen: Chosen) -> Token:
    return said_words(questions.Said(0, "", (chosen,)))[0].tokens[0]


def chosen_of(token: Token) -> Chosen:
    return said_of(Said(0, (token,))).tokens[0]
