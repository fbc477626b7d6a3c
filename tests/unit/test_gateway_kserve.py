"""KServe's surface: health, metadata, and inference with JSON and with tensors in binary."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celluler.errors import CellulerError
from celluler.views import Readiness
from celluler_node.gateway import asking
from celluler_node.gateway.kserve import read_inference
from tests.support.serving_node import ServingNode

MODEL = "/v2/models/alice/digits"
HEADER = "Inference-Header-Content-Length"
NUMBERS = {"name": "input", "shape": [2, 2, 2], "datatype": "FP32", "data": [0, 1, 2, 3, 4, 5, 7, 6]}


async def test_the_server_and_its_health(node: ServingNode, http: httpx.AsyncClient) -> None:
    assert (await http.get("/v2")).json()["extensions"] == ["binary_tensor_data"]
    assert (await http.get("/v2/health/live")).json() == {"live": True}
    assert (await http.get("/v2/health/ready")).status_code == 400
    node.ready = Readiness(True)
    assert (await http.get("/v2/health/ready")).json() == {"ready": True}


async def test_metadata_are_names_and_shapes_of_the_interface(http: httpx.AsyncClient) -> None:
    for path in ("alice/digits", "alice%2Fdigits", "alice/digits/versions/1.1.0"):
        told = (await http.get(f"/v2/models/{path}")).json()
        assert told["name"] == "alice/digits"
        assert told["versions"] == ["1.1.0", "1.0.0"]
        assert told["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 2, 2]}]
        assert told["outputs"][1:] == [
            {"name": "labels", "datatype": "INT64", "shape": [-1]},
            {"name": "name", "datatype": "BYTES", "shape": [-1]},
        ]
    dreams = (await http.get("/v2/models/alice/dreams")).json()
    assert dreams["inputs"] == [{"name": "seeds", "datatype": "INT64", "shape": [-1]}]


async def test_a_model_is_ready_where_somebody_has_it(node: ServingNode, http: httpx.AsyncClient) -> None:
    cid = (await node.show_model("alice/digits")).cid
    for path in (MODEL, f"{MODEL}/versions/1.0.0", f"/v2/models/{cid}"):
        assert (await http.get(f"{path}/ready")).json()["ready"] is True
    assert (await http.get(f"{MODEL}/versions/9.0.0/ready")).status_code == 404
    assert (await http.get("/v2/models/alice/ready")).status_code == 404


async def test_everything_that_is_made_from_the_input_is_answered_unless_named(
    node: ServingNode, http: httpx.AsyncClient
) -> None:
    answer = await http.post(f"{MODEL}/versions/1.0.0/infer", json={"id": "7", "inputs": [NUMBERS]})
    told = answer.json()
    assert (told["id"], told["model_name"], told["model_version"]) == ("7", "alice/digits", "1.0.0")
    assert told["outputs"] == [
        {"name": "probabilities", "datatype": "FP32", "shape": [2, 2], "data": [6.0, 3.0, 22.0, 7.0]},
        {"name": "labels", "datatype": "INT64", "shape": [2], "data": [3, 2]},
        {"name": "name", "datatype": "BYTES", "shape": [2], "data": ["no. 6 ü", "no. 22 ü"]},
    ]
    nested = NUMBERS | {"data": [[[0, 1], [2, 3]], [[4, 5], [7, 6]]]}
    one = await http.post(f"{MODEL}/infer", json={"inputs": [nested], "outputs": [{"name": "labels"}]})
    assert one.json()["outputs"] == told["outputs"][1:2]
    assert one.json()["model_version"] == "1.1.0"
    assert len(node.asked) == 4


async def test_binary_goes_both_ways(http: httpx.AsyncClient) -> None:
    data = struct.pack("<4f", 0, 1, 2, 3)
    given = {"name": "input", "shape": [1, 2, 2], "datatype": "FP32", "parameters": {"binary_data_size": len(data)}}
    outputs = [
        {"name": "name", "parameters": {"binary_data": True}},
        {"name": "labels"},
        {"name": "probabilities", "parameters": {"binary_data": True}},
    ]
    head = json.dumps({"inputs": [given], "outputs": outputs}).encode()
    answer = await http.post(f"{MODEL}/infer", content=head + data, headers={HEADER: str(len(head))})
    size = int(answer.headers[HEADER])
    told, blob = json.loads(answer.content[:size]), answer.content[size:]
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert told["outputs"][0]["parameters"] == {"binary_data_size": 12}
    assert told["outputs"][1]["data"] == [3]
    text = "no. 6 ü".encode()
    assert blob == struct.pack("<I", len(text)) + text + struct.pack("<2f", 6, 3)


async def test_texts_are_bytes(http: httpx.AsyncClient) -> None:
    path = "/v2/models/alice/texts/infer"
    told = await http.post(
        path, json={"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["ab", "ü"]}]}
    )
    assert told.json()["outputs"][0]["shape"] == [2, 3]
    blob = b"".join(struct.pack("<I", len(text)) + text for text in (b"ab", "ü".encode()))
    given = {"name": "text", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(blob)}}
    head = json.dumps({"inputs": [given]}).encode()
    binary = await http.post(path, content=head + blob, headers={HEADER: str(len(head))})
    assert binary.json()["outputs"] == told.json()["outputs"]


async def test_seeds_make_samples(node: ServingNode, http: httpx.AsyncClient) -> None:
    seeds = {"name": "seeds", "shape": [2], "datatype": "INT64", "data": [3, 4]}
    told = await http.post("/v2/models/alice/dreams/infer", json={"inputs": [seeds]})
    assert told.json()["outputs"][0]["data"] == [3.0, -3.0, 4.0, -4.0]
    assert (await http.post(f"{MODEL}/infer", json={"inputs": [seeds]})).status_code == 400


@pytest.mark.parametrize(
    "change",
    [
        {"name": "x"},
        {"shape": [2, 2]},
        {"shape": [2, 2, True]},
        {"shape": [2, 2, -2]},
        {"shape": []},
        {"datatype": "FP16"},
        {"datatype": "BYTES"},
        {"datatype": "FP32 "},
        {"data": None},
        {"data": [0, 1, 2, 3, 4, 5, 7, "6"]},
        {"data": [[0, 1], [2]]},
        {"parameters": {"binary_data_size": 32}},
        {"data": None, "parameters": {"binary_data_size": 32}},
        {"data": None, "parameters": {"binary_data_size": -1}},
        {"strange": 1},
    ],
)
async def test_an_input_that_does_not_fit_is_refused(
    node: ServingNode, http: httpx.AsyncClient, change: dict[str, Any]
) -> None:
    answer = await http.post(f"{MODEL}/infer", json={"inputs": [NUMBERS | change]})
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}
    assert isinstance(answer.json()["error"], str)
    assert node.asked == []


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (MODEL, {"inputs": []}, 400),
        (MODEL, {"inputs": [NUMBERS, NUMBERS]}, 400),
        (MODEL, {"inputs": [NUMBERS], "outputs": [{"name": "nothing"}]}, 400),
        (MODEL, {"inputs": [NUMBERS], "outputs": [{"name": "labels"}, {"name": "labels"}]}, 400),
        (MODEL, {"inputs": [NUMBERS], "outputs": [{"name": "labels", "parameters": {"classification": 1}}]}, 400),
        (MODEL, {"inputs": [NUMBERS], "parameters": {"binary_data_output": 1}}, 400),
        (f"{MODEL}:1.0.0/versions/1.0.0", {"inputs": [NUMBERS]}, 400),
        (f"{MODEL}/versions/latest", {"inputs": [NUMBERS]}, 400),
        ("/v2/models/alice/none", {"inputs": [NUMBERS]}, 404),
        ("/v2/models/digits", {"inputs": [NUMBERS]}, 405),  # `digits/infer` is a name
    ],
)
async def test_a_request_that_does_not_fit_is_refused(
    http: httpx.AsyncClient, path: str, body: object, status: int
) -> None:
    answer = await http.post(f"{path}/infer", json=body)
    assert answer.status_code == status
    assert isinstance(answer.json()["error"], str)


async def test_numbers_that_json_has_not_are_told_and_go_in_binary(node: ServingNode, http: httpx.AsyncClient) -> None:
    node.bad = True
    asked: dict[str, Any] = {"inputs": [NUMBERS], "outputs": [{"name": "probabilities"}]}
    answer = await http.post(f"{MODEL}/infer", json=asked)
    assert answer.status_code == 500
    assert "NaN" in answer.json()["error"]
    asked["parameters"] = {"binary_data_output": True}
    assert (await http.post(f"{MODEL}/infer", json=asked)).status_code == 200


async def test_an_answer_has_an_end(http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "MAX_JSON_BYTES", 20)
    asked: dict[str, Any] = {"inputs": [NUMBERS], "outputs": [{"name": "probabilities"}]}
    assert (await http.post(f"{MODEL}/infer", json=asked)).status_code == 200  # 16 bytes
    asked["outputs"].append({"name": "labels"})
    refused = await http.post(f"{MODEL}/infer", json=asked)
    assert (refused.status_code, "in binary" in refused.json()["error"]) == (400, True)
    asked["outputs"][1]["parameters"] = {"binary_data": True}
    assert (await http.post(f"{MODEL}/infer", json=asked)).status_code == 200
    monkeypatch.setattr(asking, "MAX_ANSWER_BYTES", 20)
    assert (await http.post(f"{MODEL}/infer", json=asked)).status_code == 400


@given(st.binary(max_size=64), st.none() | st.integers(-1, 80))
def test_no_body_raises_anything_but_our_errors(body: bytes, header: int | None) -> None:
    with suppress(CellulerError):
        read_inference(body, header)


@given(st.binary(max_size=40), st.lists(st.integers(-1, 4), max_size=3))
def test_no_elements_raise_anything_but_our_errors(blob: bytes, shape: list[int]) -> None:
    given_ = {"name": "a", "shape": shape, "datatype": "BYTES", "parameters": {"binary_data_size": len(blob)}}
    head = json.dumps({"inputs": [given_]}).encode()
    with suppress(CellulerError):
        read_inference(head + blob, len(head))
