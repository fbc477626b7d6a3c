"""Words of /celluler/generate/1, and how questions travel in them. Spec: docs/reference/protocols/generation.md"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from celluler.content.digest import Digest
from celluler.errors import InvalidSpec, ProtocolViolation
from celluler.inference import questions
from celluler.inference.placement import Load
from celluler.inference.questions import (
    MAX_MESSAGES,
    MAX_PROMPT_BYTES,
    MAX_PROMPT_TOKENS,
    MAX_SCHEMA_BYTES,
    Message,
    Prompt,
    Question,
)
from celluler.inference.sampling import MAX_CHOICES, MAX_TOP_LOGPROBS, Chosen, Sampling
from celluler.wire import U8, U32, U64, Bytes32, Frames, Length, Range
from celluler_protocols.inference import Refused

PROTOCOL_ID = "/celluler/generate/1"
MAX_SAID_TOKENS = 64
MAX_TOKEN_TEXT_BYTES, MAX_LIKELY_TEXT_BYTES = 4096, 128
MAX_RECEIPT_BYTES = 1024
MAX_LOADS = 64
TOKEN_BYTES = 4
MAX_FRAME_BYTES = 2 * TOKEN_BYTES * MAX_PROMPT_TOKENS + MAX_SCHEMA_BYTES + 4 * 4096
"""The longest there is: a question of tokens that goes on from tokens, bound to a schema."""

Tokens = Annotated[bytes, Length(0, TOKEN_BYTES * MAX_PROMPT_TOKENS)]
"""Tokens as 4 bytes each, little-endian."""
Choice = Annotated[int, Range(0, MAX_CHOICES - 1)]


@dataclass(frozen=True, slots=True)
class OfText:
    """The model's tokenizer makes tokens of it."""

    text: Annotated[str, Length(1, MAX_PROMPT_BYTES)]


@dataclass(frozen=True, slots=True)
class OfTokens:
    tokens: Annotated[bytes, Length(TOKEN_BYTES, TOKEN_BYTES * MAX_PROMPT_TOKENS)]


@dataclass(frozen=True, slots=True)
class Turn:
    role: Annotated[str, Length(1, 16)]
    text: Annotated[str, Length(0, MAX_PROMPT_BYTES)]


@dataclass(frozen=True, slots=True)
class OfTurns:
    """The model's chat template makes a text of them."""

    turns: Annotated[tuple[Turn, ...], Length(1, MAX_MESSAGES)]


@dataclass(frozen=True, slots=True)
class Drawing:
    """See `Sampling`. choice: of the first answer."""

    temperature: float
    top_p: float
    top_k: U32
    seed: U64
    choice: U8
    logprobs: U8 | None


@dataclass(frozen=True, slots=True)
class Generate:
    """See `Question`. model: `author/name[:version|@alias]`, or the CID of a manifest."""

    model: Annotated[str, Length(1, 256)]
    prompt: OfText | OfTokens | OfTurns
    drawing: Drawing
    n: Annotated[int, Range(1, MAX_CHOICES)]
    max_tokens: Annotated[int, Range(1, 2**32 - 1)] | None
    timeout_ms: Annotated[int, Range(1, 3_600_000)]
    given: Tokens
    schema: Annotated[bytes, Length(0, MAX_SCHEMA_BYTES)]


@dataclass(frozen=True, slots=True)
class Stop:
    """This answer is wanted no further: its Over is all that still comes of it."""

    choice: Choice


@dataclass(frozen=True, slots=True)
class Poll:
    """What is loaded at the server, and how busy is it?"""


@dataclass(frozen=True, slots=True)
class Begun:
    """model: digest of the manifest of the model that answers. prompt: the tokens that it begins from."""

    model: Bytes32
    prompt: Annotated[bytes, Length(TOKEN_BYTES, TOKEN_BYTES * MAX_PROMPT_TOKENS)]
    load: Load


@dataclass(frozen=True, slots=True)
class Likely:
    """text: what might have been read with it; empty where that is nothing."""

    token: U32
    logprob: float
    text: Annotated[str, Length(0, MAX_LIKELY_TEXT_BYTES)] = ""


@dataclass(frozen=True, slots=True)
class Token:
    """See `Chosen`. text: what may be read with it."""

    token: U32
    text: Annotated[str, Length(0, MAX_TOKEN_TEXT_BYTES)]
    logprob: float | None
    top: Annotated[tuple[Likely, ...], Length(0, MAX_TOP_LOGPROBS)]


@dataclass(frozen=True, slots=True)
class Said:
    """The next tokens of an answer."""

    choice: Choice
    tokens: Annotated[tuple[Token, ...], Length(1, MAX_SAID_TOKENS)]


@dataclass(frozen=True, slots=True)
class Over:
    """Nothing more comes of this answer. reason: of `REASONS`, its place. generated: tokens drawn, those given and one
    that ended it included."""

    choice: Choice
    reason: U8
    generated: U32


@dataclass(frozen=True, slots=True)
class Finished:
    """All answers are over. receipt: what the server signs of them; empty where it signs nothing."""

    prompt: U32
    generated: U32
    shared: U32
    receipt: Annotated[bytes, Length(0, MAX_RECEIPT_BYTES)]
    load: Load


@dataclass(frozen=True, slots=True)
class Alive:
    """There is nothing to tell yet, and the server is at it."""

    load: Load


@dataclass(frozen=True, slots=True)
class LoadOf:
    """model: digest of the manifest of a loaded model."""

    model: Bytes32
    load: Load


@dataclass(frozen=True, slots=True)
class Loads:
    models: Annotated[tuple[LoadOf, ...], Length(0, MAX_LOADS)]


REASONS = ("stop", "length", "cancelled", "deadline", "error")
"""Of an Over: the words of `celluler.inference.requests`."""

Asked = Generate | Stop | Poll
Told = Begun | Said | Over | Finished | Alive | Loads | Refused


def frames() -> Frames:
    words = (Generate, Stop, Poll, Begun, Said, Over, Finished, Alive, Loads, Refused)
    return Frames(words, limit=MAX_FRAME_BYTES)  # wire tag = position


# --- questions -------------------------------------------------------------------------------------------------------


def generate_of(model: str, question: Question) -> Generate:
    """Its text stops do not travel: they are whoever asks'. Raises InvalidSpec for a token that is none."""
    drawn = question.sampling
    return Generate(
        model,
        prompt_words(question.prompt),
        Drawing(drawn.temperature, drawn.top_p, drawn.top_k, drawn.seed, drawn.choice, drawn.logprobs),
        question.n,
        question.max_tokens,
        max(1, int(1000 * question.timeout_s)),
        pack_tokens("given", question.given),
        question.schema,
    )


def question_of(request: Generate) -> Question:
    """Raises InvalidSpec for what no model could do, ProtocolViolation for tokens that are not whole."""
    drawing = request.drawing
    return Question(
        prompt_of(request.prompt),
        max_tokens=request.max_tokens,
        sampling=Sampling(
            drawing.temperature, drawing.top_p, drawing.top_k, drawing.seed, drawing.choice, drawing.logprobs
        ),
        n=request.n,
        timeout_s=request.timeout_ms / 1000,
        given=unpack_tokens(request.given),
        schema=request.schema,
    )


def prompt_words(prompt: Prompt) -> OfText | OfTokens | OfTurns:
    if isinstance(prompt, str):
        return OfText(_readable(prompt))
    if isinstance(prompt[0], Message):
        return OfTurns(tuple(Turn(one.role, _readable(one.text)) for one in prompt if isinstance(one, Message)))
    return OfTokens(pack_tokens("prompt", tuple(one for one in prompt if isinstance(one, int))))


def prompt_of(prompt: OfText | OfTokens | OfTurns) -> Prompt:
    match prompt:
        case OfText(text):
            return text
        case OfTokens(tokens):
            return unpack_tokens(tokens)
        case OfTurns(turns):
            return tuple(Message(turn.role, turn.text) for turn in turns)


def _readable(text: str) -> str:
    """Without halves of surrogate pairs, which no UTF-8 carries."""
    return text.encode("utf-8", "replace").decode("utf-8")


def pack_tokens(name: str, tokens: tuple[int, ...]) -> bytes:
    """Raises InvalidSpec, by the name, for more than travel and for a token that is none."""
    if len(tokens) > MAX_PROMPT_TOKENS:
        raise InvalidSpec(name, f"holds {len(tokens)} tokens, at most {MAX_PROMPT_TOKENS}")
    if not all(0 <= token < 1 << 32 for token in tokens):
        raise InvalidSpec(name, "holds a number that is no token")
    return np.array(tokens, dtype="<u4").tobytes()


def unpack_tokens(data: bytes) -> tuple[int, ...]:
    """Raises ProtocolViolation when the last one is not whole."""
    if len(data) % TOKEN_BYTES:
        raise ProtocolViolation(f"{len(data)} bytes of tokens")
    return tuple(np.frombuffer(data, dtype="<u4").tolist())


# --- events ----------------------------------------------------------------------------------------------------------


def begun_words(begun: questions.Begun, load: Load) -> Begun:
    return Begun(begun.model, pack_tokens("prompt", begun.prompt), load)


def begun_of(told: Begun) -> questions.Begun:
    return questions.Begun(Digest(told.model), unpack_tokens(told.prompt))


def said_words(said: questions.Said) -> tuple[Said, ...]:
    """None for one without tokens: text that belongs to no token is not the server's to tell."""
    tokens = tuple(_token_words(one) for one in said.tokens)
    starts = range(0, len(tokens), MAX_SAID_TOKENS)
    return tuple(Said(said.choice, tokens[at : at + MAX_SAID_TOKENS]) for at in starts)


def said_of(told: Said) -> questions.Said:
    chosen = tuple(_chosen(one) for one in told.tokens)
    return questions.Said(told.choice, "".join(one.text for one in chosen), chosen)


def over_words(over: questions.Over) -> Over:
    return Over(over.choice, REASONS.index(over.reason), over.generated)


def over_of(told: Over) -> questions.Over:
    """Raises ProtocolViolation for a reason that is none."""
    if told.reason >= len(REASONS):
        raise ProtocolViolation(f"an answer ended for reason {told.reason}")
    return questions.Over(told.choice, REASONS[told.reason], told.generated)


def finished_words(finished: questions.Finished, load: Load) -> Finished:
    return Finished(finished.prompt, finished.generated, finished.shared, finished.receipt, load)


def finished_of(told: Finished) -> questions.Finished:
    return questions.Finished(told.prompt, told.generated, told.shared, told.receipt)


def _chosen(one: Token) -> Chosen:
    top, texts = tuple((it.token, it.logprob) for it in one.top), tuple(it.text for it in one.top)
    return Chosen(one.token, one.logprob, top, one.text, texts if any(texts) else ())


def _token_words(one: Chosen) -> Token:
    texts = one.top_texts or ("",) * len(one.top)
    top = tuple(
        Likely(token, logprob, text.encode("utf-8", "replace")[:MAX_LIKELY_TEXT_BYTES].decode("utf-8", "ignore"))
        for (token, logprob), text in zip(one.top, texts, strict=True)
    )
    return Token(one.token, _readable(one.text), one.logprob, top)
