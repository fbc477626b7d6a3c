"""Evidence of a wrong answer as one file, to be given to somebody who was not there.

A file holds a receipt and what it is of: with the signature it proves who answered what to which question, by which
model. That the model says something else is for whoever opens it to compute. Spec: docs/reference/protocols/receipts.md
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from celluler.content.digest import Digest
from celluler.errors import InvalidSpec, ProtocolViolation
from celluler.identity import PeerId, open_envelope
from celluler.inference.sampling import MAX_CHOICES, Sampling
from celluler.inference.scores import Claim
from celluler.wire import Length, Range, pack, unpack
from celluler_protocols.receipts import (
    MAX_RECEIPT_BYTES,
    Answer,
    Asked,
    AskedPrediction,
    AskedText,
    PredictedAnswer,
    Receipt,
    TextAnswer,
    digest_of_answer,
    digest_of_asked,
    tokens_in,
)

MARK = b"celluler-answer-evidence-1\n"
"""How a file begins."""
MAX_FILE_BYTES = 1 << 25


@dataclass(frozen=True, slots=True)
class AnswerEvidence:
    """receipt: an envelope. choice: the answer that is meant, of those that the receipt is of."""

    receipt: Annotated[bytes, Length(1, MAX_RECEIPT_BYTES)]
    asked: AskedText | AskedPrediction
    answer: TextAnswer | PredictedAnswer
    choice: Annotated[int, Range(0, MAX_CHOICES - 1)]


@dataclass(frozen=True, slots=True)
class AnswerCase:
    """Evidence opened: the signature verified, and that it is of this question and this answer. peer: who answered.
    ended: it says that a token that ends answers was drawn behind the last."""

    peer: PeerId
    model: Digest
    asked: Asked
    answer: Answer
    choice: int
    ended: bool
    at_s: int

    def claim(self, ends: tuple[int, ...] = ()) -> Claim:
        """Of an answer in text. ends: tokens that end answers of this model. Raises InvalidSpec for one that cannot be
        scored: with neither a token nor an end, or bound to a schema."""
        asked, answer = self.asked, self.answer
        if not isinstance(asked, AskedText) or not isinstance(answer, TextAnswer):
            raise InvalidSpec("answer", "is no text")
        if asked.schema:
            raise InvalidSpec("schema", "binds the answer, and such answers are not scored")
        tokens = tuple(one.token for one in answer.tokens)
        given = len(asked.given) // 4
        return Claim(tokens_in(asked), tokens, self.sampling, given, ends if self.ended else ())

    @property
    def sampling(self) -> Sampling:
        assert isinstance(self.asked, AskedText)
        its = self.asked.sampling
        return Sampling(its.temperature, its.top_p, its.top_k, its.seed, its.choice + self.choice, its.logprobs)


def answer_evidence(receipt: bytes, asked: Asked, answer: Answer, choice: int = 0) -> bytes:
    return MARK + pack(AnswerEvidence(receipt, asked, answer, choice))


def open_answer_evidence(raw: bytes) -> AnswerCase:
    """Verify everything in a file that a signature covers. Raises ProtocolViolation or BadSignature, InvalidSpec for
    sampling that there is not."""
    if not raw.startswith(MARK):
        raise ProtocolViolation("no evidence of an answer: such a file begins with " + MARK.decode().strip())
    file = unpack(AnswerEvidence, raw[len(MARK) :], limit=MAX_FILE_BYTES)
    if isinstance(file.asked, AskedText) is not isinstance(file.answer, TextAnswer):
        raise ProtocolViolation("evidence with the answer to another kind of question")
    signed = open_envelope(Receipt, file.receipt, limit=MAX_RECEIPT_BYTES)
    receipt = signed.record
    if file.choice >= len(receipt.answers) or receipt.answers[file.choice] != digest_of_answer(file.answer):
        raise ProtocolViolation("evidence with another answer than was signed")
    if receipt.asked != digest_of_asked(file.asked):
        raise ProtocolViolation("evidence with another question than was signed")
    ended = bool(receipt.ended >> file.choice & 1)
    case = AnswerCase(
        signed.signer, Digest(receipt.model), file.asked, file.answer, file.choice, ended, receipt.at_s
    )  # fmt: skip
    if isinstance(file.asked, AskedText):
        case.sampling  # noqa: B018  what is out of range is refused here
    return case
