"""`celluler bench`: what is measured, and what it comes to."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import trio

from celluler.errors import Busy, WorkerFailed
from celluler.views import Port
from celluler_node.cli.bench_figures import Load, Sample, card_of, spread_of
from celluler_node.cli.bench_load import made_up, run_load
from tests.support.jobs import BOB
from tests.support.serving_node import ServingNode

Run = Callable[..., tuple[int, str, str]]
LOAD = Load("predict", "raw", 10, 2, 4, 64)


def card(told: tuple[int, str, str]) -> Any:
    assert told[0] == 0, told[2]
    return json.loads(told[1])


def test_models_that_write_embed_and_predict_have_cards(celluler: Run, tales: ServingNode) -> None:
    text = card(
        celluler("bench", "alice/tales", "--requests", "6", "--concurrency", "3", "--max-tokens", "8", "--json")
    )
    assert (text["answered"], text["failures"], text["peers"]) == (6, {}, {BOB.peer_id: 6})
    assert text["load"]["kind"] == "text"
    assert 0 < text["first_token_ms"]["p50"] <= text["latency_ms"]["p50"] <= text["latency_ms"]["p99"]
    assert text["tokens_per_s"] == pytest.approx(6 * 8 / text["seconds"])
    asked = [question.prompt for question in tales.writer.questions]
    assert len(set(asked)) == 7
    embed = card(celluler("bench", "alice/texts", "--requests", "5", "--batch", "3", "--json"))
    assert (embed["load"]["kind"], embed["first_token_ms"], embed["tokens_per_s"]) == ("embed", None, None)
    assert embed["samples_per_s"] == pytest.approx(3 * embed["requests_per_s"])
    for model, output, kind in (
        ("digits", "labels", "predict"), ("dreams", "sample", "predict"), ("tokens", "embedding", "embed")
    ):  # fmt: skip
        told = card(celluler("bench", f"alice/{model}", "--requests", "2", "--output", output, "--json"))
        assert (told["load"]["kind"], told["load"]["output"], told["answered"]) == (kind, output, 2)
    given = card(celluler("bench", "alice/texts", "--input", '["ab", "c"]', "--requests", "1", "--json"))
    assert given["load"]["batch"] == 2
    assert given["node"]["cores"] == 2


def test_a_card_for_eyes_and_what_goes_wrong(celluler: Run, tales: ServingNode) -> None:
    code, out, err = celluler("bench", "alice/tales", "--requests", "2", "--max-tokens", "4")
    assert code == 0
    assert "latency\tp50 " in out
    assert "tokens/s\t" in out
    assert "first request" in err
    assert celluler("bench", "alice/digits", "--output", "embedding")[0] == 2
    assert celluler("bench", "alice/texts", "--input", "3")[0] == 2
    tales.busy = True
    assert celluler("bench", "alice/texts")[0] == 6


async def test_failures_are_counted_and_time_is_up() -> None:
    async def fails(number: int) -> Sample:
        if number % 2:
            raise Busy("full")
        raise WorkerFailed("it ended")

    samples, seconds = await run_load(fails, LOAD, limit_s=5.0)
    told = card_of("m", "c", LOAD, samples, seconds, warm_up_s=0.1, weights_bytes=3)
    assert (told.answered, told.failures, told.latency_ms) == (0, {"Busy": 5, "WorkerFailed": 5}, None)

    async def slow(_number: int) -> Sample:
        await trio.sleep(0.03)
        return Sample(0.03)

    samples, _ = await run_load(slow, LOAD, limit_s=0.01)
    assert len(samples) == 2


def test_percentiles_are_the_nearest_ranks() -> None:
    told = spread_of([one / 1000 for one in range(200, 0, -1)])
    assert told is not None
    assert (told.p50, told.p95, told.p99, told.max, told.mean) == (100.0, 190.0, 198.0, 200.0, 100.5)
    assert spread_of([]) is None
    (only,) = {spread_of([0.004])}
    assert only is not None
    assert only.p50 == only.p99 == 4.0


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8"])
def test_what_is_made_up_fits(dtype: str) -> None:
    made = made_up(Port("input", dtype, (3, 2)), 5, "raw")
    assert (made.shape, str(made.dtype)) == ((5, 3, 2), dtype)
    assert (made == made_up(Port("input", dtype, (3, 2)), 5, "raw")).all()
    assert [len(one) for one in made_up(Port("text", "text", (16,)), 2, "raw")] == [16, 16]
