"""Receipts: what a server signs of an answer it gave, so that a lie is one in front of anybody.

A receipt binds the server's key to the model it says it used, to what it was asked and to what it answered, each by the
digest of the records below; the time is the server's word. Whoever asked keeps the records themselves. Texts have one
receipt for all answers of a question, in `Finished` of /celluler/generate/1; predictions one each, in `Predicted` of
/celluler/infer/1. Spec: docs/reference/protocols/receipts.md
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from blake3 import blake3

from celluler.errors import ProtocolViolation
from celluler.identity import Identity, open_envelope, seal
from celluler.inference import questions
from celluler.inference.questions import MAX_PROMPT_TOKENS, MAX_SCHEMA_BYTES, Question
from celluler.inference.requests import CANCELLED, DEADLINE, ERROR, LENGTH, STOP
from celluler.inference.sampling import MAX_CHOICES, MAX_TOP_LOGPROBS, Chosen, Sampling
from celluler.inference.scores import MAX_SCORED
from celluler.wire import U8, U16, U32, U64, Bytes32, Length, Range, pack
from celluler_protocols.generation.messages import TOKEN_BYTES, pack_tokens, unpack_tokens
from celluler_protocols.inference import MAX_DATA_BYTES, Predict, Predicted

MAX_RECEIPT_BYTES = 1024
MAX_ANSWER_TOKENS = MAX_SCORED
"""Of an answer that can be evidence."""
REASONS = (STOP, LENGTH, CANCELLED, DEADLINE, ERROR)

_DOMAIN = b"celluler-answer-1\0"
_Tokens = Annotated[bytes, Length(0, TOKEN_BYTES * MAX_PROMPT_TOKENS)]
_Short = Annotated[str, Length(1, 16)]
_Shape = Annotated[tuple[Annotated[int, Range(1, 1 << 31)], ...], Length(1, 8)]
_Data = Annotated[bytes, Length(1, MAX_DATA_BYTES)]


@dataclass(frozen=True, slots=True)
class Receipt:
    """model: digest of the manifest. asked: of an `AskedText` or `AskedPrediction`. answers: of each answer, by its
    choice, a `TextAnswer`, or of one `PredictedAnswer`. ended: which of them ended because the model drew a token that
    ends answers, the first in the lowest bit; an answer that was stopped by who asked did not. at_s: Unix time."""

    KIND: ClassVar[str] = "celluler/answer-receipt/1"
    model: Bytes32
    asked: Bytes32
    answers: Annotated[tuple[Bytes32, ...], Length(1, MAX_CHOICES)]
    ended: U16
    at_s: U64


@dataclass(frozen=True, slots=True)
class AskedText:
    """See `Question` and `Sampling`. prompt: tokens, also where the question was a text."""

    prompt: _Tokens
    given: _Tokens
    temperature: float
    top_p: float
    top_k: U32
    seed: U64
    choice: U8
    logprobs: U8 | None
    n: Annotated[int, Range(1, MAX_CHOICES)]
    max_tokens: Annotated[int, Range(1, 2**32 - 1)] | None
    schema: Annotated[bytes, Length(0, MAX_SCHEMA_BYTES)]

    @property
    def sampling(self) -> Sampling:
        """Of the first answer. Raises InvalidSpec for a value out of range."""
        return Sampling(self.temperature, self.top_p, self.top_k, self.seed, self.choice, self.logprobs)


@dataclass(frozen=True, slots=True)
class Likely:
    token: U32
    logprob: float


@dataclass(frozen=True, slots=True)
class SaidToken:
    """See `Chosen`; the text is not part of it, which follows from the tokens."""

    token: U32
    logprob: float | None
    top: Annotated[tuple[Likely, ...], Length(0, MAX_TOP_LOGPROBS)]


@dataclass(frozen=True, slots=True)
class TextAnswer:
    """reason: of `REASONS`, its place."""

    tokens: Annotated[tuple[SaidToken, ...], Length(0, MAX_PROMPT_TOKENS)]
    reason: U8

    @property
    def chosen(self) -> tuple[Chosen, ...]:
        return tuple(
            Chosen(one.token, one.logprob, tuple((it.token, it.logprob) for it in one.top)) for one in self.tokens
        )


@dataclass(frozen=True, slots=True)
class AskedPrediction:
    """See `Predict`, but for its model."""

    output: _Short
    dtype: _Short
    shape: _Shape
    data: _Data


@dataclass(frozen=True, slots=True)
class PredictedAnswer:
    dtype: _Short
    shape: _Shape
    data: _Data


Asked = AskedText | AskedPrediction
Answer = TextAnswer | PredictedAnswer


def asked_text(prompt: tuple[int, ...], question: Question) -> AskedText:
    """prompt: the tokens that the question's came to. Raises InvalidSpec for a token that is none."""
    its = question.sampling
    return AskedText(
        pack_tokens("prompt", prompt), pack_tokens("given", question.given), its.temperature, its.top_p, its.top_k,
        its.seed, its.choice, its.logprobs, question.n, question.max_tokens, question.schema,
    )  # fmt: skip


def asked_prediction(request: Predict) -> AskedPrediction:
    return AskedPrediction(request.output, request.dtype, request.shape, request.data)


def predicted_answer(answer: Predicted) -> PredictedAnswer:
    return PredictedAnswer(answer.dtype, answer.shape, answer.data)


def tokens_in(asked: AskedText) -> tuple[int, ...]:
    """What the model goes on from: the prompt, then what was given."""
    return unpack_tokens(asked.prompt) + unpack_tokens(asked.given)


class Heard:
    """Collects an answer's events, on either side, until it can be signed or held against a receipt."""

    def __init__(self, begun: questions.Begun, question: Question) -> None:
        self.model, self.asked = begun.model, asked_text(begun.prompt, question)
        self._tokens: dict[int, list[SaidToken]] = {choice: [] for choice in range(question.n)}
        self._reasons: dict[int, int] = {}
        self._stopped = 0

    def take(self, event: questions.Event) -> None:
        match event:
            case questions.Said(choice=choice, tokens=tokens):
                self._tokens[choice] += map(_said, tokens)
            case questions.Over(choice=choice, reason=reason):
                self._reasons[choice] = REASONS.index(reason)

    def stop(self, choice: int) -> None:
        """Whoever asked wants no more of this answer. Of one that is over, nothing."""
        if choice not in self._reasons:
            self._stopped |= 1 << choice

    @property
    def answers(self) -> tuple[TextAnswer, ...]:
        """By their choices. Only when all are over."""
        return tuple(TextAnswer(tuple(tokens), self._reasons[choice]) for choice, tokens in self._tokens.items())

    @property
    def ended(self) -> int:
        """As in a receipt, for all that is known on this side: whoever asked may have done so too late."""
        stops = sum(1 << choice for choice, reason in self._reasons.items() if REASONS[reason] == STOP)
        return stops & ~self._stopped

    def sign(self, identity: Identity, clock: Callable[[], float] = time.time) -> bytes:
        return sign_receipt(identity, self.model, self.asked, self.answers, self.ended, clock)

    def check(self, raw: bytes, peer: str) -> Receipt:
        """Raises ProtocolViolation or BadSignature for a receipt that is not this peer's, or not of these answers."""
        receipt = check_receipt(raw, peer, self.model, self.asked, self.answers)
        if receipt.ended & ~self._stopped != self.ended:
            raise ProtocolViolation("a receipt of answers that ended otherwise", peer=peer)
        return receipt


def sign_receipt(
    identity: Identity,
    model: bytes,
    asked: Asked,
    answers: Sequence[Answer],
    ended: int = 0,
    clock: Callable[[], float] = time.time,
) -> bytes:
    digests = tuple(map(digest_of_answer, answers))
    return seal(identity, Receipt(model, digest_of_asked(asked), digests, ended, int(clock())))


def check_receipt(raw: bytes, peer: str, model: bytes, asked: Asked, answers: Sequence[Answer]) -> Receipt:
    """Raises ProtocolViolation or BadSignature for one that is not this peer's, or not of this answer."""
    receipt = open_envelope(Receipt, raw, limit=MAX_RECEIPT_BYTES, signer=peer).record
    said = (receipt.model, receipt.asked, receipt.answers)
    if said != (model, digest_of_asked(asked), tuple(map(digest_of_answer, answers))):
        raise ProtocolViolation("a receipt of another answer", peer=peer)
    return receipt


def digest_of_asked(asked: Asked) -> bytes:
    return _digest("asked", asked)


def digest_of_answer(answer: Answer) -> bytes:
    return _digest("answer", answer)


def _digest(what: str, record: Any) -> bytes:
    kind = f"{what} {type(record).__name__}".encode()
    return blake3(_DOMAIN + kind + b"\0" + pack(record)).digest()


def _said(one: Chosen) -> SaidToken:
    return SaidToken(one.token, one.logprob, tuple(Likely(token, logprob) for token, logprob in one.top))
