"""What every answerer guarantees: the worker itself, another peer, and peers of which the first one dies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from celluler.content.digest import Codec, Digest, cid_of
from celluler.errors import InvalidSpec
from celluler.identity import PeerId
from celluler.inference.questions import Answering, Begun, Event, Finished, Over, Question, Said
from celluler.inference.sampling import GREEDY, Sampling
from celluler.models.body import parse_body
from celluler.models.interface import read_interface
from celluler.models.spec import format_spec, parse_spec
from celluler.models.templates import fill
from celluler.models.weights import initial_weights
from celluler_node.placement.talk import Heard, Talk
from celluler_node.processes.worker_words import LoadModel
from celluler_node.serving.writing import Writing, open_writing
from celluler_protocols.generation import ask, serve_generation
from celluler_protocols.nursery import own_nursery
from tests.support.answering import MODEL
from tests.support.choosing import OPENED, open_chooser
from tests.support.generating import Worked

CID = cid_of(MODEL, Codec.MANIFEST)
PROMPT = (7, 8, 9)


class Answerers:
    """All over one worker, which writes."""

    def __init__(self, writing: Writing, nursery: trio.Nursery) -> None:
        self.writing, self._nursery = writing, nursery

    def worker(self, model: str, question: Question) -> AbstractAsyncContextManager[Answering]:
        return self.writing.ask(question, "alice", trio.current_time() + question.timeout_s)

    @asynccontextmanager
    async def remote(self, model: str, question: Question) -> AsyncIterator[Answering]:
        ours, theirs = memory_stream_pair()
        self._nursery.start_soon(serve_generation, theirs, self.worker, dict)
        async with ask(ours, model, question) as answering:
            yield answering

    def chosen(self, model: str, question: Question) -> AbstractAsyncContextManager[Answering]:
        return self._talk(question, dies=False)

    def dying(self, model: str, question: Question) -> AbstractAsyncContextManager[Answering]:
        return self._talk(question, dies=True)

    @asynccontextmanager
    async def _talk(self, question: Question, *, dies: bool) -> AsyncIterator[Answering]:
        @asynccontextmanager
        async def ask_peer(peer: PeerId, asked: Question) -> AsyncIterator[Answering]:
            async with self.remote(CID, asked) as answering:
                yield _Dying(answering) if dies and peer == "first" else answering

        async with open_chooser("first", "second") as chooser, own_nursery() as nursery:
            talk = Talk(chooser, OPENED, question, ask_peer)
            nursery.start_soon(talk.run)
            await talk.begun.wait()
            if talk.journal.begun is None:
                assert talk.told.failure is not None
                raise talk.told.failure
            yield Heard(talk, "alice/writer:1.0.0", CID, talk.journal.begun)


class _Dying:
    """Says three things."""

    def __init__(self, answering: Answering) -> None:
        self.begun, self.stop = answering.begun, answering.stop
        self._answering = answering

    async def __aiter__(self) -> AsyncIterator[Event]:
        left = 3
        async for event in self._answering:
            if not left:
                raise trio.BrokenResourceError
            left -= 1
            yield event


@pytest.fixture
async def answerers(tmp_path: Path) -> AsyncIterator[Answerers]:
    body = parse_spec(fill("transformer-lm"))
    initial_weights(body, b"s" * 32, tmp_path / "weights.safetensors")
    model = LoadModel(format_spec(body), str(tmp_path / "weights.safetensors"))
    interface = read_interface(parse_body(model.body, model.spec), model.preprocess)
    worked = Worked(tmp_path, model)
    async with (
        own_nursery() as nursery,
        open_writing(worked.call, interface, Digest(MODEL), None, on_failure=lambda: None) as writing,
    ):
        assert writing is not None
        yield Answerers(writing, nursery)


NAMES = ["worker", "remote", "chosen", "dying"]
QUESTIONS = {
    "greedy": Question(PROMPT, 12, GREEDY),
    "drawn": Question(PROMPT, 12, Sampling(seed=5)),
    "several": Question(PROMPT, 10, Sampling(temperature=1.5, top_p=0.9, seed=2**63), n=3),
    "likely": Question(PROMPT, 6, Sampling(seed=5, logprobs=3)),
    "as many as fit": Question(PROMPT, None, Sampling(seed=9)),
    "going on": Question(PROMPT, 12, Sampling(seed=5), given=(1, 2, 3)),
}


async def heard(answerers: Answerers, name: str, question: Question) -> tuple[Begun, list[Event]]:
    async with getattr(answerers, name)(CID, question) as answering:
        return answering.begun, [event async for event in answering]


def answer(events: list[Event], choice: int) -> tuple[Any, ...]:
    """Tokens, with logarithms rounded; why it ended, and how many were counted."""
    said = [event for event in events if isinstance(event, Said) and event.choice == choice]
    [over] = [event for event in events if isinstance(event, Over) and event.choice == choice]
    assert all(events.index(event) < events.index(over) for event in said)
    tokens = [
        (one.token, one.logprob and round(one.logprob, 4), tuple(token for token, _ in one.top))
        for event in said
        for one in event.tokens
    ]
    return tokens, over.reason, over.generated


async def test_the_same_is_answered_and_each_answer_ends_once(answerers: Answerers) -> None:
    for question in QUESTIONS.values():
        _, expected = await heard(answerers, "worker", question)
        for name in NAMES[1:]:
            begun, events = await heard(answerers, name, question)
            assert begun == Begun(MODEL, PROMPT)
            for choice in range(question.n):
                assert answer(events, choice) == answer(expected, choice)
            finished = events[-1]
            assert isinstance(finished, Finished)
            assert sum(isinstance(event, Finished) for event in events) == 1
            assert finished.prompt == len(PROMPT)
            assert finished.generated == sum(event.generated for event in events if isinstance(event, Over))


@pytest.mark.parametrize("name", ["worker", "dying"])
async def test_who_is_given_the_beginning_says_the_rest(answerers: Answerers, name: str) -> None:
    question = QUESTIONS["drawn"]
    _, whole = await heard(answerers, "worker", question)
    tokens = tuple(token for token, *_ in answer(whole, 0)[0])
    for count in (1, 11):
        _, rest = await heard(answerers, name, replace(question, given=tokens[:count]))
        assert tuple(token for token, *_ in answer(rest, 0)[0]) == tokens[count:]
        assert answer(rest, 0)[1:] == answer(whole, 0)[1:]


@pytest.mark.parametrize("name", NAMES)
async def test_an_answer_that_is_stopped_ends_and_the_others_go_on(answerers: Answerers, name: str) -> None:
    question = replace(QUESTIONS["several"], max_tokens=16)
    events: list[Event] = []
    async with getattr(answerers, name)(CID, question) as answering:
        async for event in answering:
            events.append(event)
            if isinstance(event, Said) and event.choice == 1:
                answering.stop(1)
    assert answer(events, 1)[1] == "stop"
    assert [answer(events, choice)[1:] for choice in (0, 2)] == [("length", 16)] * 2


@pytest.mark.parametrize("name", NAMES)
async def test_whoever_leaves_has_cancelled(answerers: Answerers, name: str) -> None:
    async with getattr(answerers, name)(CID, replace(QUESTIONS["greedy"], max_tokens=50)) as answering:
        await anext(aiter(answering))
    await wait_all_tasks_blocked()
    assert (answerers.writing.running, answerers.writing.waiting) == (0, 0)


async def test_what_no_model_could_do_is_refused_on_entry(answerers: Answerers) -> None:
    for name in NAMES:
        for wrong in (replace(QUESTIONS["greedy"], prompt=(1 << 20,)), Question("a text", 5), Question((1,) * 500, 5)):
            with pytest.raises(InvalidSpec):
                await heard(answerers, name, wrong)
