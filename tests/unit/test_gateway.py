"""The HTTP endpoint: who may talk to it, and how it says what is wrong."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import trio

from celluler.errors import CellulerError
from celluler.views import Readiness
from celluler_node.gateway.app import gateway_app
from celluler_node.operations import Operations
from tests.support.jobs import ALICE, JOB_YAML
from tests.support.operations import MemoryNode

TOKEN = "a-token"
AUTHORISED = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
async def node() -> AsyncIterator[MemoryNode]:
    node = MemoryNode()
    yield node
    node.close()


def client(node: Operations, *, headers: dict[str, str] = AUTHORISED, **options: object) -> httpx.AsyncClient:
    app = gateway_app(node, TOKEN, **options)  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8787", headers=headers)


async def test_every_document_carries_the_schema(node: MemoryNode) -> None:
    async with client(node) as http:
        for path in ("status", "peers", "violations", "models", "datasets", "jobs", "doctor", "transfers"):
            answer = await http.get(f"/api/v1/{path}")
            assert answer.status_code == 200
            assert answer.json()["schema"] == "celluler/v1"
        assert (await http.get("/api/v1/status")).json()["peer_id"] == ALICE.peer_id


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}])
async def test_the_api_needs_the_token(node: MemoryNode, header: dict[str, str]) -> None:
    async with client(node, headers=header) as http:
        for method, path in (("GET", "status"), ("POST", "shutdown"), ("GET", "nowhere")):
            answer = await http.request(method, f"/api/v1/{path}")
            assert answer.status_code == 401
            assert answer.json()["error"]["exit_code"] == 5
    assert not node.ended.is_set()


@pytest.mark.parametrize("host", [b"evil.example", b"127.0.0.1.evil.example", b"", b"[::2]:80", b"\xff"])
async def test_a_page_that_rebinds_its_name_to_loopback_is_refused(node: MemoryNode, host: bytes) -> None:
    async with client(node) as http:
        for path in ("/api/v1/status", "/healthz", "/metrics"):
            answer = await http.get(path, headers=[(b"Host", host)])
            assert answer.status_code == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "[::1]:8787", "LOCALHOST:1", "box.lan:8787"])
async def test_names_of_this_machine_are_let_in(node: MemoryNode, host: str) -> None:
    async with client(node, allowed_hosts=["Box.lan"]) as http:
        assert (await http.get("/healthz", headers={"Host": host})).status_code == 200


async def test_readiness_says_what_it_waits_for(node: MemoryNode) -> None:
    async with client(node, headers={}) as http:
        waiting = await http.get("/readyz")
        assert (waiting.status_code, waiting.json()["reason"]) == (503, "joining")
        node.ready = Readiness(True)
        assert (await http.get("/readyz")).status_code == 200


async def test_metrics_are_in_prometheus_text(node: MemoryNode) -> None:
    async with client(node, headers={}) as http:
        text = (await http.get("/metrics")).text
    assert "celluler_members 2.0" in text
    assert 'celluler_jobs{state="Running"} 1.0' in text
    assert 'direction="received"' in text


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind"),
    [
        ("GET", "/api/v1/nowhere", None, 404, "NotFound"),
        ("DELETE", "/api/v1/status", None, 405, "LocalError"),
        ("GET", "/api/v1/peers/carol", None, 404, "NotFound"),
        ("GET", "/api/v1/blobs/nonsense", None, 422, "InvalidSpec"),
        ("GET", "/api/v1/models/alice/none:1.0.0", None, 404, "NotFound"),
        ("POST", "/api/v1/models", {"name": "alice/x"}, 422, "InvalidSpec"),
        ("POST", "/api/v1/models", {"name": "alice/x", "spec": {}, "extra": 1}, 422, "InvalidSpec"),
        ("POST", "/api/v1/models", {"name": "alice/x", "spec": {}, "metrics": {"a": "b"}}, 422, "InvalidSpec"),
        ("POST", "/api/v1/models/pull", {"model": 3}, 422, "InvalidSpec"),
        ("POST", "/api/v1/predict", {"model": "alice/x", "inputs": [[1], [1, 2]]}, 422, "InvalidSpec"),
        ("POST", "/api/v1/predict", {"model": "alice/x", "inputs": {"shape": [1]}}, 422, "InvalidSpec"),
        ("POST", "/api/v1/jobs", {"spec": JOB_YAML}, 422, "InvalidSpec"),
        ("POST", "/api/v1/jobs", {"client_id": "c", "spec": "kind: Nothing"}, 422, "InvalidSpec"),
        ("POST", "/api/v1/jobs", {"client_id": "c", "spec": JOB_YAML, "attachments": [3]}, 422, "InvalidSpec"),
        ("POST", "/api/v1/jobs", {"client_id": "c" * 129, "spec": JOB_YAML}, 422, "InvalidSpec"),
        ("POST", "/api/v1/jobs", {"client_id": "c", "spec": JOB_YAML.replace("min: 3", "min: 9")}, 503, "NoPeers"),
        ("GET", "/api/v1/jobs/xyz/events?wait_s=1e9", None, 422, "InvalidSpec"),
        ("GET", "/api/v1/jobs/xyz/events?since=-1", None, 422, "InvalidSpec"),
        ("POST", "/api/v1/blobs?kind=virus", None, 422, "InvalidSpec"),
        ("POST", "/api/v1/models", {"name": "alice/x", "spec": {}, "tags": ["a", 3]}, 422, "InvalidSpec"),
        ("POST", "/api/v1/models", {"name": "alice/x", "spec": {}, "copies": True}, 422, "InvalidSpec"),
        ("GET", "/api/v1/models?colour=red", None, 422, "InvalidSpec"),
        ("GET", "/api/v1/models?tag=a&tag=b", None, 422, "InvalidSpec"),
        ("GET", "/api/v1/models?local=perhaps", None, 422, "InvalidSpec"),
        ("GET", "/api/v1/models/search?sort=beauty", None, 422, "InvalidSpec"),
        ("GET", "/api/v1/models/diff?old=alice/x", None, 422, "InvalidSpec"),
        ("GET", "/api/v1/models/alice/none/versions", None, 404, "NotFound"),
        ("DELETE", "/api/v1/models/alice/none:1.0.0", None, 404, "NotFound"),
        ("DELETE", "/api/v1/models/nonsense", None, 405, "LocalError"),
        ("POST", "/api/v1/models/retract", {"model": "alice/x"}, 422, "InvalidSpec"),
        ("POST", "/api/v1/models/alias", {"model": "alice/x", "alias": 3}, 422, "InvalidSpec"),
        ("POST", "/api/v1/datasets", {"name": "alice/x:1.0.0"}, 422, "InvalidSpec"),
        ("POST", "/api/v1/datasets", {"name": "bob/x:1.0.0", "content": "b"}, 403, "Denied"),
        ("GET", "/api/v1/datasets/alice/none", None, 404, "NotFound"),
        ("POST", "/api/v1/pin", {"ref": "nonsense"}, 422, "InvalidSpec"),
        ("POST", "/api/v1/store/gc", {"target_bytes": -1}, 422, "InvalidSpec"),
        ("POST", "/api/v1/store/gc", {"dry_run": 1}, 422, "InvalidSpec"),
        ("POST", "/api/v1/store/gc", {"target_bytes": True}, 422, "InvalidSpec"),
    ],
)
async def test_an_error_has_its_status_its_type_and_its_exit_code(
    node: MemoryNode, method: str, path: str, body: object, status: int, kind: str
) -> None:
    async with client(node) as http:
        answer = await http.request(method, path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (status, kind)
    assert error["message"]
    assert isinstance(error["exit_code"], int)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"model": NaN}'])
async def test_a_body_that_is_no_json_object_is_refused(node: MemoryNode, body: bytes) -> None:
    async with client(node) as http:
        assert (await http.post("/api/v1/predict", content=body)).status_code in (400, 422)


async def test_a_body_over_its_limit_is_refused_before_it_is_read_whole(node: MemoryNode) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 65536
            yield bytes(65536)

    async with client(node) as http:
        answer = await http.post("/api/v1/jobs", content=endless())
    assert answer.status_code == 400
    assert sent <= 1 << 20


async def test_an_upload_over_its_limit_leaves_nothing(node: MemoryNode, tmp_path: object) -> None:
    async with client(node, max_upload_bytes=1000, spool=tmp_path) as http:
        answer = await http.post("/api/v1/blobs", content=bytes(1001))
    assert answer.status_code == 507
    assert node.blobs == {}
    assert not list(tmp_path.iterdir())  # type: ignore[attr-defined]


async def test_an_upload_is_handed_over_where_it_lies(node: MemoryNode, tmp_path: Path) -> None:
    async with client(node, spool=tmp_path) as http:
        assert (await http.post("/api/v1/blobs", content=b"bytes")).status_code == 201
        assert node.spooled is not None
        assert node.spooled.parent == tmp_path
    assert not list(await trio.Path(tmp_path).iterdir())
    async with client(node, spool=tmp_path / "absent") as http:
        assert (await http.post("/api/v1/blobs", content=b"bytes")).json()["error"]["type"] == "LocalError"


async def test_a_model_may_be_called_as_its_parts_are(node: MemoryNode) -> None:
    async with client(node) as http:
        for name in ("versions", "card", "search"):
            body = {"name": f"alice/{name}:1.0.0", "spec": {}, "card": f"# {name}"}
            cid = (await http.post("/api/v1/models", json=body)).json()["cid"]
            for ref in (f"alice/{name}", cid):
                assert (await http.get(f"/api/v1/models/{ref}")).json()["name"] == name
                assert (await http.get(f"/api/v1/models/{ref}/card")).json()["card"] == f"# {name}"
                assert (await http.get(f"/api/v1/models/{ref}/versions")).json()["versions"][0]["version"] == "1.0.0"
        assert (await http.delete("/api/v1/models/alice/card:1.0.0")).json()["freed_bytes"] == 40
        assert (await http.get("/api/v1/models/alice/card")).status_code == 404


async def test_content_comes_back_whole_and_in_ranges(node: MemoryNode) -> None:
    async with client(node) as http:
        cid = (await http.post("/api/v1/blobs?kind=dataset", content=b"0123456789")).json()["cid"]
        assert (await http.get(f"/api/v1/blobs/{cid}")).content == b"0123456789"
        assert (await http.get(f"/api/v1/blobs/{cid}", headers={"Range": "bytes=2-4"})).content == b"234"
        assert (await http.get(f"/api/v1/blobs/{cid}/stat")).json()["kind"] == "dataset"


async def test_predictions_answer_in_the_form_they_were_asked_in(node: MemoryNode) -> None:
    async with client(node) as http:
        await http.post("/api/v1/models", json={"name": "alice/digits:1.0.0", "spec": {"a": 1}})
        lists = await http.post("/api/v1/predict", json={"model": "alice/digits", "inputs": [[1, 2.5]]})
        assert lists.json()["outputs"] == [[2.0, 5.0]]
        coded = {"shape": [1, 1], "dtype": "float32", "data": "AACAPw=="}
        answer = await http.post("/api/v1/predict", json={"model": "alice/digits", "inputs": coded})
        assert answer.json()["outputs"] == {"shape": [1, 1], "dtype": "float32", "data": "AAAAQA=="}


async def test_shutdown_answers_before_it_begins(node: MemoryNode) -> None:
    async with client(node) as http:
        assert (await http.post("/api/v1/shutdown")).status_code == 202
    with trio.fail_after(1):
        await node.ended.wait()


async def test_a_bug_is_told_as_one_without_its_details(node: MemoryNode) -> None:
    async def broken() -> None:
        raise ZeroDivisionError("secret")

    node.status = broken  # type: ignore[method-assign, assignment]
    async with client(node) as http:
        answer = await http.get("/api/v1/status")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "internal error" in json.dumps(answer.json())


def test_every_error_has_a_status() -> None:
    from celluler_node.gateway.documents import failure  # noqa: PLC0415

    stack: list[type[CellulerError]] = [CellulerError]
    while stack:
        cls = stack.pop()
        stack += cls.__subclasses__()
        error = cls.__new__(cls)
        CellulerError.__init__(error, "text")
        assert 400 <= failure(error).status_code < 600
