"""A node that drives a worker's slots: many ask at once, leave, come too late, and the worker fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from celluler.errors import Busy, InvalidSpec, WorkerFailed
from celluler.inference.requests import Done, Ended, Event, Request, Told
from celluler.inference.sampling import GREEDY, Sampling
from celluler.inference.stops import StopFilter
from celluler.models.spec import format_spec, parse_spec
from celluler.models.templates import fill
from celluler.models.weights import initial_weights
from celluler_node.processes.worker_generate_words import SlotsStepped
from celluler_node.processes.worker_words import LoadModel
from celluler_node.serving.generating import Generating, Queues, open_generating
from tests.support.generating import Worked, reciting

LATER_S = 1000.0


@pytest.fixture
def worked(tmp_path: Path) -> Worked:
    body = parse_spec(fill("transformer-lm"))
    initial_weights(body, b"s" * 32, tmp_path / "weights.safetensors")
    return Worked(tmp_path, LoadModel(format_spec(body), str(tmp_path / "weights.safetensors")))


def asked(client: str, prompt: tuple[int, ...], max_tokens: int = 6, **fields: Any) -> Request:
    return Request(0, client, prompt, max_tokens, **{"deadline_s": LATER_S, "sampling": GREEDY, **fields})


async def told(generating: Generating, request: Request) -> tuple[list[int], list[Event]]:
    """The tokens of the first answer, and all events."""
    async with generating.ask(request) as answers:
        events = [event async for event in answers.events]
    tokens = [one.token for event in events if isinstance(event, Told) and not event.choice for one in event.tokens]
    return tokens, events


async def test_many_ask_at_once_and_each_is_told_what_it_would_be_alone(worked: Worked, autojump_clock: Any) -> None:
    prompts = {f"client {n}": tuple(range(n + 1)) for n in range(7)}
    heard: dict[str, list[int]] = {}
    async with open_generating(worked.call, slots=1) as alone:
        wanted = {client: (await told(alone, asked(client, prompt)))[0] for client, prompt in prompts.items()}
    worked.asked.clear()
    async with open_generating(worked.call, slots=4) as generating, trio.open_nursery() as nursery:

        async def one(client: str) -> None:
            tokens, events = await told(generating, asked(client, prompts[client]))
            heard[client] = tokens
            assert [type(event) for event in events][-2:] == [Ended, Done]

        for client in prompts:
            nursery.start_soon(one, client)
    assert heard == wanted
    assert worked.widest == 4


async def test_who_leaves_has_cancelled_and_who_has_no_time_left_is_told(worked: Worked, autojump_clock: Any) -> None:
    async with open_generating(worked.call, slots=1) as generating:
        async with generating.ask(asked("a", (1, 2), 60)) as answers:
            assert isinstance(await answers.events.receive(), Told)
            assert generating.running == 1
        assert generating.running == 0
        _, events = await told(generating, asked("b", (1,), deadline_s=trio.current_time() - 1))
        assert [event.reason for event in events if isinstance(event, Ended)] == ["deadline"]
        async with generating.ask(asked("c", (3,), 60)) as answers:
            await answers.events.receive()
            answers.stop(0)
            rest = [event async for event in answers.events]
            assert [event.reason for event in rest if isinstance(event, Ended)] == ["stop"]
        assert len((await told(generating, asked("d", (3,))))[0]) == 6


async def test_who_is_being_answered_when_the_model_goes_is_told(worked: Worked, autojump_clock: Any) -> None:
    events: list[Event] = []
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:

            async def one() -> None:
                events.extend((await told(generating, asked("a", (1,), 60)))[1])

            async with open_generating(worked.call, slots=1) as generating:
                nursery.start_soon(one)
                while not generating.running:
                    await trio.lowlevel.checkpoint()
    assert [event.reason for event in events if isinstance(event, Ended)] == ["error"]
    with pytest.raises(WorkerFailed, match="unloaded"):
        async with generating.ask(asked("b", (1,))):
            pass


async def test_a_text_is_gone_on_with_until_a_stop_that_only_its_text_shows(
    tmp_path: Path, autojump_clock: Any
) -> None:
    worked = Worked(tmp_path, reciting("Wie schön,du!".encode(), tmp_path))
    told, reasons = "", []
    async with open_generating(worked.call, slots=1) as generating:
        prompt = await generating.encode("Wi")
        stops = StopFilter[str](("ön,",), "")
        async with generating.ask(asked("a", prompt, 60)) as answers:
            async for event in answers.events:
                match event:
                    case Told(tokens=tokens):
                        passed = stops.feed("".join(one.text for one in tokens))
                        told += passed.told
                        if passed.stopped:
                            answers.stop(event.choice)
                    case Ended(reason=reason):
                        reasons.append(reason)
    assert (told, reasons) == ("e sch", ["stop"])


async def test_a_model_without_texts_is_asked_with_tokens(worked: Worked) -> None:
    async with open_generating(worked.call, slots=1) as generating:
        with pytest.raises(InvalidSpec, match="no tokens of texts"):
            await generating.encode("a")


async def test_who_does_not_listen_holds_up_nobody(worked: Worked, autojump_clock: Any) -> None:
    deaf = asked("a", (1, 2), 60, sampling=Sampling(temperature=1, top_p=1))
    async with open_generating(worked.call, slots=2) as generating, generating.ask(deaf) as answers:
        answers.events.close()
        assert len((await told(generating, asked("b", (3,))))[0]) == 6


async def test_an_error_inside_comes_out_as_it_is(worked: Worked) -> None:
    with pytest.raises(KeyError):
        async with open_generating(worked.call, slots=1):
            raise KeyError


async def test_what_is_refused_is_refused_at_once(worked: Worked, autojump_clock: Any) -> None:
    async with open_generating(worked.call, slots=1, queues=Queues(queue=2)) as generating:
        with pytest.raises(Busy):
            async with generating.ask(asked("a", (1,), n=3)):
                pass
        with pytest.raises(InvalidSpec):
            async with generating.ask(asked("a", (128,))):
                pass
        assert generating.waiting == 0


def _dies(_: Any) -> Any:
    raise WorkerFailed("worker: killed")


def _lies(_: Any) -> Any:
    return SlotsStepped(9, ())


@pytest.mark.parametrize("broken", [_dies, _lies])
async def test_a_worker_that_fails_ends_all_answers_and_nobody_hangs(
    worked: Worked, broken: Callable[[Any], Any], autojump_clock: Any
) -> None:
    ends: list[str] = []
    with trio.fail_after(5):
        async with open_generating(worked.call, slots=2) as generating, trio.open_nursery() as nursery:

            async def one(client: str) -> None:
                _, events = await told(generating, asked(client, (1,), 60))
                ends.extend(event.reason for event in events if isinstance(event, Ended))

            for client in "abc":
                nursery.start_soon(one, client)
            await trio.lowlevel.checkpoint()
            worked.broken = broken
        assert ends == ["error"] * 3
        with pytest.raises(WorkerFailed):
            async with generating.ask(asked("d", (1,))):
                pass
