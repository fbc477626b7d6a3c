"""A worker that generates: slots on a loaded model, and a scheduler whose ticks it does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import celluler
from celluler.errors import InvalidSpec, LocalError
from celluler.inference.questions import MAX_PROMPT_BYTES
from celluler.inference.requests import Ended, Request, Told
from celluler.inference.sampling import GREEDY, Sampling
from celluler.inference.scheduler import Limits, Scheduler
from celluler.models.folder import DOCUMENT, WEIGHTS
from celluler.models.memory import RUNTIME_BYTES, DoesNotFit
from celluler.models.spec import format_spec, parse_spec
from celluler.models.templates import fill
from celluler.models.weights import initial_weights
from celluler.wire import pack, unpack
from celluler_node.processes.words import Reply
from celluler_node.processes.worker import Worker
from celluler_node.processes.worker_generate_words import (
    Admit,
    Encode,
    OpenSlots,
    Release,
    SlotsOpen,
    SlotsStepped,
    Step,
    calls_of,
    stepped_of,
)
from celluler_node.processes.worker_words import ANSWERS, REPLIES, REQUESTS, LoadModel, Predict
from tests.support.generating import reciting
from tests.support.modules import VOCABULARY, Llama

pytestmark = pytest.mark.thorough

Ask = Callable[..., Any]


def asker(worker: Worker) -> Ask:
    """Calls as they come through the channel."""

    def ask(request: Any, *blobs: bytes) -> Any:
        assert type(request) in REQUESTS
        heard = unpack(type(request), pack(request), limit=1 << 20)
        answer = worker.handlers[type(request)](heard, tuple(map(bytearray, blobs)))
        record = answer.record if isinstance(answer, Reply) else answer
        assert type(record) in REPLIES
        assert type(record) in ANSWERS[type(request)].records
        return unpack(type(record), pack(record), limit=1 << 20), answer

    return ask


def loaded(folder: Path, template: str, memory_bytes: int | None = None) -> Ask:
    body = parse_spec(fill(template))
    initial_weights(body, b"s" * 32, folder / "weights.safetensors")
    ask = asker(Worker(folder, memory_bytes))
    ask(LoadModel(format_spec(body), str(folder / "weights.safetensors")))
    return ask


def run(ask: Ask, requests: list[Request], slots: int) -> dict[tuple[int, int], tuple[list[int], str]]:
    """What was generated for each answer, and why it ended."""
    opened = ask(OpenSlots(slots))[0]
    scheduler = Scheduler(Limits(slots, opened.length, opened.vocabulary, chunk=5))
    for request in requests:
        scheduler.submit(request)
    told: dict[tuple[int, int], list[int]] = {}
    ended: dict[tuple[int, int], str] = {}
    while (tick := scheduler.plan(0.0)) is not None:
        replies = [ask(request, *blobs)[0] for request, blobs in calls_of(tick)]
        assert isinstance(replies[-1], SlotsStepped)
        scheduler.stepped(stepped_of(replies[-1]))
        for event in scheduler.events():
            if isinstance(event, Told):
                told.setdefault((event.number, event.choice), []).extend(one.token for one in event.tokens)
            elif isinstance(event, Ended):
                ended[event.number, event.choice] = event.reason
    return {one: (told[one], reason) for one, reason in ended.items()}


def predicted(ask: Ask, tokens: list[int], length: int) -> Any:
    """Logits behind the last token, by the answer that a prediction gives."""
    x = np.zeros((1, length), dtype=np.int64)
    x[0, : len(tokens)] = tokens
    reply = ask(Predict("int64", x.shape, "raw"), x.tobytes())
    logits = np.frombuffer(reply[1].blobs[0], dtype="<f4").reshape(reply[0].shape)
    return logits[0, len(tokens) - 1]


@pytest.mark.parametrize(("template", "cached"), [("transformer-lm", True), ("lstm-lm", False)])
def test_the_ticks_of_a_scheduler_give_what_predictions_one_by_one_give(
    tmp_path: Path, template: str, cached: bool
) -> None:
    ask = loaded(tmp_path, template)
    opened = ask(OpenSlots(3))[0]
    assert isinstance(opened, SlotsOpen)
    assert (opened.vocabulary, opened.cache_bytes > 0, opened.not_cached == "") == (128, cached, cached)
    prompts = [tuple(range(n, 2 * n + 1)) for n in (1, 9, 4, 14)]
    requests = [
        Request(number, f"client {number}", prompt, 5, 60.0, sampling=GREEDY) for number, prompt in enumerate(prompts)
    ]
    told = run(ask, requests, 3)
    for number, prompt in enumerate(prompts):
        tokens, reason = told[number, 0]
        assert reason == "length"
        assert len(tokens) == 5
        for place, token in enumerate(tokens):
            logits = predicted(ask, [*prompt, *tokens[:place]], opened.length)
            assert logits[token] >= logits.max() - 1e-4
    sampled = [Request(7, "a", (1, 2), 6, 60.0, n=3, sampling=Sampling(seed=5, temperature=1.5))]
    alone = run(ask, sampled, 1)
    assert run(ask, [*requests, *sampled], 3)[7, 1] == alone[7, 1]
    assert len({tuple(tokens) for tokens, _ in alone.values()}) == 3


def test_a_published_graph_generates_by_whole_passes_and_says_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Llama()
    celluler.publish(module, torch.randint(0, VOCABULARY, (2, 12)), tmp_path / "m", objective="next_token")
    ask = asker(Worker(tmp_path))
    ask(LoadModel((tmp_path / "m" / DOCUMENT).read_bytes(), str(tmp_path / "m" / WEIGHTS), "graph"))
    opened = ask(OpenSlots(2))[0]
    assert "graph" in opened.not_cached
    told = run(ask, [Request(0, "a", (3, 1, 4), 6, 60.0, sampling=GREEDY), Request(1, "b", (1,), 3, 60.0, GREEDY)], 2)
    for number, prompt in ((0, [3, 1, 4]), (1, [1])):
        tokens = told[number, 0][0]
        with torch.inference_mode():
            for place, token in enumerate(tokens):
                logits = module(torch.tensor([[*prompt, *tokens[:place]]]))[0, -1]
                assert float(logits[token]) >= float(logits.max()) - 1e-4


def test_logprobs_come_through_the_words(tmp_path: Path) -> None:
    ask = loaded(tmp_path, "transformer-lm")
    ask(OpenSlots(1))
    ask(Admit(0, 0.0, 1.0, 0, 0, 0, 20, None, 0), np.array([1, 2], dtype="<u4").tobytes())
    reply = ask(Step(0, 8, ()))[0]
    drawn = stepped_of(reply).drawn[0].chosen
    assert drawn is not None
    assert len(drawn.top) == 20
    assert (drawn.token, drawn.logprob) == drawn.top[0]


def test_a_model_with_texts_reads_them_and_tells_whole_characters(tmp_path: Path) -> None:
    raw = "ab é€.".encode()
    ask = asker(Worker(tmp_path))
    ask(reciting(raw, tmp_path))
    assert ask(OpenSlots(1))[0].texts
    encoded = ask(Encode(), b"ab")[1].blobs[0]
    assert np.frombuffer(encoded, dtype="<u4").tolist() == [97, 98]
    ask(Admit(0, 0.0, 1.0, 0, 0, 0, None, None, 0), encoded)
    pieces = [ask(Step(0, 8, ()))[0].drawn[0].text]
    pieces += [ask(Step(None, 1, (0,)))[0].drawn[0].text for _ in raw[3:]]
    assert pieces == [" ", "", "é", "", "", "€", "."]
    for wrong in ((b"\xff",), (b"a" * (MAX_PROMPT_BYTES + 1),), ()):
        with pytest.raises(InvalidSpec):
            ask(Encode(), *wrong)


def test_likely_tokens_are_told_as_what_would_have_been_read(tmp_path: Path) -> None:
    ask = asker(Worker(tmp_path))
    ask(reciting("ab é.".encode(), tmp_path))
    ask(OpenSlots(1))
    ask(Admit(0, 0.0, 1.0, 0, 0, 0, 3, None, 0), np.array([97, 98, 32], dtype="<u4").tobytes())
    half, whole = (stepped_of(ask(step)[0]).drawn[0].chosen for step in (Step(0, 8, ()), Step(None, 1, (0,))))
    assert half is not None
    assert whole is not None
    assert (half.text, half.top_texts[0]) == ("", "")
    assert (whole.text, whole.top_texts[0], whole.top[0][0]) == ("é", "é", "é".encode()[1])
    assert len(whole.top_texts) == 3


def test_a_model_without_texts_says_so(tmp_path: Path) -> None:
    ask = loaded(tmp_path, "transformer-lm")
    assert not ask(OpenSlots(1))[0].texts
    with pytest.raises(InvalidSpec, match="no tokens of texts"):
        ask(Encode(), b"ab")


def test_what_a_worker_cannot_do_it_refuses(tmp_path: Path) -> None:
    prompt = np.array([1, 2], dtype="<u4").tobytes()
    ask = asker(Worker(tmp_path))
    with pytest.raises(LocalError, match="no model"):
        ask(OpenSlots(1))
    ask = loaded(tmp_path, "mlp")
    with pytest.raises(InvalidSpec, match="next_token"):
        ask(OpenSlots(1))
    ask = loaded(tmp_path, "transformer-lm", RUNTIME_BYTES + (2 << 20))
    with pytest.raises(DoesNotFit, match="cache of 64 slots"):
        ask(OpenSlots(64))
    with pytest.raises(LocalError, match="no slots"):
        ask(Step(None, 1, ()))
    ask(OpenSlots(2))
    usual = (1.0, 1.0, 0, 0, 0, None)
    for admit, blobs in (
        (Admit(2, *usual, None, 0), (prompt,)),
        (Admit(0, *usual, None, 0), ()),
        (Admit(0, *usual, None, 0), (b"",)),
        (Admit(0, *usual, 1, 1), (prompt,)),
        (Admit(0, 3.0, *usual[1:], None, 0), (prompt,)),
        (Admit(0, *usual, None, 0), (np.array([128], dtype="<u4").tobytes(),)),
    ):
        with pytest.raises(LocalError):
            ask(admit, *blobs)
    ask(Admit(0, *usual, None, 0), prompt)
    with pytest.raises(LocalError, match="in use"):
        ask(Admit(0, *usual, None, 0), prompt)
    ask(Release(0))
    ask(Release(0))
    ask(Admit(0, *usual, None, 0), prompt)


def test_slots_go_with_the_model_for_which_they_were_opened(tmp_path: Path) -> None:
    ask = loaded(tmp_path, "transformer-lm")
    ask(OpenSlots(1))
    body = parse_spec(fill("lstm-lm"))
    initial_weights(body, b"s" * 32, tmp_path / "other.safetensors")
    ask(LoadModel(json.dumps(fill("lstm-lm")).encode(), str(tmp_path / "other.safetensors")))
    with pytest.raises(LocalError, match="no slots"):
        ask(Admit(0, 1.0, 1.0, 0, 0, 0, None, None, 0), b"\0\0\0\0")
