"""OpenAI's surface: models, embeddings and errors, in OpenAI's shapes."""

from __future__ import annotations

import base64
import struct
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from celluler_node.gateway.app import gateway_app
from celluler_node.gateway.asking import Asking
from celluler_node.gateway.openai import calls_of, read_question
from tests.support.jobs import NOW_S
from tests.support.serving_node import ServingNode


def client(node: ServingNode, **options: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=gateway_app(node, "t", **options), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8787")


async def embed(node: ServingNode, **body: Any) -> httpx.Response:
    async with client(node) as http:
        return await http.post("/v1/embeddings", json=body)


async def test_models_are_listed_and_shown_without_those_taken_back(node: ServingNode) -> None:
    await node.retract_model("alice/texts:1.0.0", "wrong")
    async with client(node) as http:
        listed = (await http.get("/v1/models")).json()
        one = await http.get("/v1/models/alice%2Fdigits:1.0.0")
        gone = await http.get("/v1/models/alice/texts:1.0.0")
    assert listed["object"] == "list"
    assert len(listed["data"]) == 9
    assert one.json() in listed["data"]
    assert one.json() == {"id": "alice/digits:1.0.0", "object": "model", "created": NOW_S, "owned_by": "alice"}
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")


async def test_texts_are_embedded_in_the_order_they_came_in(node: ServingNode) -> None:
    texts = ["abcd", "a", "ü"]
    told = (await embed(node, model="alice/texts", input=texts)).json()
    assert (told["object"], told["model"]) == ("list", "alice/texts:1.1.0")
    assert [one["index"] for one in told["data"]] == [0, 1, 2]
    assert [one["embedding"][0] for one in told["data"]] == [2.0, 0.5, 1.0]
    assert told["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert len(node.asked) == 1


async def test_base64_is_the_same_numbers(node: ServingNode) -> None:
    asked = {"model": "alice/texts", "input": "abc"}
    floats = (await embed(node, **asked)).json()["data"][0]["embedding"]
    coded = (await embed(node, **asked, encoding_format="base64")).json()["data"][0]["embedding"]
    assert list(struct.unpack("<3f", base64.b64decode(coded))) == floats


async def test_tokens_of_one_length_go_together(node: ServingNode) -> None:
    rows = [[1, 2, 3, 4], [5, 6, 7, 8]]
    told = (await embed(node, model="alice/tokens", input=rows, dimensions=3)).json()
    assert [one["embedding"][1] for one in told["data"]] == [5.0, 13.0]
    assert told["usage"]["prompt_tokens"] == 8
    assert node.asked == [((2, 4), "embedding")]
    ports = await node.model_ports("alice/tokens")
    calls = calls_of(read_question({"model": "m", "input": [[1], [2, 3], [4]]}), ports)
    assert [(places, tensor.shape) for places, tensor in calls] == [([0, 2], (2, 1)), ([1], (1, 2))]


async def test_long_texts_are_asked_in_several_calls(node: ServingNode) -> None:
    question = read_question({"model": "m", "input": ["a" * (1 << 20)] * 3 + ["b"]})
    calls = calls_of(question, await node.model_ports("alice/texts"))
    assert [tensor.shape for _, tensor in calls] == [(2, 1 << 20), (2, 1 << 20)]
    assert sorted(place for places, _ in calls for place in places) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "alice/texts"}, 400, "input"),
        ({"input": "a"}, 400, "model"),
        ({"model": "alice/texts", "input": []}, 400, "input"),
        ({"model": "alice/texts", "input": ["a", ""]}, 400, "input[1]"),
        ({"model": "alice/texts", "input": ["a", 1]}, 400, "input"),
        ({"model": "alice/texts", "input": [[1], "a"]}, 400, "input"),
        ({"model": "alice/texts", "input": [1, 2]}, 400, "input"),
        ({"model": "alice/tokens", "input": [True]}, 400, "input"),
        ({"model": "alice/tokens", "input": [-1]}, 400, "input"),
        ({"model": "alice/tokens", "input": [1, 2]}, 400, "input.shape"),
        ({"model": "alice/texts", "input": "a\0"}, 400, "inputs[0]"),
        ({"model": "alice/texts", "input": ["a"] * 2049}, 400, "input"),
        ({"model": "alice/digits", "input": "a"}, 400, "model"),
        ({"model": "alice/texts", "input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
        ({"model": "alice/texts", "input": "a", "dimensions": 2}, 400, "dimensions"),
        ({"model": "alice/texts", "input": "a", "dimensions": True}, 400, "dimensions"),
        ({"model": "alice/texts", "input": "a", "temperature": 1}, 400, "temperature"),
        ({"model": "nonsense", "input": "a"}, 400, ""),
        ({"model": "alice/none", "input": "a"}, 404, None),
    ],
)
async def test_an_error_has_openais_shape(node: ServingNode, body: object, status: int, param: str | None) -> None:
    async with client(node) as http:
        answer = await http.post("/v1/embeddings", json=body)
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "celluler"}
    assert (answer.status_code, error["type"]) == (status, "invalid_request_error")
    if param != "":
        assert error["param"] == param


async def test_a_path_that_is_not_there_is_no_model_that_is_not(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/nowhere")).json()["error"]["code"] is None
    assert (await http.get("/v1/embeddings")).status_code == 405


async def test_a_busy_node_says_when_to_come_back(node: ServingNode) -> None:
    node.busy = True
    answer = await embed(node, model="alice/texts", input="a")
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"


async def test_predictions_beyond_those_that_may_wait_are_turned_away(node: ServingNode) -> None:
    node.gate = trio.Event()
    asking = Asking(node, at_work=1, waiting=1)
    tensor = calls_of(read_question({"model": "m", "input": "a"}), await node.model_ports("alice/texts"))[0][1]
    from celluler.errors import Busy  # noqa: PLC0415

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(asking.predict, "alice/texts", tensor, "embedding")
        await trio.testing.wait_all_tasks_blocked()
        assert (asking.at_work, asking.waiting) == (1, 1)
        with pytest.raises(Busy):
            await asking.predict("alice/texts", tensor, "embedding")
        node.gate.set()
    assert (asking.at_work, asking.waiting, len(node.asked)) == (0, 0, 2)
