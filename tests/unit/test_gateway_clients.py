"""Clients that nobody here wrote, where they are installed (`pip install -e ".[clients]"`): openai, tritonclient[http],
schemathesis."""

from __future__ import annotations

import importlib
from typing import Any

import httpx
import numpy as np
import pytest
import trio
from hypothesis import HealthCheck, Phase, given, settings
from starlette.testclient import TestClient

from celluler_node.gateway.app import gateway_app
from tests.support.serving_node import ServingNode


async def test_openai_lists_embeds_and_raises_its_own_errors(node: ServingNode, http: httpx.AsyncClient) -> None:
    openai = pytest.importorskip("openai")
    async with openai.AsyncOpenAI(
        base_url="http://127.0.0.1:8787/v1", api_key="none", http_client=http, max_retries=0
    ) as client:
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
            (openai.InternalServerError, client.chat.completions.create(model="alice/texts", messages=[])),
            (openai.InternalServerError, client.completions.create(model="alice/texts", prompt="a")),
        ):
            with pytest.raises(error) as raised:
                await asked
            assert raised.value.body["message"]
        assert raised.value.status_code == 501
        node.busy = True
        with pytest.raises(openai.RateLimitError):
            await client.embeddings.create(model="alice/texts", input="a")


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
    names = {"type": "string", "enum": ["alice/texts", "alice/texts:1.0.0", "alice/none"]}
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
