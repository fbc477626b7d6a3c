"""What this node serves, signed: answers leave with a receipt that binds its key to them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from celluler.identity import Identity
from celluler.inference.questions import Answerer, Answering, Event, Finished, Question
from celluler_protocols.inference import Predict, Predicted
from celluler_protocols.receipts import Heard, asked_prediction, predicted_answer, sign_receipt

Predictor = Callable[[Predict], Awaitable[Predicted]]


def signing_predictor(identity: Identity, predictor: Predictor) -> Predictor:
    async def predict(request: Predict) -> Predicted:
        answer = await predictor(request)
        receipt = sign_receipt(identity, answer.model, asked_prediction(request), [predicted_answer(answer)])
        return replace(answer, receipt=receipt)

    return predict


def signing_answerer(identity: Identity, answerer: Answerer) -> Answerer:
    @asynccontextmanager
    async def answer(model: str, question: Question) -> AsyncIterator[Answering]:
        async with answerer(model, question) as answering:
            yield _Signing(identity, answering, question)

    return answer


class _Signing:
    def __init__(self, identity: Identity, answering: Answering, question: Question) -> None:
        self._identity, self._answering = identity, answering
        self._events, self.begun = aiter(answering), answering.begun
        self._heard = Heard(answering.begun, question)

    def __aiter__(self) -> _Signing:
        return self

    async def __anext__(self) -> Event:
        event = await anext(self._events)
        self._heard.take(event)
        return replace(event, receipt=self._heard.sign(self._identity)) if isinstance(event, Finished) else event

    def stop(self, choice: int) -> None:
        self._heard.stop(choice)
        self._answering.stop(choice)
