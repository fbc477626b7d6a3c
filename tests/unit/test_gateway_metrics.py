"""What the endpoint counts of its own work."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Message

from celluler.errors import TimedOut
from celluler_node.gateway.app import gateway_app
from celluler_node.gateway.counted import MAX_MODELS, Counted, Histogram
from tests.support.serving_node import ServingNode

SEEDS = {"name": "seeds", "shape": [1], "datatype": "INT64", "data": [3]}
Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def figures(http: httpx.AsyncClient) -> Figures:
    text = (await http.get("/metrics")).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


def of(found: Figures, name: str, **labels: str) -> float:
    return found.get((name, frozenset(labels.items())), 0.0)


async def test_latency_batches_and_errors_are_told_by_route_and_model(http: httpx.AsyncClient) -> None:
    for texts in (["a"], ["a", "b", "c"]):
        await http.post("/v1/embeddings", json={"model": "alice/texts", "input": texts})
    await http.post("/v1/embeddings", json={"model": "alice/none", "input": "a"})
    await http.get("/v1/models/alice/digits")
    await http.get("/nowhere/at/all")
    await http.request("BREW", "/v1/models")
    await http.get("/api/v1/status")
    found = await figures(http)
    route = {"method": "POST", "route": "/v1/embeddings"}
    assert of(found, "celluler_http_request_seconds_count", **route, status="200") == 2
    assert of(found, "celluler_http_request_seconds_bucket", **route, status="200", le="+Inf") == 2
    assert of(found, "celluler_http_request_seconds_count", **route, status="404") == 1
    assert of(found, "celluler_http_errors_total", route="/v1/embeddings", kind="NotFound") == 1
    shown = {"method": "GET", "route": "/v1/models/{ref}", "status": "200"}
    assert of(found, "celluler_http_request_seconds_count", **shown) == 1
    assert of(found, "celluler_http_request_seconds_count", method="GET", route="none", status="404") == 1
    assert of(found, "celluler_http_request_seconds_count", method="other", route="/v1/models", status="405") == 1
    assert of(found, "celluler_http_errors_total", route="none", kind="Denied") == 1
    model = {"model": "alice/texts:1.1.0"}
    assert of(found, "celluler_prediction_seconds_count", **model) == 2
    assert of(found, "celluler_prediction_samples_sum", **model) == 4
    assert of(found, "celluler_prediction_samples_bucket", **model, le="1") == 1
    assert of(found, "celluler_predictions_waiting") == 0


async def test_a_prediction_that_failed_and_a_bug_are_told_by_kind(
    node: ServingNode, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.busy = True
    await http.post("/v1/embeddings", json={"model": "alice/texts", "input": "a"})

    async def broken(_ref: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(node, "model_ports", broken)
    assert (await http.post("/v1/embeddings", json={"model": "alice/texts", "input": "a"})).status_code == 500
    found = await figures(http)
    assert of(found, "celluler_predictions_failed_total", kind="Busy") == 1
    assert of(found, "celluler_http_errors_total", route="/v1/embeddings", kind="Fault") == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"model": "alice/texts", "input": "a"}),
        ("/v2/models/alice/dreams/infer", {"inputs": [SEEDS]}),
        ("/api/v1/predict", {"model": "alice/texts", "inputs": ["a"]}),
    ],
)
async def test_a_client_that_goes_away_cancels_what_it_asked_for(node: ServingNode, path: str, body: object) -> None:
    node.gate, sent = trio.Event(), list[Message]()
    app = gateway_app(node, "t")
    there: Iterator[Message] = iter(
        [{"type": "http.request", "body": json.dumps(body).encode()}, {"type": "http.disconnect"}]
    )

    async def receive() -> Message:
        await trio.testing.wait_all_tasks_blocked()
        return next(there)

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"authorization", b"Bearer t")]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
    with trio.fail_after(5):
        await app({**scope, "client": ("127.0.0.1", 1), "server": ("localhost", 80), "scheme": "http"}, receive, send)
    assert sent[0]["status"] == 499
    assert node.asked == []


def test_models_beyond_a_hundred_are_counted_together() -> None:
    counted = Counted()
    for number in range(MAX_MODELS + 50):
        counted.predicted(f"m{number}", 1, 0.1)
    told = {labels[0]: buckets[-1][1] for labels, buckets, _ in counted.predictions.read()}
    assert len(told) == MAX_MODELS + 1
    assert told["other"] == 50


def test_a_value_on_a_bound_counts_below_it() -> None:
    histogram = Histogram((1, 2))
    for value in (1, 1.5, 2, 9):
        histogram.add(("a",), value)
    assert list(histogram.read()) == [(("a",), [("1", 1.0), ("2", 3.0), ("+Inf", 4.0)], 13.5)]


async def test_what_models_write_is_told_by_model(node: ServingNode, http: httpx.AsyncClient) -> None:
    asked = {"model": "alice/tales", "prompt": "Hello", "temperature": 0}
    for _ in range(2):
        await http.post("/v1/completions", json=asked | {"max_tokens": 6, "n": 2})
    node.writer.failure = (2, TimedOut("no more"))
    await http.post("/v1/completions", json=asked)
    found, model = await figures(http), {"model": "alice/tales:1.1.0"}
    assert of(found, "celluler_tokens_total", **model, kind="prompt") == 10
    assert of(found, "celluler_tokens_total", **model, kind="generated") == 24
    assert of(found, "celluler_tokens_total", **model, kind="shared") == 5 + 4 + 5
    assert of(found, "celluler_first_token_seconds_count", **model) == 3
    assert of(found, "celluler_generation_seconds_count", **model) == 2
    assert of(found, "celluler_generation_tokens_per_second_count", **model) == 2
    assert of(found, "celluler_generations_failed_total", kind="TimedOut") == 1
    assert of(found, "celluler_generations_under_way") == of(found, "celluler_generations_silent") == 0
