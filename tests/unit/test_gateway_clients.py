"""Clients that nobody here wrote: openai; where they are installed (`pip install -e ".[clients]"`), tritonclient[http]
and schemathesis, too."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, Phase, given, settings
from starlette.testclient import TestClient

from celluler.errors import WorkerFailed
from celluler_node.gateway.app import gateway_app
from celluler_node.gateway.in_process import open_in_process
from tests.support.jobs import BOB
from tests.support.serving_node import ServingNode
from tests.support.writing import TALE

pytestmark = pytest.mark.thorough

BASE = "http://127.0.0.1:8787/v1"
HELLO = [{"role": "user", "content": "Hello"}]


async def test_openai_lists_embeds_and_raises_its_own_errors(node: ServingNode, http: httpx.AsyncClient) -> None:
    openai = pytest.importorskip("openai")
    async with openai.AsyncOpenAI(base_url=BASE, api_key="none", http_client=http, max_retries=0) as client:
        assert {model.id async for model in client.models.list()} >= {"alice/texts:1.0.0", "alice/digits:1.1.0"}
        assert (await client.models.retrieve("alice/texts:1.0.0")).owned_by == "alice"
        told = await client.embeddings.create(model="alice/texts", input=["ab", "c"])  # base64, decoded by the client
        plain = await client.embeddings.create(model="alice/texts", input=["ab", "c"], encoding_format="float")
        assert [one.embedding for one in told.data] == [one.embedding for one in plain.data]
        assert [one.embedding[0] for one in told.data] == [1.0, 0.5]
        assert told.usage.total_tokens == 3
        for error, asked in (
            (openai.NotFoundError, client.embeddings.create(model="alice/none", input="a")),
            (openai.BadRequestError, client.embeddings.create(model="alice/texts", input="")),
            (openai.NotFoundError, client.models.retrieve("alice/none")),
        ):
            with pytest.raises(error) as raised:
                await asked
            assert raised.value.body["message"]
        node.busy = True
        with pytest.raises(openai.RateLimitError):
            await client.embeddings.create(model="alice/texts", input="a")


@pytest.fixture
async def openai_client(node: ServingNode) -> AsyncIterator[Any]:
    """The package's own client, with answers that come piece by piece."""
    openai = pytest.importorskip("openai")
    async with (
        open_in_process(gateway_app(node, "t")) as transport,
        httpx.AsyncClient(transport=transport) as http,
        openai.AsyncOpenAI(base_url=BASE, api_key="none", http_client=http, max_retries=0) as client,
    ):
        yield client


async def test_openai_chats(openai_client: Any) -> None:
    chats = openai_client.chat.completions
    told = await chats.create(model="alice/tales", messages=HELLO, n=2, temperature=0, stop=" said")
    assert [choice.message.content for choice in told.choices] == ["Über sieben Brücken,"] * 2
    assert {choice.finish_reason for choice in told.choices} == {"stop"}
    assert told.usage.prompt_tokens_details.cached_tokens == 0
    assert told.model_extra["celluler"]["peer"] == BOB.peer_id
    twice = [await chats.create(model="alice/tales", messages=HELLO, seed=5, temperature=1.9) for _ in range(2)]
    assert twice[0].choices == twice[1].choices
    told = await chats.create(
        model="alice/tales", messages=HELLO, temperature=0, max_completion_tokens=4, logprobs=True, top_logprobs=2
    )
    tokens = told.choices[0].logprobs.content
    assert bytes(byte for token in tokens for byte in token.bytes).decode() == told.choices[0].message.content == "Übe"
    assert tokens[2].top_logprobs[0].logprob == tokens[2].logprob > tokens[2].top_logprobs[1].logprob


async def test_openai_streams(node: ServingNode, openai_client: Any) -> None:
    asked = {"model": "alice/tales", "messages": HELLO, "temperature": 0}
    stream = await openai_client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    pieces = [piece async for piece in stream]
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces[:-1]) == TALE
    assert [piece.choices[0].finish_reason for piece in pieces[-3:-1]] == [None, "stop"]
    assert pieces[-1].usage.completion_tokens == len(TALE.encode())
    async with openai_client.chat.completions.stream(**asked) as helped:
        assert (await helped.get_final_completion()).choices[0].message.content == TALE
    told = await openai_client.completions.create(model="alice/tales", prompt="a", stream=True, temperature=0)
    assert "".join([piece.choices[0].text async for piece in told]) == TALE[:14]
    node.writer.failure = (6, WorkerFailed("it ended"))
    stream = await openai_client.chat.completions.create(**asked, stream=True)
    with pytest.raises(pytest.importorskip("openai").APIError, match="it ended"):
        [piece async for piece in stream]


async def test_openai_completes(openai_client: Any) -> None:
    told = await openai_client.completions.create(
        model="alice/tales", prompt=["a", "b"], n=2, max_tokens=6, temperature=0, logprobs=1, echo=False
    )
    assert [choice.text for choice in told.choices] == [TALE[:5]] * 4
    assert told.choices[3].logprobs.text_offset == [0, 0, 1, 2, 3, 4]
    assert told.choices[3].logprobs.top_logprobs[1].keys() == {"Ü"}
    assert (await openai_client.completions.create(model="alice/tales", prompt="a", echo=True)).choices[0].text[
        0
    ] == "a"


async def test_openai_that_hangs_up_is_written_for_no_more(node: ServingNode, openai_client: Any) -> None:
    node.writer.pause_after = 5
    with trio.fail_after(5):
        async with await openai_client.chat.completions.create(
            model="alice/tales", messages=HELLO, stream=True
        ) as stream:
            await anext(stream)
            await trio.testing.wait_all_tasks_blocked()
            assert node.writer.left == 0
        await trio.testing.wait_all_tasks_blocked()
    assert node.writer.left == 1
    assert node.writer.drawn <= 5


async def test_openai_raises_its_own_errors(node: ServingNode, openai_client: Any) -> None:
    openai = pytest.importorskip("openai")
    chats, usual = openai_client.chat.completions, {"model": "alice/tales", "messages": HELLO}
    for error, said, param in (
        (openai.NotFoundError, {"model": "alice/none"}, None),
        (openai.BadRequestError, {"model": "alice/digits"}, "model"),
        (openai.BadRequestError, {"messages": []}, "messages"),
        (openai.BadRequestError, {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        (openai.BadRequestError, {"frequency_penalty": 1.0}, "frequency_penalty"),
    ):
        for stream in (False, True):
            with pytest.raises(error) as raised:
                await chats.create(**usual | said, stream=stream)
            assert (raised.value.param, bool(raised.value.body["message"])) == (param, True)
    for reason, status in (("deadline", 504), ("error", 500), ("cancelled", 503)):
        node.writer.reason = reason
        with pytest.raises(openai.InternalServerError) as failed:
            await chats.create(**usual)
        assert failed.value.status_code == status
    node.busy = True
    with pytest.raises(openai.RateLimitError) as busy:
        await chats.create(**usual, stream=True)
    assert busy.value.response.headers["Retry-After"] == "1"


async def test_openai_needs_a_key_where_one_is_needed(node: ServingNode) -> None:
    openai = pytest.importorskip("openai")
    transport = httpx.ASGITransport(app=gateway_app(node, "t", keys_always=True), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport) as http:
        client = openai.AsyncOpenAI(base_url=BASE, api_key="wrong", http_client=http, max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            await client.chat.completions.create(model="alice/tales", messages=HELLO)
        client = client.with_options(api_key="t")
        assert (await client.chat.completions.create(model="alice/tales", messages=HELLO)).choices


@pytest.mark.parametrize("binary", [True, False])
async def test_kserve_requests_are_read_and_answers_written_as_tritonclient_does(
    node: ServingNode, http: httpx.AsyncClient, binary: bool
) -> None:
    kserve = pytest.importorskip("tritonclient.http")
    numbers = kserve.InferInput("input", [2, 2, 2], "FP32")
    numbers.set_data_from_numpy(np.arange(8, dtype=np.float32).reshape(2, 2, 2), binary_data=binary)
    names = ("probabilities", "labels", "name")
    wanted = [kserve.InferRequestedOutput(name, binary_data=binary) for name in names]
    told = await _infer(http, kserve, "alice/digits", [numbers], wanted)
    assert told.as_numpy("probabilities").tolist() == [[6.0, 3.0], [22.0, 7.0]]
    assert told.as_numpy("labels").tolist() == [3, 3]
    assert [bytes(one).decode() if isinstance(one, bytes) else one for one in told.as_numpy("name")] == [
        "no. 6 ü",
        "no. 22 ü",
    ]
    texts = kserve.InferInput("text", [2], "BYTES")
    texts.set_data_from_numpy(np.array(["ab", "ü"], dtype=object), binary_data=binary)
    told = await _infer(http, kserve, "alice/texts", [texts], None)
    assert told.as_numpy("embedding")[:, 0].tolist() == [1.0, 1.0]


async def _infer(http: httpx.AsyncClient, kserve: Any, model: str, inputs: list[Any], outputs: list[Any] | None) -> Any:
    """Both ends of its codec; in between the transport of a test."""
    client = kserve.InferenceServerClient
    body, head = client.generate_request_body(inputs, outputs)
    headers = {} if head is None else {"Inference-Header-Content-Length": str(head)}
    answer = await http.post(f"/v2/models/{model}/infer", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    size = answer.headers.get("Inference-Header-Content-Length")
    return client.parse_response_body(answer.content, header_length=None if size is None else int(size))


def test_what_schemathesis_makes_of_the_document_is_answered_as_it_says() -> None:
    """With models that there are, so that what it sends gets as far as a model."""
    schemathesis = pytest.importorskip("schemathesis")
    node = ServingNode()
    trio.run(node.publish)
    bearer = {"Authorization": "Bearer t"}
    app, base = gateway_app(node, "t"), "http://localhost"
    with TestClient(app, base_url=base, backend="trio", headers=bearer, raise_server_exceptions=False) as http:
        said = http.get("/openapi.json").json()
        _name_models(said)
        for found in schemathesis.openapi.from_dict(said).get_all_operations():
            operation = found.ok()
            if operation.path != "/api/v1/shutdown":
                _hold_to_document(operation, http, base)
    node.close()
    assert node.asked


def _name_models(said: dict[str, Any]) -> None:
    names = {"type": "string", "enum": ["alice/texts", "alice/texts:1.0.0", "alice/tales", "alice/none"]}
    for path in said["paths"].values():
        for operation in path.values():
            for parameter in operation["parameters"]:
                if parameter["name"] == "ref":
                    parameter["schema"] = names
            for content in operation.get("requestBody", {}).get("content", {}).values():
                properties = content["schema"].get("properties", {})
                properties.update({"model": names} if "model" in properties else {})


def _hold_to_document(operation: Any, http: TestClient, base: str) -> None:
    checks = importlib.import_module("schemathesis.specs.openapi.checks")
    held = [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]

    @settings(
        max_examples=8,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def hold(case: Any) -> None:
        sent = case.as_transport_kwargs(base_url=base)
        answer = http.request(**{name: sent[name] for name in sent if name != "cookies"})
        assert answer.status_code != 500, answer.text
        case.validate_response(answer, checks=held)

    hold()
