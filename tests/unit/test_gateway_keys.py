"""API keys: what they open, how often, and who needs one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from celluler.errors import IntegrityError, InvalidSpec, LocalError
from celluler_node.cli.root import run
from celluler_node.gateway.app import gateway_app
from celluler_node.gateway.keys import KeyRing, new_key, read_keys, write_keys
from celluler_node.gateway.server import TlsFiles, serve_gateway
from tests.support.serving_node import ServingNode

ELSEWHERE = ("192.0.2.9", 5000)
HERE = ("127.0.0.1", 5000)
Celluler = Callable[..., tuple[int, str, str]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def add(file: Path, *scopes: str, a_minute: int = 0) -> str:
    key, text = new_key(f"k{len(read_keys(file))}", scopes, a_minute)
    write_keys(file, (*read_keys(file), key))
    return text


def client(
    node: ServingNode, keys: KeyRing | None, *, of: tuple[str, int] | None = ELSEWHERE, bearer: str = "", **options: Any
) -> httpx.AsyncClient:
    app = gateway_app(node, "token", keys=keys, **options)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False, client=of)  # type: ignore[arg-type]
    headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
    return httpx.AsyncClient(transport=transport, base_url="http://localhost:8787", headers=headers)


@pytest.mark.parametrize("of", [ELSEWHERE, ("::ffff:192.0.2.9", 1), ("not an address", 1), None])
async def test_who_comes_from_elsewhere_needs_a_key(node: ServingNode, file: Path, of: tuple[str, int] | None) -> None:
    async with client(node, KeyRing(file), of=of, bearer="wrong") as http:
        for path in ("/v1/models", "/v2", "/metrics", "/nowhere", "/api/v1/status"):
            answer = await http.get(path)
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert (await http.get("/v1/models")).json()["error"]["code"] == "invalid_api_key"
        assert isinstance((await http.get("/v2")).json()["error"], str)
        assert (await http.get("/healthz")).status_code == 200
        assert (await http.get("/v2/health/live")).status_code == 200


@pytest.mark.parametrize("of", [HERE, ("::1", 1), ("::ffff:127.0.0.1", 1)])
async def test_this_machine_needs_none_unless_it_is_said_so(node: ServingNode, file: Path, of: tuple[str, int]) -> None:
    async with client(node, KeyRing(file), of=of, bearer="sk-anything") as http:
        assert (await http.get("/v1/models")).status_code == 200
        assert (await http.get("/api/v1/status")).status_code == 401
        for header in ("X-Forwarded-For", "Forwarded", "X-Real-IP"):
            assert (await http.get("/v1/models", headers={header: "192.0.2.9"})).status_code == 401
    async with client(node, KeyRing(file), of=of, keys_always=True) as http:
        assert (await http.get("/v1/models")).status_code == 401


async def test_a_page_of_another_origin_is_refused_without_a_key(node: ServingNode, file: Path) -> None:
    async with client(node, KeyRing(file), of=HERE) as http:
        for origin in ("https://evil.example", "null", "http://localhost.evil.example"):
            asked = await http.post("/v1/embeddings", content=b"{}", headers={"Origin": origin})
            assert asked.status_code == 403
        own = await http.get("/v1/models", headers={"Origin": "http://localhost:3000"})
        assert own.status_code == 200


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        ("infer", {"GET /v1/models", "GET /v2", "POST /api/v1/predict"}),
        ("read", {"GET /api/v1/status"}),
        ("metrics", {"GET /metrics"}),
        ("admin", {"GET /v1/models", "GET /v2", "POST /api/v1/predict", "GET /api/v1/status", "GET /metrics", "POST /api/v1/pin"}),  # noqa: E501
    ],
)  # fmt: skip
async def test_a_key_opens_what_its_scope_says(node: ServingNode, file: Path, scope: str, allowed: set[str]) -> None:
    paths = ("GET /v1/models", "GET /v2", "POST /api/v1/predict", "GET /api/v1/status", "GET /metrics", "POST /api/v1/pin")  # fmt: skip  # noqa: E501
    async with client(node, KeyRing(file), bearer=add(file, scope)) as http:
        for asked in paths:
            method, path = asked.split()
            status = (await http.request(method, path, json={} if method == "POST" else None)).status_code
            assert (status not in (401, 403)) == (asked in allowed), asked


async def test_the_token_opens_everything_from_anywhere(node: ServingNode, file: Path) -> None:
    async with client(node, KeyRing(file), bearer="token") as http:
        for path in ("/v1/models", "/api/v1/status", "/metrics"):
            assert (await http.get(path)).status_code == 200


async def test_a_key_has_so_many_requests_a_minute(node: ServingNode, file: Path) -> None:
    now = [100.0]
    ring = KeyRing(file, a_minute=3, clock=lambda: now[0])
    async with client(node, ring, bearer=add(file, "infer")) as http:
        assert [(await http.get("/v1/models")).status_code for _ in range(4)] == [200, 200, 200, 429]
        refused = await http.get("/v1/models")
        assert (refused.headers["Retry-After"], refused.json()["error"]["type"]) == ("20", "rate_limit_error")
        now[0] += 20
        assert [(await http.get("/v1/models")).status_code for _ in range(2)] == [200, 429]
    async with client(node, ring, bearer=add(file, "infer", a_minute=1000)) as http:
        assert {(await http.get("/v1/models")).status_code for _ in range(9)} == {200}


def test_a_key_is_known_from_its_making_to_its_removal_and_kept_nowhere(file: Path) -> None:
    ring = KeyRing(file)
    assert ring.find("celluler_00000000_x") is None
    text = add(file, "infer")
    found = ring.find(text)
    assert found is not None
    for wrong in (text[:-1], f"{text}x", text.replace(found.id, "00000000"), found.sha256, "", "_", "__", "\udc80__"):
        assert ring.find(wrong) is None
    assert text.split("_", 2)[2] not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    write_keys(file, ())
    assert ring.find(text) is None


def test_a_damaged_file_opens_nothing(file: Path) -> None:
    ring, text = KeyRing(file), add(file, "admin")
    for damage in ("[]", "{", '{"keys": [{"id": 3}]}', "[" * 100_000):
        file.write_text(damage)
        assert ring.find(text) is None
        with pytest.raises(IntegrityError):
            read_keys(file)


def test_a_key_that_makes_no_sense_is_not_made() -> None:
    for name, scopes, rate in (("A b", ["infer"], 0), ("a", [], 0), ("a", ["root"], 0), ("a", ["infer"], -1)):
        with pytest.raises(InvalidSpec):
            new_key(name, scopes, rate)


def test_keys_are_made_listed_and_removed_by_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CELLULER_HOME", str(tmp_path))

    def celluler(*arguments: str) -> tuple[int, str]:
        return run(["key", *arguments]), capsys.readouterr().out

    code, text = celluler("create", "laptop", "--scope", "infer", "--scope", "metrics")
    ring = KeyRing(tmp_path / "keys.json")
    found = ring.find(text.strip())
    assert code == 0
    assert found is not None
    assert found.scopes == ("infer", "metrics")
    made = json.loads(celluler("create", "other", "--rate", "5", "--json")[1])
    assert ring.find(made["key"]) is not None
    listed = json.loads(celluler("ls", "--json")[1])["keys"]
    assert [one["name"] for one in listed] == ["laptop", "other"]
    assert "sha256" not in listed[0]
    assert celluler("rm", "laptop")[0] == 0
    assert ring.find(text.strip()) is None
    assert celluler("rm", "laptop")[0] == 4
    assert celluler("create", "x", "--scope", "root")[0] == 2


async def test_a_certificate_that_cannot_be_used_is_told(node: ServingNode, tmp_path: Path) -> None:
    (tmp_path / "pem").write_text("nothing")
    with pytest.raises(LocalError, match="certificate"):
        await serve_gateway(gateway_app(node, "t"), "127.0.0.1", 0, tls=TlsFiles(tmp_path / "pem", tmp_path / "absent"))
