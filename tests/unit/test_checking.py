"""Answers that others gave, held against what their model says: honest ones pass, substituted ones show."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.engines.generation.scoring import score
from celluler.engines.generation.slots import GeneratingSlots
from celluler.errors import InvalidSpec, ProtocolViolation
from celluler.inference.borders import mass_slack, off_by, part_of
from celluler.inference.checking import TOLERANCES, Verdict, judge, tail
from celluler.inference.sampling import GREEDY, Chosen, Sampling, choose
from celluler.inference.scores import MAX_SCORED, SCORE, Claim, Scores, open_scores
from celluler.models.body import Body
from tests.support.lms import Model, grown, lm, narrowed

pytestmark = pytest.mark.thorough

FP32 = TOLERANCES["float32"]
SAMPLED = Sampling(temperature=1.0, seed=11)
CUT = Sampling(temperature=0.8, seed=12, top_p=0.9, top_k=20)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> Model:
    return lm(seed=1)


def answered(model: Model, prompt: tuple[int, ...], count: int, sampling: Sampling, batch: int = 1) -> list[Chosen]:
    """What one slot of several says, the others at work beside it."""
    slots = GeneratingSlots(model.body, model.module, slots=batch, length=len(prompt) + count)
    for slot in range(batch):
        own = sampling if slot == 0 else replace(sampling, seed=sampling.seed + slot)
        slots.admit(slot, prompt, own)
    told = [one for slot in range(batch) for one in slots.step(slot, len(prompt), ()).drawn if one.slot == 0]
    for _ in range(count - 1):
        told += [one for one in slots.step(None, 1, tuple(range(batch))).drawn if one.slot == 0]
    assert len(told) == count
    return [one.chosen for one in told if one.chosen is not None]


def checked(model: Model, prompt: tuple[int, ...], told: list[Chosen], sampling: Sampling) -> tuple[Verdict, Scores]:
    tolerance = TOLERANCES[model.dtype]
    claim = Claim(prompt, tuple(one.token for one in told), sampling)
    scores = score(model.body, model.module, claim, tolerance.slack)
    return judge(scores, sampling, tolerance, told), scores


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, CUT, replace(SAMPLED, logprobs=8), replace(GREEDY, logprobs=20)])
def test_an_honest_answer_passes_whatever_the_batch_and_the_threads(model: Model, sampling: Sampling) -> None:
    prompt = tuple(range(3, 15))
    torch.set_num_threads(2)
    try:
        told = answered(model, prompt, 40, sampling, batch=5)
    finally:
        torch.set_num_threads(1)
    verdict, scores = checked(model, prompt, told, sampling)
    assert not verdict.wrong, verdict.why
    assert verdict.tokens == 40
    assert scores["off"].max() < 1e-4


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, CUT])
def test_what_another_model_says_is_caught_within_a_few_tokens(model: Model, sampling: Sampling) -> None:
    prompt = tuple(range(3, 15))
    verdict, _ = checked(model, prompt, answered(lm(seed=2), prompt, 40, sampling), sampling)
    assert verdict.wrong
    assert verdict.tokens <= 5


def test_int4_in_the_place_of_float32_is_caught_and_is_honest_where_the_model_is_int4(model: Model) -> None:
    small, prompt = narrowed(model, "int4"), (5, 6, 7)
    told = answered(small, prompt, 60, SAMPLED, batch=3)
    verdict, _ = checked(model, prompt, told, SAMPLED)
    assert verdict.wrong
    honest, _ = checked(small, prompt, told, SAMPLED)
    assert not honest.wrong, honest.why
    logprobs = replace(SAMPLED, logprobs=8)
    told = answered(small, prompt, 60, logprobs)
    assert checked(model, prompt, told, logprobs)[0].tokens == 1


def test_one_token_that_was_changed_is_told_with_its_place(model: Model) -> None:
    prompt = (1, 2, 3)
    told = answered(model, prompt, 20, GREEDY)
    _, scores = checked(model, prompt, told, GREEDY)
    told[7] = Chosen(int(scores["top"][7][5]))
    verdict, _ = checked(model, prompt, told, GREEDY)
    assert verdict.wrong
    assert verdict.tokens == 8
    assert verdict.why.startswith("token 7: its logit is")


def test_a_draw_by_another_seed_is_caught(model: Model) -> None:
    prompt = (1, 2, 3)
    told = answered(model, prompt, 20, SAMPLED)
    assert checked(model, prompt, told, replace(SAMPLED, seed=SAMPLED.seed + 1))[0].wrong
    claim = Claim((*prompt, *(one.token for one in told[:9])), tuple(one.token for one in told[9:]), SAMPLED, 9)
    scores = score(model.body, model.module, claim, FP32.slack)
    assert not judge(scores, SAMPLED, FP32).wrong  # the place goes on behind what was given
    assert judge(score(model.body, model.module, replace(claim, place=8), FP32.slack), SAMPLED, FP32).wrong


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_an_answer_that_ends_where_nothing_ends_it_is_caught(model: Model, sampling: Sampling) -> None:
    prompt = (1, 2, 3)
    tokens = tuple(one.token for one in answered(model, prompt, 12, sampling))
    for count in (0, 5):
        claim = Claim(prompt, tokens[:count], sampling, ends=(tokens[count] ^ 64, tokens[count]))
        honest = score(model.body, model.module, claim, FP32.slack)
        assert len(honest) == count + 1
        verdict = judge(honest, sampling, FP32, ended=True)
        assert (verdict.wrong, verdict.tokens) == (False, count)
        lied = score(model.body, model.module, replace(claim, ends=(tokens[count] ^ 64,)), FP32.slack)
        verdict = judge(lied, sampling, FP32, ended=True)
        assert verdict.wrong
        assert verdict.why.startswith("the end: ")


def test_a_model_without_a_cache_is_scored_alike(tmp_path: Path) -> None:
    whole = lm(seed=3, template="lstm-lm")
    prompt = (9, 8, 7)
    verdict, _ = checked(whole, prompt, answered(whole, prompt, 12, CUT), CUT)
    assert not verdict.wrong, verdict.why


def test_long_prompts_and_answers_are_scored_in_chunks_with_the_same_result(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from celluler.engines.generation import scoring  # noqa: PLC0415

    prompt = tuple(n % 100 for n in range(40))
    claim = Claim(prompt, tuple(one.token for one in answered(model, prompt, 20, CUT)), CUT)
    whole = score(model.body, model.module, claim, FP32.slack)
    monkeypatch.setattr(scoring, "_CHUNK", 7)
    monkeypatch.setattr(scoring, "_LOGIT_BYTES", 3 * 4 * model.body.vocabulary)
    cut = score(model.body, model.module, claim, FP32.slack)
    assert np.allclose(whole["gap"], cut["gap"], atol=1e-5)
    assert (whole["top"] == cut["top"]).all()


def test_what_this_model_cannot_have_said_is_refused(model: Model) -> None:
    body: Body = model.body
    for claim in (Claim((1,), (body.vocabulary,), GREEDY), Claim((1,) * body.input.shape[0], (1, 2), GREEDY)):
        with pytest.raises(InvalidSpec):
            score(body, model.module, claim, 0.0)
    for prompt, tokens in (((), (1,)), ((1,), ()), ((1,), (1,) * (MAX_SCORED + 1))):
        with pytest.raises(InvalidSpec):
            Claim(prompt, tokens, GREEDY)


def test_scores_from_elsewhere_are_read_strictly() -> None:
    table = np.zeros(2, dtype=SCORE)
    assert (open_scores(table.tobytes(), 2) == table).all()
    for field, value in (("gap", -1.0), ("gap", math.nan), ("off", math.nan), ("logprob", math.nan), ("same", 2)):
        wrong = table.copy()
        wrong[field][1] = value
        with pytest.raises(ProtocolViolation):
            open_scores(wrong.tobytes(), 2)
    with pytest.raises(ProtocolViolation):
        open_scores(table.tobytes(), 3)


logits = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=40)


@settings(max_examples=150, deadline=None)
@given(
    logits,
    st.integers(0, 1 << 32),
    st.floats(0.05, 2.0),
    st.floats(0.05, 1.0),
    st.integers(0, 12),
    st.sampled_from([5e-4, 0.02, 0.25]),
)
def test_a_draw_on_logits_within_the_slack_is_never_off_by_more_than_that_explains(
    told: list[float], seed: int, temperature: float, top_p: float, top_k: int, slack: float
) -> None:
    ours = np.array(told, dtype=np.float32)
    noise = np.random.default_rng(seed).uniform(-slack, slack, len(ours))
    sampling = Sampling(temperature, top_p, top_k, seed)
    token = choose(ours + noise, sampling, 3).token
    off, _ = off_by(ours, sampling, 3, token, slack)
    assert off <= mass_slack(slack, temperature) + 1e-9


@settings(max_examples=100, deadline=None)
@given(logits, st.integers(0, 1 << 32), st.floats(0.1, 2.0), st.floats(0.1, 1.0), st.integers(0, 12))
def test_without_slack_a_token_is_in_its_part_and_the_parts_are_the_whole(
    told: list[float], seed: int, temperature: float, top_p: float, top_k: int
) -> None:
    ours = np.array(sorted(set(told)), dtype=np.float32)  # of equals, which is cut is not known
    sampling = Sampling(temperature, top_p, min(top_k, len(ours)), seed)
    parts = [part_of(ours, sampling, token, 0.0) for token in range(len(ours))]
    assert sum(part.high - part.low for part in parts if part is not None) == pytest.approx(1.0, abs=1e-6)
    off, same = off_by(ours, sampling, 0, choose(ours, sampling, 0).token, 0.0)
    assert off < 1e-9
    assert same or off > 0.0


def test_the_bound_on_chance_is_never_below_it() -> None:
    for misses, tokens, rate in ((3, 20, 0.05), (1, 10, 0.001), (20, 20, 0.5), (7, 128, 1e-3)):
        exact = sum(
            math.comb(tokens, count) * rate**count * (1 - rate) ** (tokens - count)
            for count in range(misses, tokens + 1)
        )
        assert exact <= tail(misses, tokens, rate) <= 1.0
    assert tail(1, 100, 0.05) == 1.0


def test_training_sharpens_a_model_and_an_honest_one_still_passes() -> None:
    trained = grown(12)
    for seed in range(4):
        sampling = Sampling(temperature=0.7, seed=seed)
        told = answered(trained, (72, 101), 50, sampling, batch=2)
        assert not checked(trained, (72, 101), told, sampling)[0].wrong
