"""A share of the answers of other peers, judged behind the user's back: liars are found, honest peers never accused."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import pytest
import torch
import trio
import trio.testing

from celluler.content.digest import Codec, Digest, cid_of, digest_of
from celluler.engines.generation.scoring import score
from celluler.engines.predict import Predictor
from celluler.errors import Unavailable
from celluler.identity import Identity, PeerId
from celluler.inference.checking import TOLERANCES
from celluler.inference.comparing import compare
from celluler.inference.questions import Begun, Event, Finished, Over, Question, Said
from celluler.inference.sampling import Chosen, Sampling
from celluler.inference.scores import Scores
from celluler.models.body import Body
from celluler.models.interface import Interface
from celluler.models.manifest import OpenedManifest
from celluler.models.spec import parse_spec
from celluler.models.templates import fill
from celluler.models.weights import initial_vector
from celluler_node.checks.judging import Bench
from celluler_node.checks.signing import signing_answerer, signing_predictor
from celluler_node.checks.spot import MAX_WAITING, Caught, Judges, SpotChecks
from celluler_protocols.answer_evidence import open_answer_evidence
from celluler_protocols.inference import Predict, Predicted
from celluler_protocols.scoring import Wanted
from tests.support.lms import Model, lm
from tests.unit.test_checking import answered

pytestmark = pytest.mark.thorough

DIGEST = digest_of(b"a manifest")
CID = cid_of(DIGEST, Codec.MANIFEST)
LIAR, OTHER, THIRD = (Identity(bytes([n]) * 32) for n in (7, 8, 9))
QUESTION = Question((1, 2, 3), max_tokens=12, sampling=Sampling(0.8, seed=4))


@dataclass(frozen=True)
class Opened:
    interface: Interface


@dataclass
class Here:
    """A bench in this process. asked: how often."""

    body: Body
    module: torch.nn.Module | None = None
    predictor: Predictor | None = None
    asked: int = 0

    async def score(self, wanted: Wanted) -> Scores:
        self.asked += 1
        assert self.module is not None
        return score(self.body, self.module, wanted.claim, wanted.slack)

    async def predict(self, request: Predict) -> Predicted:
        self.asked += 1
        assert self.predictor is not None
        x = np.frombuffer(request.data, dtype="<f4").reshape(request.shape).copy()
        told = np.ascontiguousarray(self.predictor.predict(x, request.output))
        return Predicted(told.dtype.name, told.shape, told.tobytes(), DIGEST, 1)


@dataclass
class Setting:
    """own: this node's worker, asked before others if `first`."""

    interface: Interface
    own: Bench | None
    first: bool = True
    others: list[tuple[PeerId, Bench]] = field(default_factory=list)
    caught: list[Caught] = field(default_factory=list)

    def judges(self) -> Judges:
        async def resolve(model: Digest) -> OpenedManifest:
            assert model == DIGEST
            return cast(OpenedManifest, Opened(self.interface))

        async def others(_: OpenedManifest) -> Iterable[tuple[PeerId, Bench]]:
            return self.others

        return Judges(resolve, self.own, lambda _: self.first, others)

    async def tell(self, caught: Caught) -> None:
        self.caught.append(caught)

    async def run(self, hear: Callable[[SpotChecks], Awaitable[None]], share: float = 1.0) -> SpotChecks:
        """All that was heard is checked on exit."""
        checks = SpotChecks(self.judges(), share, self.tell, draws=random.Random(1), clock=lambda: 1_700_000_000.0)
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                await hear(checks)
                waiting = checks._receive.statistics().current_buffer_used
                nursery.start_soon(checks.run)
                while checks.checked + checks.undecided + len(self.caught) < waiting:
                    await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        return checks


class Answer:
    def __init__(self, tokens: list[Chosen]) -> None:
        self.begun = Begun(DIGEST, (1, 2, 3))
        self._tokens = tokens

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._events()

    async def _events(self) -> AsyncIterator[Event]:
        for one in self._tokens:
            yield Said(0, "", (one,))
        yield Over(0, "length", len(self._tokens))
        yield Finished(3, len(self._tokens), 0)

    def stop(self, choice: int) -> None:
        raise AssertionError


def hears(model: Model, *, signed: Identity | None = LIAR) -> Callable[[SpotChecks], Awaitable[None]]:
    """An answer that this model gave."""
    tokens = answered(model, (1, 2, 3), 12, QUESTION.sampling)

    @asynccontextmanager
    async def answerer(model: str, question: Question) -> AsyncIterator[Answer]:
        yield Answer(tokens)

    async def hear(checks: SpotChecks) -> None:
        asks = answerer if signed is None else signing_answerer(signed, answerer)
        async with asks(CID, QUESTION) as answering:
            events = [event async for event in checks.watched(LIAR.peer_id, QUESTION, answering)]
        assert [one.tokens[0].token for one in events if isinstance(one, Said)] == [one.token for one in tokens]

    return hear


@pytest.fixture(scope="module")
def honest() -> Model:
    return lm(seed=1)


@pytest.fixture(scope="module")
def other() -> Model:
    return lm(seed=2)


def here(model: Model) -> Here:
    return Here(model.body, model.module)


async def test_another_model_than_the_one_named_is_caught_and_the_evidence_says_so(honest: Model, other: Model) -> None:
    setting = Setting(Interface(honest.body), here(honest))
    checks = await setting.run(hears(other))
    [caught] = setting.caught
    assert (caught.peer, caught.model, caught.certain) == (LIAR.peer_id, DIGEST, True)
    assert (checks.checked, checks.undecided, checks.caught) == (1, 0, (caught,))
    case = open_answer_evidence(caught.file)
    assert (case.peer, case.model, case.ended) == (LIAR.peer_id, DIGEST, False)


async def test_an_honest_peer_is_not_accused(honest: Model) -> None:
    setting = Setting(Interface(honest.body), here(honest))
    checks = await setting.run(hears(honest))
    assert (setting.caught, checks.checked) == ([], 1)


async def test_an_answer_without_a_receipt_is_checked_and_is_no_evidence(honest: Model, other: Model) -> None:
    setting = Setting(Interface(honest.body), here(honest))
    await setting.run(hears(other, signed=None))
    assert setting.caught[0].file == b""


async def test_a_receipt_of_somebody_else_is_a_lie_by_itself(honest: Model) -> None:
    setting = Setting(Interface(honest.body), here(honest))
    await setting.run(hears(honest, signed=OTHER))
    assert "receipt" in setting.caught[0].why


async def test_nothing_is_checked_where_nothing_is_to_be(honest: Model, other: Model) -> None:
    setting = Setting(Interface(honest.body), here(honest))
    checks = await setting.run(hears(other), share=0.0)
    assert (setting.caught, checks.checked) == ([], 0)


async def test_who_accuses_an_honest_peer_is_not_believed(honest: Model, other: Model) -> None:
    own = here(honest)
    setting = Setting(Interface(honest.body), own, first=False, others=[(OTHER.peer_id, here(other))])
    checks = await setting.run(hears(honest))
    assert (setting.caught, checks.checked, own.asked) == ([], 1, 1)


async def test_without_a_worker_two_must_say_the_same(honest: Model, other: Model) -> None:
    one = [(OTHER.peer_id, here(honest))]
    setting = Setting(Interface(honest.body), None, first=False, others=[(LIAR.peer_id, here(other)), *one])
    checks = await setting.run(hears(other))
    assert (setting.caught, checks.undecided) == ([], 1)
    setting = Setting(Interface(honest.body), None, first=False, others=[*one, (THIRD.peer_id, here(honest))])
    await setting.run(hears(other))
    assert (setting.caught[0].certain, setting.caught[0].file) == (False, b"")


async def test_a_scorer_that_is_gone_is_passed_over(honest: Model, other: Model) -> None:
    @dataclass
    class Gone(Here):
        async def score(self, wanted: Wanted) -> Scores:
            raise Unavailable("gone")

    own = here(honest)
    gone = (THIRD.peer_id, Gone(honest.body))
    setting = Setting(Interface(honest.body), own, first=False, others=[gone, (OTHER.peer_id, here(honest))])
    await setting.run(hears(other))
    assert (setting.caught[0].certain, own.asked) == (True, 1)


async def test_what_finds_no_room_is_not_checked(honest: Model, other: Model) -> None:
    async def many(checks: SpotChecks) -> None:
        for _ in range(MAX_WAITING + 3):
            await hears(other)(checks)

    setting = Setting(Interface(honest.body), here(honest))
    checks = await setting.run(many)
    assert (checks.dropped, checks.checked) == (3, MAX_WAITING)
    assert len(checks.caught) == 1


# --- predictions -----------------------------------------------------------------------------------------------------


def classifier(seed: int) -> Here:
    body = parse_spec(fill("mlp"))
    return Here(body, predictor=Predictor(body, torch.from_numpy(initial_vector(body, bytes([seed]) * 32))))


def batch(bench: Here, rows: int = 6) -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).random((rows, *bench.body.input.shape), dtype=np.float32)


@pytest.mark.parametrize("output", ["raw", "probabilities", "labels"])
async def test_predictions_are_made_again(output: str) -> None:
    model, substituted = classifier(1), classifier(2)
    x = batch(model)
    request = Predict(CID, output, "float32", x.shape, x.tobytes())
    for bench, lies in ((model, False), (substituted, True)):
        answer = await signing_predictor(LIAR, bench.predict)(request)

        async def hear(checks: SpotChecks, answer: Predicted = answer) -> None:
            checks.predicted(LIAR.peer_id, request, answer)

        setting = Setting(Interface(model.body), model)
        checks = await setting.run(hear)
        assert checks.checked == 1
        assert [one.certain for one in setting.caught] == [True] * lies
        if lies:
            assert open_answer_evidence(setting.caught[0].file).peer == LIAR.peer_id


def test_numbers_may_differ_by_what_machines_make_of_them_and_no_more() -> None:
    ours = np.array([[1.0, 200.0], [3.0, 4.0]], dtype=np.float32)
    tolerance = TOLERANCES["float32"]
    near, far = ours.copy(), ours.copy()
    near[0, 0] += 0.05  # a two-thousandth of the largest
    far[1, 0] += 0.05
    verdict = compare("raw", near, ours, tolerance, own=True)
    assert verdict is not None
    assert not verdict.wrong
    verdict = compare("raw", far, ours, tolerance, own=True)
    assert verdict is not None
    assert verdict.why.startswith("sample 1: off by 0.05")
    for poison in (np.nan, np.inf):
        far[1, 0] = poison
        found = compare("raw", far, ours, tolerance, own=True)
        assert found is not None
        assert found.wrong
        assert compare("raw", far, far.copy(), tolerance, own=True) is not None


def test_what_stands_behind_the_model_is_judged_by_equal_bytes_alone() -> None:
    one, other = (np.array([n], dtype=np.int64) for n in (1, 2))
    tolerance = TOLERANCES["float32"]
    assert compare("names", one, other, tolerance, own=False) is None
    equal = compare("names", one, one.copy(), tolerance, own=False)
    assert equal is not None
    assert not equal.wrong


def test_a_label_next_to_the_best_is_honest() -> None:
    raw = np.array([[1.0, 1.0004, 0.0]], dtype=np.float32)
    labels = [np.array([n], dtype=np.int64) for n in (0, 1, 2, 9)]
    tolerance = replace(TOLERANCES["float32"])
    told = [compare("labels", one, labels[1], tolerance, own=True, raw=raw) for one in labels]
    assert [one.wrong for one in told if one is not None] == [False, False, True, True]
