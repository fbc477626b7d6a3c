"""The OpenAPI document is true: every route is in it, and what is asked and answered is as it says."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from celluler.jobs.states import JobLife
from celluler.views import NewArm, NewDeployment, Readiness, Transfer, TransferSource
from celluler_node.gateway.app import gateway_app
from celluler_node.gateway.openapi import SAID, openapi_document
from celluler_node.gateway.references import plain_path
from tests.support.jobs import ALICE, BOB, DATA_CID, JOB_YAML, NOW_S
from tests.support.schema import problems
from tests.support.serving_node import ServingNode

NUMBERS = {"name": "input", "shape": [1, 2, 2], "datatype": "FP32", "data": [[[0, 1], [2, 3]]]}
INFER = {"id": "a", "inputs": [NUMBERS], "outputs": [{"name": "labels"}]}
TENSOR = {"shape": [1, 2, 2], "dtype": "float32", "data": "AACAPwAAgD8AAIA/AACAPw=="}
NAMED = {"ref": "alice/digits"}
DATASET = {"name": "alice/rows:1.0.0", "content": DATA_CID, "label": "digit"}
TRIED = {"name": "tried"}
DEPLOYMENT = {
    "name": "digits",
    "model": "alice/digits:1.0.0",
    "arms": [{"name": "b", "model": "alice/digits:2.0.0", "share": "10%"}],
    "min_replicas": 0,
    "regions": ["eu"],
}
MESSAGES = [
    {"role": "developer", "content": "Be kind"},
    {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
]
USAGE = {"include_usage": True}
Example = dict[str, Any]
EXAMPLES: dict[tuple[str, str], list[Example]] = {
    ("GET", "/api/v1/peers/{peer}"): [{"path": {"peer": "bob"}}],
    ("POST", "/api/v1/peers/{peer}/ping"): [{"path": {"peer": "bob"}}],
    ("POST", "/api/v1/blobs"): [{"content": b"bytes", "query": {"kind": "dataset", "announce": "no"}}],
    ("GET", "/api/v1/blobs/{cid}"): [{"path": {"cid": "CID"}, "query": {"at_most": 9}}],
    ("GET", "/api/v1/blobs/{cid}/stat"): [{"path": {"cid": "CID"}}],
    ("POST", "/api/v1/pin"): [{"json": {"ref": "CID"}}],
    ("POST", "/api/v1/unpin"): [{"json": {"ref": "CID"}}],
    ("POST", "/api/v1/store/gc"): [{"json": {"target_bytes": 0, "dry_run": True}}, {"json": {"target_bytes": None}}],
    ("POST", "/api/v1/store/check"): [{"json": {"repair": True}}],
    ("GET", "/api/v1/models"): [{"query": {"text": "", "local": "true", "sort": "name"}}],
    ("GET", "/api/v1/models/search"): [{"query": {"sort": "newest"}}],
    ("POST", "/api/v1/models"): [{"json": {"name": "alice/new:1.0.0", "spec": {}, "tags": ["a"], "weights": None}}],
    ("GET", "/api/v1/models/{ref}"): [{"path": NAMED}],
    ("DELETE", "/api/v1/models/{ref}"): [{"path": {"ref": "alice/dreams:1.0.0"}}],
    ("GET", "/api/v1/models/{ref}/card"): [{"path": {"ref": "alice/carded"}}],
    ("GET", "/api/v1/models/{ref}/versions"): [{"path": NAMED}],
    ("GET", "/api/v1/models/{ref}/log"): [{"path": NAMED}],
    ("GET", "/api/v1/models/{ref}/lineage"): [{"path": NAMED}],
    ("GET", "/api/v1/models/diff"): [{"query": {"old": "alice/digits:1.0.0", "new": "alice/digits:1.1.0"}}],
    ("POST", "/api/v1/models/pull"): [{"json": {"model": "alice/digits", "layers": "0:1"}}],
    ("POST", "/api/v1/models/verify"): [{"json": {"model": "alice/digits"}}],
    ("POST", "/api/v1/models/alias"): [{"json": {"model": "alice/digits", "alias": "stable"}}],
    ("POST", "/api/v1/models/drop-alias"): [{"json": {"model": "alice/digits"}}],
    ("POST", "/api/v1/models/rollback"): [{"json": {"model": "alice/digits"}}],
    ("POST", "/api/v1/models/retract"): [{"json": {"model": "alice/texts:1.0.0", "reason": "wrong"}}],
    ("POST", "/api/v1/serving/load"): [{"json": {"model": "alice/digits"}}],
    ("POST", "/api/v1/serving/unload"): [{"json": {"model": "alice/digits"}}],
    ("POST", "/api/v1/predict"): [
        {"json": {"model": "alice/digits", "inputs": [[[0, 1], [2, 3]]], "output": "labels"}}
    ],
    ("POST", "/api/v1/datasets"): [{"json": DATASET | {"name": "alice/more:1.0.0"}}],
    ("GET", "/api/v1/datasets/{ref}"): [{"path": {"ref": "alice/rows"}}],
    ("POST", "/api/v1/datasets/pull"): [{"json": {"dataset": "alice/rows"}}],
    ("POST", "/api/v1/jobs"): [{"json": {"client_id": "another", "spec": JOB_YAML, "attachments": []}}],
    ("GET", "/api/v1/jobs/{job}"): [{"path": {"job": "JOB"}}],
    ("PATCH", "/api/v1/jobs/{job}"): [{"path": {"job": "JOB"}, "json": {"priority": 3, "deadline_s": None}}],
    ("GET", "/api/v1/jobs/{job}/spec"): [{"path": {"job": "JOB"}}],
    ("GET", "/api/v1/jobs/{job}/events"): [{"path": {"job": "JOB"}, "query": {"since": 0, "wait_s": 0}}],
    ("POST", "/api/v1/jobs/{job}/checkpoint"): [{"path": {"job": "JOB"}}],
    ("POST", "/api/v1/jobs/{job}/stop"): [{"path": {"job": "JOB"}}],
    ("POST", "/api/v1/jobs/{job}/cancel"): [{"path": {"job": "JOB"}}],
    ("POST", "/api/v1/jobs/{job}/invites"): [{"path": {"job": "JOB"}, "json": {"peer": BOB.peer_id, "for_s": 60}}],
    ("POST", "/api/v1/jobs/join"): [{"json": {"invite": "INVITE"}}],
    ("POST", "/api/v1/deployments"): [
        {"json": DEPLOYMENT},
        {"json": {"name": "other", "model": "alice/digits:1.0.0"}},
    ],
    ("GET", "/api/v1/deployments/{name}"): [{"path": TRIED}],
    ("DELETE", "/api/v1/deployments/{name}"): [{"path": TRIED}],
    ("PATCH", "/api/v1/deployments/{name}"): [
        {"path": TRIED, "json": {"model": "alice/digits:3.0.0", "share": "5%", "arm": "c", "regions": ["eu"]}},
        {"path": TRIED, "json": {"compare": "1%", "max_replicas": None}},
    ],
    ("POST", "/api/v1/deployments/{name}/promote"): [{"path": TRIED, "json": {"arm": "b"}}],
    ("POST", "/api/v1/deployments/{name}/rollback"): [{"path": TRIED}],
    ("POST", "/api/v1/transcripts"): [{"json": {"job": "JOB", "peers": [ALICE.peer_id]}}],
    ("GET", "/v1/models/{ref}"): [{"path": NAMED}],
    ("POST", "/v1/embeddings"): [
        {"json": {"model": "alice/texts", "input": "a", "user": "me"}},
        {"json": {"model": "alice/texts", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 3}},
        {"json": {"model": "alice/tokens", "input": [[1, 2, 3, 4]], "dimensions": None}},
    ],
    ("POST", "/v1/completions"): [
        {"json": {"model": "alice/tales", "prompt": "Hello", "echo": True, "stop": "x", "suffix": None}},
        {"json": {"model": "alice/tales", "prompt": [[1, 2], [3]], "n": 2, "logprobs": 2, "presence_penalty": 0}},
        {"json": {"model": "alice/tales", "prompt": ["a", "b"], "stream": True, "max_tokens": None}},
    ],
    ("POST", "/v1/chat/completions"): [
        {"json": {"model": "alice/tales", "messages": MESSAGES, "logprobs": True, "top_logprobs": 3, "seed": 1}},
        {"json": {"model": "alice/tales", "messages": MESSAGES, "stream": True, "stream_options": USAGE}},
    ],
    ("GET", "/v2/models/{ref}"): [{"path": NAMED}],
    ("GET", "/v2/models/{ref}/ready"): [{"path": NAMED}],
    ("POST", "/v2/models/{ref}/infer"): [
        {"path": NAMED, "json": INFER},
        {"path": NAMED, "json": {"inputs": [NUMBERS]}},
    ],
    ("GET", "/v2/models/{ref}/versions/{version}"): [{"path": NAMED | {"version": "1.0.0"}}],
    ("GET", "/v2/models/{ref}/versions/{version}/ready"): [{"path": NAMED | {"version": "1.0.0"}}],
    ("POST", "/v2/models/{ref}/versions/{version}/infer"): [{"path": NAMED | {"version": "1.0.0"}, "json": INFER}],
}
"""How to ask what cannot be asked with nothing. CID, JOB and INVITE stand for what the node has."""


@pytest.fixture
async def node() -> AsyncIterator[ServingNode]:
    node = ServingNode()
    await node.publish()
    node.ready = Readiness(True)
    node.moving = (Transfer("c", "a", 1.0, 2, 3, 4.0, None, (TransferSource(BOB.peer_id, 1, 2.0, "tls"),)),)
    yield node
    node.close()


def app_of(node: ServingNode) -> Any:
    return gateway_app(node, "t")


async def filled(node: ServingNode, http: httpx.AsyncClient) -> dict[str, str]:
    """A content, a dataset, a card and a job, and how they are called."""
    cid = (await http.post("/api/v1/blobs", content=b"content")).json()["cid"]
    assert (await http.post("/api/v1/datasets", json=DATASET)).status_code == 201
    card = {"name": "alice/carded:1.0.0", "spec": {}, "card": "# Card"}
    assert (await http.post("/api/v1/models", json=card)).status_code == 201
    job = (await http.post("/api/v1/jobs", json={"client_id": "mine", "spec": JOB_YAML})).json()["id"]
    _begin_again(node, job)
    invite = (await http.post(f"/api/v1/jobs/{job}/invites", json={"peer": BOB.peer_id, "for_s": 60})).json()["invite"]
    await _try_out(node)
    return {"CID": cid, "JOB": job, "INVITE": invite}


def test_every_route_is_described_and_nothing_else() -> None:
    node = ServingNode()
    routes = app_of(node).routes
    there = {
        (method, plain_path(route.path))
        for route in routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    node.close()
    assert there == set(SAID)
    assert set(EXAMPLES) <= there
    document = openapi_document(routes)
    names = [one["operationId"] for path in document["paths"].values() for one in path.values()]
    assert len(set(names)) == len(names) == len(SAID)
    for reference in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)):
        assert reference in document["components"]["schemas"]


@pytest.mark.parametrize("surface", ["/api/", "/v1/", "/v2", "/"])
async def test_what_is_asked_and_answered_is_as_the_document_says(node: ServingNode, surface: str) -> None:
    transport = httpx.ASGITransport(app=app_of(node), raise_app_exceptions=False)
    bearer = {"Authorization": "Bearer t"}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=bearer) as http:
        said = (await http.get("/openapi.json")).json()
        stands_for = await filled(node, http)
        asked = 0
        for path, operations in said["paths"].items():
            belongs = next(one for one in ("/api/", "/v1/", "/v2", "/") if path.startswith(one))
            for method, operation in operations.items() if belongs == surface else ():
                for example in EXAMPLES.get((method.upper(), path), [{}]):
                    _begin_again(node, stands_for["JOB"])  # the one before may have ended it
                    await _try_out(node)
                    await _hold_to(http, said, method, path, operation, _filled_in(example, stands_for))
                    asked += 1
    assert asked


def _begin_again(node: ServingNode, job: str) -> None:
    node.lives[job] = JobLife(float(NOW_S))
    node.measure(job, round=2.0, loss=0.5)


async def _try_out(node: ServingNode) -> None:
    """A deployment with two arms, whatever became of the one before."""
    node.deployed.pop(TRIED["name"], None)
    arm = NewArm("b", "alice/digits:2.0.0", "10%")
    await node.create_deployment(NewDeployment(TRIED["name"], "alice/digits:1.0.0", (arm,)))


def _filled_in(example: Example, stands_for: dict[str, str]) -> Example:
    content = example.get("content")
    text = json.dumps({name: item for name, item in example.items() if name != "content"})
    for name, meant in stands_for.items():
        text = text.replace(f'"{name}"', json.dumps(meant))
    filled: Example = json.loads(text)
    return filled | ({"content": content} if content is not None else {})


async def _hold_to(
    http: httpx.AsyncClient, said: dict[str, Any], method: str, path: str, operation: Any, example: Example
) -> None:
    components, where = said["components"]["schemas"], f"{method} {path}"
    url = path
    for name, value in example.get("path", {}).items():
        url = url.replace(f"{{{name}}}", value.replace("/", "%2F"))
    known = {one["name"]: one["schema"] for one in operation["parameters"] if one["in"] == "query"}
    for name, value in example.get("query", {}).items():
        assert not problems(value, known[name], components, f"{where}?{name}")
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    assert (body is None) == ("json" not in example), where
    if body is not None:
        assert not problems(example["json"], body["schema"], components, where)
    sent = {"params": example.get("query"), "json": example.get("json"), "content": example.get("content")}
    answer = await http.request(method, url, **{name: item for name, item in sent.items() if item is not None})
    described = next(iter(operation["responses"].items()))
    assert str(answer.status_code) == described[0], (where, answer.text)
    content = described[1]["content"]
    media = answer.headers["Content-Type"].partition(";")[0]
    assert media in content, where
    if media == "application/json":
        assert not problems(answer.json(), content[media]["schema"], components, where)


@pytest.mark.parametrize("path", ["/api/v1/models/alice/none", "/v1/models/alice/none", "/v2/models/alice/none", "/no"])
async def test_an_error_is_as_the_document_says(node: ServingNode, path: str) -> None:
    transport = httpx.ASGITransport(app=app_of(node), raise_app_exceptions=False)
    bearer = {"Authorization": "Bearer t"}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=bearer) as http:
        said = (await http.get("/openapi.json")).json()
        answer = await http.get(path)
    name = {"v1": "OpenAIError", "v2": "KServeError"}.get(path.split("/")[1], "Error")
    assert answer.status_code == 404
    assert not problems(answer.json(), said["components"]["schemas"][name], said["components"]["schemas"])
