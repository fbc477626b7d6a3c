"""Evidence of a wrong answer, judged anew by a stranger: the signature, then the model's own word in a confined worker.

What the receipt names by digest is fetched by that digest: the model's manifest, its weights and tokenizer. Whether the
answer is one that the model gives is judged as by a spot check.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celluler.content.digest import Codec, Digest, cid_of, parse_cid
from celluler.errors import CellulerError, ProtocolViolation, WorkerFailed
from celluler.inference.checking import Verdict
from celluler.inference.scores import Scores, open_scores
from celluler.learning.audit import Finding, Outcome
from celluler.models.beside import TOKENIZER
from celluler.models.body import format_body, read_body
from celluler.models.interface import Interface, read_interface
from celluler.models.transforms.document import canonical
from celluler.views import Model
from celluler_node.checks.judging import judged
from celluler_node.processes import worker_words as words
from celluler_node.processes.confinement import confinement
from celluler_node.processes.supervisor import Child, open_process
from celluler_node.processes.words import Limits, Program
from celluler_node.processes.worker_score_words import score_call
from celluler_node.verifying.evidence import Judged
from celluler_protocols.answer_evidence import AnswerCase
from celluler_protocols.inference import Predict, Predicted
from celluler_protocols.receipts import TextAnswer
from celluler_protocols.scoring import Wanted

Find = Callable[[str], Awaitable[Model]]
"""The model of a CID, its manifest verified. Raises a CellulerError when it cannot be had."""
Fetch = Callable[[Digest, str], Awaitable[Path]]
"""(root of a content, `weights` or `tokenizer`) → its file. Raises a CellulerError when it cannot be had."""


@dataclass(frozen=True, slots=True)
class AnswerReport:
    """What a stranger found out about an answer. kind: `text` or `prediction`. model: CID of the manifest. accused: a
    peer id. what: it is said to have done, in words after its name. at_s: Unix time, by the accused's own clock."""

    kind: str
    model: str
    accused: str
    nickname: str
    at_s: int
    what: str
    verdict: Judged
    findings: tuple[Finding, ...]
    ok: bool
    """The evidence holds: the model does not say what it is said to have said."""


@dataclass(frozen=True, slots=True)
class WorkerBench:
    """A worker in which the model is loaded."""

    child: Child

    async def score(self, wanted: Wanted) -> Scores:
        request, blobs = score_call(wanted.claim, wanted.slack)
        reply = await self.child.call(request, *blobs)
        try:
            return open_scores(bytes(reply.blobs[0]), wanted.claim.rows)
        except ProtocolViolation as error:
            raise WorkerFailed(f"the worker's scores are none: {error}") from None

    async def predict(self, request: Predict) -> Predicted:
        call = words.Predict(request.dtype, request.shape, request.output)
        reply = await self.child.call(call, request.data)
        told = reply.record
        return Predicted(told.dtype, told.shape, bytes(reply.blobs[0]), bytes(32), 0)


async def verify_answer(
    case: AnswerCase,
    find: Find,
    fetch: Fetch,
    *,
    worker: Program,
    limits: Limits,
    scratch: Path,
    foreign: bool = False,
) -> AnswerReport:
    """scratch: an existing folder. foreign: as `worker.foreign` is configured. What it lacks is told, not raised."""
    model = cid_of(case.model, Codec.MANIFEST)
    kind = "text" if isinstance(case.answer, TextAnswer) else "prediction"
    signed = Finding("signature", Outcome.OK, 1, 1, f"of a {kind} by {model}")
    verdict: Verdict | None = None
    try:
        told = await find(model)
        if told.spec is None or told.cid != model:
            raise ProtocolViolation("another model than the one asked for")
        interface, load = _interface(told)
        confinement(sandbox=worker.confined, foreign=foreign).require(interface.kind, own=False)
        weights = await fetch(parse_cid(told.weights), "weights")
        tokenizer = told.files.get(TOKENIZER)
        beside = () if tokenizer is None else (await fetch(parse_cid(tokenizer), TOKENIZER),)
        async with open_process(worker, limits=limits, readable=(weights, *beside), scratch=scratch) as child:
            await child.call(load(weights, beside[0] if beside else None))
            verdict = await judged(case, interface, WorkerBench(child))
        answer = _finding(verdict, _count(case))
    except CellulerError as error:
        answer = Finding("answer", Outcome.OPEN, 0, _count(case), str(error))
    judgement = Judged.OPEN if verdict is None else Judged.HOLDS if verdict.wrong else Judged.REFUTED
    what = f"signed a {kind} that {model} does not give"
    return AnswerReport(
        kind, model, case.peer, "", case.at_s, what, judgement, (signed, answer), judgement is Judged.HOLDS
    )  # fmt: skip


def _interface(told: Model) -> tuple[Interface, Callable[[Path, Path | None], words.LoadModel]]:
    """What the model is, by its verified manifest, and how a worker is told to load it. Raises InvalidSpec."""
    body = read_body(told.body, dict(told.spec or {}))
    before, after = _document(told.preprocess), _document(told.postprocess)

    def load(weights: Path, tokenizer: Path | None) -> words.LoadModel:
        beside = "" if tokenizer is None else str(tokenizer)
        return words.LoadModel(format_body(body), str(weights), body.kind, before, after, beside)

    return read_interface(body, before, after), load


def _document(given: Mapping[str, Any] | None) -> bytes:
    return b"" if given is None else canonical(dict(given))


def _count(case: AnswerCase) -> int:
    """Tokens or samples."""
    return len(case.answer.tokens) if isinstance(case.answer, TextAnswer) else case.answer.shape[0]


def _finding(verdict: Verdict | None, of: int) -> Finding:
    if verdict is None:
        return Finding("answer", Outcome.OPEN, 0, of, "such answers cannot be judged")
    if verdict.wrong:
        return Finding("answer", Outcome.OK, verdict.tokens, of, f"the model says something else: {verdict.why}")
    return Finding("answer", Outcome.WRONG, verdict.tokens, of, "the model gives this answer")
