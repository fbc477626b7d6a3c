"""Answers by a line of stages: those of the whole model, also when stages are lost on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trio
from trio.testing import wait_all_tasks_blocked

from celluler.engines.generation.slots import GeneratingSlots
from celluler.engines.modules import module_of
from celluler.errors import InvalidSpec, NoPeers
from celluler.identity import Identity
from celluler.inference.memory import WORKER_BYTES
from celluler.inference.questions import Event, Finished, Over, Question, Said
from celluler.inference.sampling import GREEDY, Sampling
from celluler.models.spec import Architecture, parse_spec
from celluler.models.templates import fill
from celluler.models.weights import initial_vector, load_vector, save_vector
from celluler_node.stages import answering as staging
from celluler_node.stages.answering import StagedAnswerer
from celluler_node.stages.peers import StagePeers
from celluler_protocols.nursery import own_nursery
from tests.support.generating import reciting
from tests.support.stages import SERVING, StageSwarm, manifest

pytestmark = pytest.mark.thorough

BODY = parse_spec(fill("transformer-lm", ["layers[1].times=4", "input.shape=[48]"]))
PROMPT = tuple(range(3, 12))
OWN = "own"


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("staging") / "weights"
    drawn = np.random.default_rng(1).normal(0.0, 0.1, BODY.dimension).astype(np.float32)
    save_vector(BODY, initial_vector(BODY, b"s" * 32) + drawn, path)
    return path


def whole(body: Architecture, path: Path, prompt: tuple[int, ...], count: int, sampling: Sampling) -> list[int]:
    """What slots of the whole model draw."""
    slots = GeneratingSlots(body, module_of(body, torch.from_numpy(load_vector(body, path))).eval(), slots=1)
    slots.admit(0, prompt, sampling)
    drawn = [one.chosen for one in slots.step(0, len(prompt), ()).drawn]
    for _ in range(count - 1):
        drawn += [one.chosen for one in slots.step(None, 1, (0,)).drawn]
    return [one.token for one in drawn if one is not None]


@asynccontextmanager
async def staged(
    path: Path, peers: int = 4, body: Architecture = BODY, **fields: Any
) -> AsyncIterator[tuple[StagedAnswerer, StageSwarm]]:
    with trio.fail_after(60):
        async with own_nursery() as nursery:
            swarm = StageSwarm(nursery, manifest(body, **fields), path, peers)
            known = StagePeers(OWN, replace(SERVING, roles=()), swarm.members, swarm.penalise)  # type: ignore[arg-type]
            yield StagedAnswerer(swarm, swarm.open_at, known, nursery), swarm  # type: ignore[arg-type]


async def told(answerer: StagedAnswerer, question: Question, stages: int = 3, **fields: Any) -> list[Event]:
    async with answerer("alice/split", replace(question, stages=stages), **fields) as answering:
        assert question.prompt == answering.begun.prompt or isinstance(question.prompt, str)
        return [event async for event in answering]


def tokens(events: list[Event], choice: int = 0) -> list[int]:
    return [one.token for event in events if isinstance(event, Said) and event.choice == choice for one in event.tokens]


@pytest.mark.parametrize("stages", [1, 2, 3])
async def test_greedy_tokens_are_those_of_the_whole_model(weights: Path, stages: int) -> None:
    async with staged(weights) as (answerer, swarm):
        events = await told(answerer, Question(PROMPT, 12, GREEDY), stages)
        assert len(swarm.opened) == stages
    assert tokens(events) == whole(BODY, weights, PROMPT, 12, GREEDY)
    assert events[-2:] == [Over(0, "length", 12), Finished(len(PROMPT), 12, 0)]


async def test_several_answers_are_in_the_pipe_at_once_and_each_is_its_own(weights: Path) -> None:
    drawn = Sampling(temperature=0.8, seed=5)
    prompts = [PROMPT, (1, 2), tuple(range(40))]
    heard: dict[int, list[int]] = {}
    async with staged(weights) as (answerer, swarm), trio.open_nursery() as nursery:

        async def one(at: int) -> None:
            heard[at] = tokens(await told(answerer, Question(prompts[at], 8, drawn), wire="float32"))

        for at in range(len(prompts)):
            nursery.start_soon(one, at)
    assert [heard[at] for at in range(3)] == [whole(BODY, weights, prompt, 8, drawn) for prompt in prompts]
    assert len(swarm.opened) == 3
    async with staged(weights) as (answerer, swarm):
        events = await told(answerer, Question(PROMPT, 5, drawn, n=6), wire="float32")  # more than there are places
    for choice in (0, 5):
        assert tokens(events, choice) == whole(BODY, weights, PROMPT, 5, replace(drawn, choice=choice))
    assert sum(isinstance(event, Over) for event in events) == 6


@pytest.mark.parametrize(("place", "forwards"), [(0, 1), (1, 0), (1, 4), (2, 5)])
async def test_a_stage_that_is_lost_is_replaced_and_no_token_is_lost_or_told_twice(
    weights: Path, place: int, forwards: int
) -> None:
    async with staged(weights) as (answerer, swarm):
        first = await told(answerer, Question(PROMPT, 2, GREEDY))
        lost = sorted(swarm.opened, key=lambda one: one[1])[place][0]
        swarm.lose_after[lost] = swarm.forwards[lost] + forwards
        events = await told(answerer, Question(PROMPT, 12, GREEDY))
        assert swarm.lost == {lost}
        assert len(swarm.opened) == 4
        assert tokens(first) == tokens(events)[:2]
    assert tokens(events) == whole(BODY, weights, PROMPT, 12, GREEDY)


async def test_answers_under_way_at_a_stage_that_is_lost_all_go_on(weights: Path) -> None:
    heard: dict[int, list[int]] = {}
    async with staged(weights) as (answerer, swarm):
        await told(answerer, Question(PROMPT, 1, GREEDY))
        lost = sorted(swarm.opened, key=lambda one: one[1])[1][0]
        swarm.lose_after[lost] = swarm.forwards[lost] + 9
        async with trio.open_nursery() as nursery:

            async def one(at: int) -> None:
                heard[at] = tokens(await told(answerer, Question((at, 7, at), 10, GREEDY)))

            for at in range(4):
                nursery.start_soon(one, at)
    assert heard == {at: whole(BODY, weights, (at, 7, at), 10, GREEDY) for at in range(4)}


async def test_whoever_notices_a_loss_may_leave_and_others_go_on(weights: Path) -> None:
    async with staged(weights) as (answerer, swarm):
        await told(answerer, Question(PROMPT, 1, GREEDY))
        lost = sorted(swarm.opened, key=lambda one: one[1])[1][0]
        async with trio.open_nursery() as nursery:
            heard: list[int] = []

            async def stays() -> None:
                heard.extend(tokens(await told(answerer, Question(PROMPT, 6, GREEDY))))

            async with trio.open_nursery() as leaves:
                leaves.start_soon(told, answerer, Question(PROMPT, 40, GREEDY))
                nursery.start_soon(stays)
                swarm.slow = trio.Event()  # from now on nobody opens a stage
                await swarm.lose(lost)
                await wait_all_tasks_blocked()
                leaves.cancel_scope.cancel()
            await wait_all_tasks_blocked()
            assert not heard
            swarm.slow.set()
    assert heard == whole(BODY, weights, PROMPT, 6, GREEDY)


async def test_a_peer_that_gives_no_numbers_is_left_and_penalised(weights: Path) -> None:
    async with staged(weights) as (answerer, swarm):
        swarm.wrong.add(swarm.peers[0])
        events = await told(answerer, Question(PROMPT, 6, GREEDY), 2)
        assert set(swarm.penalised) <= {swarm.peers[0]}
    assert tokens(events) == whole(BODY, weights, PROMPT, 6, GREEDY)


async def test_when_nobody_takes_a_stage_over_the_answer_fails_and_a_new_question_plans_anew(weights: Path) -> None:
    async with staged(weights, peers=2) as (answerer, swarm):
        await told(answerer, Question(PROMPT, 1, GREEDY), 2)
        for peer in swarm.peers:
            await swarm.lose(peer)
        with pytest.raises(NoPeers):
            await told(answerer, Question(PROMPT, 3, GREEDY), 2)
        swarm.lost.clear()
        events = await told(answerer, Question(PROMPT, 3, GREEDY), 2)
    assert tokens(events) == whole(BODY, weights, PROMPT, 3, GREEDY)


async def test_a_much_better_line_is_opened_beside_the_old_one(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "SETTLED_S", 0.0)
    async with staged(weights, peers=2) as (answerer, swarm):
        first = await told(answerer, Question(PROMPT, 4, GREEDY), 2)
        (old,) = answerer.lines
        for one in range(2):  # two others, near and a hundred times as fast
            swarm.peers.append(Identity(bytes([one + 50] * 32)).peer_id)
            swarm.swift.add(swarm.peers[-1])
        assert await told(answerer, Question(PROMPT, 4, GREEDY), 2) == first
        await wait_all_tasks_blocked()
        assert old.retired
        assert await told(answerer, Question(PROMPT, 4, GREEDY), 2) == first
        (new,) = (line for line in answerer.lines if line is not old)
        assert {part.peer for part in new.parts} == swarm.swift
        assert {part.peer for part in old.parts} == set(swarm.peers[:2])


async def test_an_answer_goes_on_behind_tokens_that_were_given(weights: Path) -> None:
    drawn = Sampling(temperature=1.0, seed=3)
    wanted = whole(BODY, weights, PROMPT, 9, drawn)
    async with staged(weights) as (answerer, _):
        events = await told(answerer, Question(PROMPT, 9, drawn, given=tuple(wanted[:4])), wire="float32")
    assert tokens(events) == wanted[4:]
    assert events[-2:] == [Over(0, "length", 9), Finished(len(PROMPT), 9, 0)]


async def test_it_ends_at_the_last_place_or_when_told_to_or_in_time(weights: Path) -> None:
    async with staged(weights) as (answerer, _):
        events = await told(answerer, Question(tuple(range(46)), None, GREEDY))
        assert events[-2] == Over(0, "length", 3)
        async with answerer("alice/split", Question(PROMPT, None, GREEDY, stages=2)) as answering:
            assert isinstance(await anext(aiter(answering)), Said)
            answering.stop(0)
            rest = [event async for event in answering]
        assert isinstance(rest[-2], Over)
        assert rest[-2].reason == "stop"
        async with answerer("alice/split", Question(PROMPT, None, GREEDY, n=9, timeout_s=0.2, stages=2)) as late:
            over = [event async for event in late if isinstance(event, Over)]
        assert len(over) == 9


async def test_what_cannot_be_is_refused(weights: Path, tmp_path: Path) -> None:
    async with staged(weights, peers=2) as (answerer, _):
        for wrong in (Question((1 << 20,), 1), Question(tuple(range(49)), 1)):
            with pytest.raises(InvalidSpec):
                await told(answerer, wrong, 2)
        with pytest.raises(NoPeers, match="3 are wanted"):
            await told(answerer, Question(PROMPT, 1), 3)
        with pytest.raises(InvalidSpec, match="makes no tokens"):
            await told(answerer, Question("a text", 1), 2)
    lstm = parse_spec(fill("lstm-lm"))
    async with staged(weights, body=lstm) as (answerer, _):
        with pytest.raises(InvalidSpec, match="cannot be split"):
            await told(answerer, Question(PROMPT, 1))


async def test_texts_are_read_and_told(tmp_path: Path) -> None:
    load = reciting(b"a quick fox jumps".replace(b" ", b"_")[:8], tmp_path)
    body = parse_spec(load.spec)
    async with staged(tmp_path / "weights.safetensors", body=body, preprocess=load.preprocess) as (answerer, swarm):
        await told(answerer, Question("a", 1, GREEDY))
        lost = sorted(swarm.opened, key=lambda one: one[1])[2][0]
        swarm.lose_after[lost] = swarm.forwards[lost] + 2
        events = await told(answerer, Question("a", 5, GREEDY))
        assert swarm.lost == {lost}
    assert "".join(event.text for event in events if isinstance(event, Said)) == "_quic"


async def test_a_model_that_no_peer_has_the_memory_for_is_one_for_stages(weights: Path) -> None:
    large = parse_spec(fill("transformer-lm", ["layers[0].width=512", "layers[1].times=16"]))
    able = replace(SERVING, memory_mb=((large.parameter_bytes * 2 // 3 + WORKER_BYTES) * 4 // 3 >> 20) + 1)
    async with staged(weights, body=large) as (answerer, swarm):
        assert not answerer.needed(swarm.manifest)
        swarm.able = able
        assert answerer.needed(swarm.manifest)
        swarm.peers = swarm.peers[:1]
        assert not answerer.needed(swarm.manifest)
    async with staged(weights, body=parse_spec(fill("lstm-lm"))) as (answerer, swarm):
        swarm.able = replace(SERVING, memory_mb=1)
        assert not answerer.needed(swarm.manifest)
