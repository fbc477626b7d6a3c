"""One answer of another peer, judged: computed again or scored, by whichever bench there is."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from celluler.content.digest import Codec, cid_of
from celluler.errors import InvalidSpec
from celluler.inference.checking import TOLERANCES, Outcome, Tolerance, Verdict, judge
from celluler.inference.comparing import Array, compare, needs_raw
from celluler.inference.scores import Scores
from celluler.models.calls import outputs_of
from celluler.models.interface import Interface
from celluler.tensors import Tensor
from celluler_protocols.answer_evidence import AnswerCase
from celluler_protocols.inference import Predict, Predicted
from celluler_protocols.receipts import AskedPrediction, PredictedAnswer, TextAnswer
from celluler_protocols.scoring import Wanted

RAW = "raw"


class Bench(Protocol):
    """Does a model's work again. Raises CellulerErrors where it cannot."""

    async def score(self, wanted: Wanted) -> Scores: ...

    async def predict(self, request: Predict) -> Predicted: ...


def tolerance_of(interface: Interface) -> Tolerance | None:
    """None for weights stored in a way of which nothing is known."""
    return TOLERANCES.get(interface.body.dtype)


async def judged(case: AnswerCase, interface: Interface, bench: Bench) -> Verdict | None:
    """None where nothing can be said of such an answer. interface: of the model that is said to have answered.

    Raises what the bench does.
    """
    tolerance = tolerance_of(interface)
    if tolerance is None:
        return None
    model = cid_of(case.model, Codec.MANIFEST)
    if isinstance(case.asked, AskedPrediction) and isinstance(case.answer, PredictedAnswer):
        return await _prediction(case.asked, case.answer, model, interface, tolerance, bench)
    assert isinstance(case.answer, TextAnswer)
    ends = tuple(sorted(interface.ends))
    if case.ended and not ends:
        return Verdict(Outcome.WRONG, len(case.answer.tokens), 0, "the end: no token ends answers of this model")
    try:
        claim = case.claim(ends)
    except InvalidSpec:  # bound to a schema, longer than what is scored, or nothing at all
        return None
    scores = await bench.score(Wanted(model, claim, bool(claim.ends), tolerance.slack))
    return judge(scores, claim.sampling, tolerance, case.answer.chosen, ended=bool(claim.ends))


async def _prediction(
    asked: AskedPrediction, told: PredictedAnswer, model: str, interface: Interface, tolerance: Tolerance, bench: Bench
) -> Verdict | None:
    request = Predict(model, asked.output, asked.dtype, asked.shape, asked.data)
    theirs = _array(told.dtype, told.shape, told.data)
    again = await bench.predict(request)
    ours, raw = _array(again.dtype, again.shape, again.data), None
    own = interface.answer_named(asked.output) is None and asked.output in outputs_of(interface.body)
    if own and needs_raw(asked.output, theirs, ours):
        logits = await bench.predict(replace(request, output=RAW))
        raw = _array(logits.dtype, logits.shape, logits.data)
    return compare(asked.output, theirs, ours, tolerance, own=own, raw=raw)


def _array(dtype: str, shape: tuple[int, ...], data: bytes) -> Array:
    array: Array = Tensor(shape, dtype, data).numpy()
    return array
