"""What the node asks of a worker that generates, and what it answers. Imports no torch.

The node decides who gets a slot and what a step does (`celluler.inference.scheduler`); `calls_of` and `stepped_of` are
a tick and its outcome in these words. Tokens of a prompt travel as one blob, (tokens,) uint32, little-endian.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from celluler.inference.caching import MAX_SLOTS
from celluler.inference.questions import MAX_MESSAGES, MAX_PROMPT_BYTES
from celluler.inference.requests import Admission, Drawn, Stepped, Tick
from celluler.inference.sampling import MAX_TOP_LOGPROBS, Chosen, Sampling
from celluler.wire import U8, U32, U64, Length, Range, Text
from celluler_node.processes.words import Answer

Slot = Annotated[int, Range(0, MAX_SLOTS - 1)]
_TOKEN = np.dtype("<u4")
_MAX_PIECE_BYTES = 1024
MAX_LIKELY_BYTES = 128


@dataclass(frozen=True, slots=True)
class OpenSlots:
    """Make room to generate with the model that is loaded; what was open before is closed. → SlotsOpen

    length: places of a slot, None for as many as the model looks at. template: the model's chat template, a file, or
    empty.
    """

    slots: Annotated[int, Range(1, MAX_SLOTS)]
    length: U32 | None = None
    template: Annotated[str, Length(0, 4096)] = ""


@dataclass(frozen=True, slots=True)
class SlotsOpen:
    """vocabulary: tokens are below it. cache_bytes: 0 of a model that keeps nothing, and not_cached says why not.
    texts: what is drawn can be read, and `Encode` asked. schemas: so can `Bind`."""

    length: U32
    vocabulary: U64
    cache_bytes: U64
    not_cached: Text
    texts: bool
    schemas: bool = False


@dataclass(frozen=True, slots=True)
class Encode:
    """With a text as one blob, in UTF-8: its tokens, as the model is asked with texts, without an end. → Encoded"""


@dataclass(frozen=True, slots=True)
class Turn:
    role: Annotated[str, Length(1, 16)]
    text: Annotated[str, Length(0, MAX_PROMPT_BYTES)]


@dataclass(frozen=True, slots=True)
class Converse:
    """The tokens of a conversation up to where its next answer begins, by the chat template of the slots. → Encoded"""

    turns: Annotated[tuple[Turn, ...], Length(1, MAX_MESSAGES)]


@dataclass(frozen=True, slots=True)
class Bind:
    """With a JSON Schema as one blob: whether answers can be bound to it. → Bound"""


@dataclass(frozen=True, slots=True)
class Bound:
    """They can."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """With the tokens as one blob, as those of a prompt."""


@dataclass(frozen=True, slots=True)
class Admit:
    """With the prompt as one blob, and the schema of `Bind` as another where there is one: begin a sequence in a slot
    that is free. → Admitted

    temperature … logprobs: see `Sampling`; source, shared, drawn: see `GeneratingSlots.admit`.
    """

    slot: Slot
    temperature: float
    top_p: float
    top_k: U32
    seed: U64
    choice: U8
    logprobs: U8 | None
    source: Slot | None
    shared: U32
    drawn: U32 = 0


@dataclass(frozen=True, slots=True)
class Admitted:
    """The slot is taken."""


@dataclass(frozen=True, slots=True)
class Step:
    """Prefill one slot by at most `count` tokens, then decode others, ascending, by one token. → SlotsStepped"""

    prefill: Slot | None
    count: U32
    decode: Annotated[tuple[Slot, ...], Length(0, MAX_SLOTS)]


@dataclass(frozen=True, slots=True)
class Likely:
    """A token that might have been drawn, the logarithm of its probability, and the text that would have been told,
    cut as that of a token is."""

    token: U32
    logprob: float
    text: Annotated[str, Length(0, MAX_LIKELY_BYTES)] = ""


@dataclass(frozen=True, slots=True)
class DrawnToken:
    """token: None of a slot in which the model gave no logit that is a number. logprob, top: if asked for. text: see
    `Chosen`; cut where it is longer than a piece may be. last: see `Drawn`."""

    slot: Slot
    token: U32 | None
    logprob: float | None
    top: Annotated[tuple[Likely, ...], Length(0, MAX_TOP_LOGPROBS)]
    text: Text
    last: bool = False


@dataclass(frozen=True, slots=True)
class SlotsStepped:
    """left: of the prompt that was prefilled. drawn: one a slot that has a next token."""

    left: U32
    drawn: Annotated[tuple[DrawnToken, ...], Length(0, MAX_SLOTS)]


@dataclass(frozen=True, slots=True)
class Release:
    """A sequence is over, whatever it was at; of a slot that is free, nothing. → Released"""

    slot: Slot


@dataclass(frozen=True, slots=True)
class Released:
    """The slot is free."""


GENERATE_REQUESTS = (OpenSlots, Admit, Step, Release, Encode, Converse, Bind)
GENERATE_REPLIES = (SlotsOpen, Admitted, SlotsStepped, Released, Encoded, Bound)
GENERATE_ANSWERS = {
    OpenSlots: Answer((SlotsOpen,)),
    Admit: Answer((Admitted,)),
    Step: Answer((SlotsStepped,)),
    Release: Answer((Released,)),
    Encode: Answer((Encoded,), blobs=1),
    Converse: Answer((Encoded,), blobs=1),
    Bind: Answer((Bound,)),
}


def calls_of(tick: Tick) -> Iterator[tuple[Any, tuple[bytes, ...]]]:
    """The requests of a tick with their blobs, in the order in which they are to be asked; the last is its `Step`."""
    for slot in tick.releases:
        yield Release(slot), ()
    for one in tick.admissions:
        yield _admit(one), (blob_of(one.prompt), *([one.schema] if one.schema else []))
    yield Step(tick.prefill, tick.count, tick.decode), ()


def stepped_of(reply: SlotsStepped) -> Stepped:
    """The outcome of a tick, for `Scheduler.stepped`."""
    return Stepped(reply.left, tuple(_drawn(one) for one in reply.drawn))


def sampling_of(request: Admit) -> Sampling:
    """Raises InvalidSpec for a value out of range."""
    return Sampling(
        request.temperature, request.top_p, request.top_k, request.seed, request.choice, request.logprobs
    )  # fmt: skip


def blob_of(tokens: Sequence[int]) -> bytes:
    return np.array(tokens, dtype=_TOKEN).tobytes()


def tokens_of(blob: bytes | bytearray) -> list[int]:
    """The tokens of a prompt; what is behind the last whole one counts for nothing."""
    tokens: list[int] = np.frombuffer(blob, dtype=_TOKEN, count=len(blob) // _TOKEN.itemsize).tolist()
    return tokens


def reply_of(stepped: Stepped) -> SlotsStepped:
    """What the worker says of an outcome."""
    return SlotsStepped(stepped.left, tuple(_token(one) for one in stepped.drawn))


def _admit(one: Admission) -> Admit:
    its = one.sampling
    divisor, share = float(its.temperature), float(its.top_p)
    drawing = its.top_k, its.seed, its.choice, its.logprobs
    return Admit(one.slot, divisor, share, *drawing, one.source, one.shared, one.drawn)


def _token(one: Drawn) -> DrawnToken:
    if one.chosen is None:
        return DrawnToken(one.slot, None, None, (), "")
    chosen = one.chosen
    texts = [_cut(text, MAX_LIKELY_BYTES) for text in chosen.top_texts] or [""] * len(chosen.top)
    top = tuple(Likely(*likely, text) for likely, text in zip(chosen.top, texts, strict=True))
    return DrawnToken(one.slot, chosen.token, chosen.logprob, top, _cut(chosen.text, _MAX_PIECE_BYTES), one.last)


def _cut(text: str, byte_count: int) -> str:
    return text.encode("utf-8", "replace")[:byte_count].decode("utf-8", "ignore")


def _drawn(one: DrawnToken) -> Drawn:
    if one.token is None:
        return Drawn(one.slot, None)
    top = tuple((its.token, its.logprob) for its in one.top)
    texts = tuple(its.text for its in one.top)
    return Drawn(one.slot, Chosen(one.token, one.logprob, top, one.text, texts if any(texts) else ()), one.last)
