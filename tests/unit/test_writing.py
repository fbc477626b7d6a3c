"""A loaded model that writes: texts in, texts out, on where an answer stood, and as many at once as fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from celluler.content.digest import Digest
from celluler.errors import Denied, InvalidSpec, WorkerFailed
from celluler.inference.caching import Cached, caching_of
from celluler.inference.questions import Begun, Event, Finished, Message, Over, Question, Said
from celluler.inference.sampling import GREEDY, Chosen, Sampling
from celluler.inference.text_stops import TextStops
from celluler.models.body import parse_body
from celluler.models.interface import read_interface
from celluler.models.memory import RUNTIME_BYTES
from celluler.models.spec import format_spec, parse_spec
from celluler.models.templates import fill
from celluler.models.weights import initial_weights
from celluler_node.processes.worker_generate_words import OpenSlots
from celluler_node.processes.worker_words import LoadModel
from celluler_node.serving.writing import Room, Writing, open_writing, room_of
from tests.support.generating import Worked, reciting

MODEL = Digest(b"m" * 32)
TEXT = "Wie schön,du!"


def opened(worked: Worked, model: LoadModel) -> Any:
    interface = read_interface(parse_body(model.body, model.spec), model.preprocess)
    return open_writing(worked.call, interface, MODEL, None, on_failure=lambda: None)


async def heard(writing: Writing, question: Question, **asked: Any) -> tuple[Begun, list[Event]]:
    deadline_s = asked.pop("deadline_s", trio.current_time() + question.timeout_s)
    async with writing.ask(question, "alice", deadline_s) as answering:
        return answering.begun, [event async for event in answering]


def text_of(events: list[Event], choice: int = 0) -> str:
    return "".join(event.text for event in events if isinstance(event, Said) and event.choice == choice)


def tokens_of(events: list[Event], choice: int = 0) -> tuple[int, ...]:
    told = [event.tokens for event in events if isinstance(event, Said) and event.choice == choice]
    return tuple(one.token for tokens in told for one in tokens)


def over(events: list[Event]) -> list[tuple[str, int]]:
    return [(event.reason, event.generated) for event in events if isinstance(event, Over)]


@pytest.fixture
def lm(tmp_path: Path) -> LoadModel:
    body = parse_spec(fill("transformer-lm"))
    initial_weights(body, b"s" * 32, tmp_path / "weights.safetensors")
    return LoadModel(format_spec(body), str(tmp_path / "weights.safetensors"))


async def test_a_text_is_gone_on_with_and_slots_are_opened_once_somebody_asks(
    tmp_path: Path, autojump_clock: Any
) -> None:
    model = reciting(TEXT.encode(), tmp_path)
    worked = Worked(tmp_path, model)
    async with opened(worked, model) as writing:
        assert not worked.asked
        begun, events = await heard(writing, Question("Wi", 8, GREEDY))
        await heard(writing, Question("Wi", 2, GREEDY))
    assert begun == Begun(MODEL, tuple(b"Wi"))
    assert text_of(events) == "e schön"
    assert tokens_of(events) == tuple("e schön".encode())
    assert over(events) == [("length", 8)]
    assert events[-1] == Finished(2, 8, 0)
    assert [one for one in worked.asked if isinstance(one, OpenSlots)] == [OpenSlots(16)]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.5, seed=3)])
async def test_whoever_goes_on_behind_what_was_given_draws_what_the_first_would_have_drawn(
    tmp_path: Path, lm: LoadModel, sampling: Sampling, autojump_clock: Any
) -> None:
    worked = Worked(tmp_path, lm)
    async with opened(worked, lm) as writing:
        _, whole = await heard(writing, Question((1, 2, 3), 12, sampling))
        assert over(whole) == [("length", 12)]
        for split in (1, 5, 11):
            given = tokens_of(whole)[:split]
            begun, rest = await heard(writing, Question((1, 2, 3), 12, sampling, given=given))
            assert tokens_of(rest) == tokens_of(whole)[split:]
            assert over(rest) == [("length", 12)]
            assert begun.prompt == (1, 2, 3)


async def test_a_character_that_was_given_in_part_is_told_when_it_is_complete(
    tmp_path: Path, autojump_clock: Any
) -> None:
    model = reciting(TEXT.encode(), tmp_path)
    async with opened(Worked(tmp_path, model), model) as writing:
        given = tuple("e schö".encode()[:-1])
        _, events = await heard(writing, Question("Wi", len(given) + 3, GREEDY, given=given))
    assert text_of(events) == "ön,"


@pytest.mark.parametrize(
    ("template", "prompt"),
    [("", "user: du\nassistant:"), ("{% for one in messages %}{{ one.content }}{% endfor %}!", "du!")],
)
async def test_a_conversation_becomes_a_prompt_by_the_models_template(
    tmp_path: Path, template: str, prompt: str, autojump_clock: Any
) -> None:
    model = reciting(TEXT.encode(), tmp_path)
    (tmp_path / "template").write_text(template, encoding="utf-8")
    path = str(tmp_path / "template") if template else ""
    interface = read_interface(parse_body(model.body, model.spec), model.preprocess)
    call = Worked(tmp_path, model).call
    async with open_writing(call, interface, MODEL, None, template=path, on_failure=lambda: None) as writing:
        assert writing is not None
        begun, _ = await heard(writing, Question((Message("user", "du"),), 1))
    assert bytes(begun.prompt).decode() == prompt


async def test_a_template_that_may_not_run_here_is_denied_and_texts_are_not(
    tmp_path: Path, autojump_clock: Any
) -> None:
    model = reciting(TEXT.encode(), tmp_path)
    interface = read_interface(parse_body(model.body, model.spec), model.preprocess)
    call = Worked(tmp_path, model).call
    async with open_writing(call, interface, MODEL, None, template=None, on_failure=lambda: None) as writing:
        assert writing is not None
        with pytest.raises(Denied, match="full sandbox"):
            await heard(writing, Question((Message("user", "du"),), 1))
        assert text_of((await heard(writing, Question("Wi", 1, GREEDY)))[1]) == "e"


async def test_what_no_slot_takes_is_refused_and_the_model_lives_on(lm: LoadModel, tmp_path: Path) -> None:
    async with opened(Worked(tmp_path, lm), lm) as writing:
        for question in (Question("text"), Question((200,)), Question((1,) * 65)):
            with pytest.raises(InvalidSpec, match="prompt"):
                await heard(writing, question)
        assert over((await heard(writing, Question((1,), 1)))[1]) == [("length", 1)]
        assert writing.running == writing.waiting == 0


async def test_an_answer_has_no_more_time_than_was_given_even_while_the_worker_is_at_it(
    tmp_path: Path, lm: LoadModel, autojump_clock: Any
) -> None:
    worked = Worked(tmp_path, lm)

    async def slow(request: Any, *blobs: bytes) -> Any:
        await trio.sleep(3.0)
        return await worked.call(request, *blobs)

    interface = read_interface(parse_body(lm.body, lm.spec))
    async with open_writing(slow, interface, MODEL, None, on_failure=lambda: None) as writing:
        assert writing is not None
        began = trio.current_time()
        _, events = await heard(writing, Question((1, 2)), deadline_s=began + 10.0)
        assert trio.current_time() - began == pytest.approx(10.0)
    assert [reason for reason, _ in over(events)] == ["deadline"]


async def test_a_worker_that_fails_in_the_middle_fails_the_question_and_is_not_used_again(
    tmp_path: Path, lm: LoadModel, autojump_clock: Any
) -> None:
    worked, failed = Worked(tmp_path, lm), trio.Event()
    interface = read_interface(parse_body(lm.body, lm.spec))
    async with open_writing(worked.call, interface, MODEL, None, on_failure=failed.set) as writing:
        assert writing is not None
        async with writing.ask(Question((1, 2)), "alice", trio.current_time() + 60) as answering:
            assert isinstance(await anext(aiter(answering)), Said)
            worked.broken = _dies
            with pytest.raises(WorkerFailed, match="killed"):
                async for _ in answering:
                    pass
        await failed.wait()
        with pytest.raises(WorkerFailed, match="killed"):
            await heard(writing, Question((1, 2)))


def _dies(_: Any) -> Any:
    raise WorkerFailed("worker: killed")


async def test_a_model_that_tells_no_next_token_writes_nothing(tmp_path: Path) -> None:
    interface = read_interface(parse_spec(fill("mlp")))

    async def never(*_: Any) -> Any:
        raise AssertionError

    async with open_writing(never, interface, MODEL, None, on_failure=lambda: None) as writing:
        assert writing is None


def test_as_many_slots_as_fit_beside_the_weights_and_one_at_least() -> None:
    body = parse_spec(fill("transformer-lm"))
    cached, length = caching_of(body), body.input.shape[0]
    assert isinstance(cached, Cached)
    beside = RUNTIME_BYTES + body.parameter_bytes + body.working_bytes
    assert room_of(body, None) == Room(16)
    assert room_of(body, beside + cached.byte_count(40, length)) == Room(16)
    assert room_of(body, beside + cached.byte_count(3, length)) == Room(3)
    assert room_of(body, beside + cached.byte_count(3, length) - 1) == Room(2)
    assert room_of(body, beside + cached.byte_count(1, length) - 1) == Room(1, length - 1)
    assert room_of(body, 0) == Room(1, 1)
    assert room_of(parse_spec(fill("lstm-lm")), 1) == Room(16)


def test_stop_texts_hold_back_what_may_become_one_and_end_their_own_answer_alone() -> None:
    stops = TextStops(("END", "\n"))
    one, two = (Chosen(1),), (Chosen(2),)
    assert stops.feed(Said(0, "so E", one)) == (Said(0, "so ", one),)
    assert stops.feed(Said(1, "E", two)) == (Said(1, "", two),)
    assert stops.feed(Said(0, "ND, and", one)) == (Said(0, "", one),)
    assert stops.take() == (0,)
    assert stops.take() == ()
    assert stops.feed(Said(0, "more", one)) == ()
    assert stops.feed(Over(0, "length", 9)) == (Over(0, "stop", 9),)
    assert stops.feed(Over(1, "length", 1)) == (Said(1, "E", ()), Over(1, "length", 1))
    assert stops.feed(Finished(1, 2, 0)) == (Finished(1, 2, 0),)
