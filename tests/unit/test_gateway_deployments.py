"""Deployments over HTTP, by the clients and on the command line; and for whom a request is answered."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from celluler.client import AsyncClient
from celluler.errors import InvalidSpec, LocalError, NotFound
from celluler.tensors import Tensor
from celluler.views import AnswerCacheUsage, ModelPorts, Prediction
from celluler_node.callers import Caller, called_by, caller
from celluler_node.cli import deploy_commands
from celluler_node.cli.root import run
from celluler_node.gateway.app import gateway_app
from celluler_node.gateway.callers import note_body, read_caller
from celluler_node.gateway.keys import KeyRing, new_key, write_keys
from tests.support.serving_node import ServingNode

ONE, TWO = "alice/digits:1.0.0", "alice/digits:2.0.0"


class AskedNode(ServingNode):
    """Notes for whom it predicts."""

    def __init__(self) -> None:
        super().__init__()
        self.callers: list[Caller] = []

    async def predict(self, ref: str, inputs: Tensor, output: str = "", *, peer: str = "") -> Prediction:
        one = caller()
        self.callers.append(one)
        one.told |= {"arm": "canary", "cache": "miss", "odd": "a\r\nb"}
        return Prediction(inputs, ref, "bcid", "peer", 0.1, output=output, arm="canary")


@pytest.fixture
def node() -> Iterator[AskedNode]:
    node = AskedNode()
    yield node
    node.close()


@pytest.fixture
async def client(node: AskedNode) -> AsyncIterator[AsyncClient]:
    transport = httpx.ASGITransport(app=gateway_app(node, "t"))
    async with AsyncClient("http://localhost", "t", transport=transport, session="Ä user") as client:
        yield client


async def test_a_deployment_is_made_changed_and_removed(client: AsyncClient) -> None:
    made = await client.deployments.create("digits", ONE, arms={"b": (TWO, "30%")}, max_replicas=3, regions=["eu"])
    assert [(arm.name, arm.share) for arm in made.arms] == [("stable", 0.7), ("b", 0.3)]
    assert (made.reference, made.max_replicas, made.regions) == ("deploy:digits", 3, ("eu",))
    assert [one.name for one in await client.deployments.ls()] == ["digits"]
    assert (await client.deployments.promote("digits")).arms[0].model == TWO
    assert (await client.deployments.rollback("deploy:digits")).arms[0].model == ONE
    changed = await client.deployments.update("digits", TWO, canary="10%", keep_warm_s=5)
    assert (changed.arms[1].name, changed.arms[1].share, changed.keep_warm_s) == ("canary", 0.1, 5)
    assert await client.deployments.show("digits") == changed
    await client.deployments.rm("digits")
    with pytest.raises(NotFound):
        await client.deployments.show("digits")


async def test_what_is_wrong_is_told(client: AsyncClient) -> None:
    await client.deployments.create("digits", ONE)
    with pytest.raises(LocalError):
        await client.deployments.create("digits", ONE)
    with pytest.raises(LocalError):
        await client.deployments.promote("digits")
    with pytest.raises(InvalidSpec):
        await client.deployments.create("other", ONE, min_replicas=3, max_replicas=2)
    with pytest.raises(InvalidSpec):
        await client.deployments.create("Upper", ONE)
    with pytest.raises(InvalidSpec):
        await client.deployments.update("digits", TWO, canary="ten")


async def test_openais_clients_see_deployments_as_models(node: AskedNode, client: AsyncClient) -> None:
    await client.deployments.create("digits", ONE)
    transport = httpx.ASGITransport(app=gateway_app(node, "t"))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        listed = (await http.get("/v1/models")).json()["data"]
        assert "deploy:digits" in [one["id"] for one in listed]
        assert (await http.get("/v1/models/deploy:digits")).json()["owned_by"] == "alice"
        assert (await http.get("/v1/models/deploy:other")).status_code == 404


async def test_the_answers_head_says_which_arm_it_was_and_the_request_says_for_whom(
    node: AskedNode, client: AsyncClient
) -> None:
    told = await client.predict("deploy:digits", [[1.0, 2.0]])
    assert (told.arm, told.cached) == ("canary", False)
    transport = httpx.ASGITransport(app=gateway_app(node, "t"))
    headers = {"Authorization": "Bearer t", "Cache-Control": "max-age=0, no-cache"}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as http:
        answer = await http.post("/api/v1/predict", json={"model": "deploy:digits", "inputs": [[1.0]]})
        assert answer.headers["x-celluler-arm"] == "canary"
        assert answer.headers["x-celluler-odd"] == "ab"
    said, fresh = node.callers
    assert (said.session, said.fresh, said.client) == ("said:%C3%84%20user", False, "")
    assert fresh.fresh
    assert fresh.session not in ("", said.session)


async def test_each_api_key_is_a_client_and_a_session(node: AskedNode, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key, text = new_key("web", ["infer"])
    write_keys(file, [key])
    transport = httpx.ASGITransport(app=gateway_app(node, "t", keys=KeyRing(file, a_minute=100)))
    headers = {"Authorization": f"Bearer {text}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as http:
        for _ in range(2):
            await http.post("/api/v1/predict", json={"model": "deploy:digits", "inputs": [[1.0]]})
    assert [one.client for one in node.callers] == [f"key:{key.id}"] * 2
    assert {one.session for one in node.callers} == {f"key:{key.id}"}


def test_a_session_is_what_is_said_before_all_else() -> None:
    one = read_caller({b"x-celluler-session": b"bob"}, "abc")
    one.name_session("carol")
    assert one.session == "said:bob"
    keyed = read_caller({}, "abc")
    assert keyed.session == "key:abc"
    with called_by(keyed):
        note_body({"user": "carol", "seed": 7})
    assert (keyed.session, keyed.client, keyed.seeded) == ("user:carol", "key:abc", True)
    drawn = read_caller({}, "")
    before = drawn.session
    for odd in (None, 7, "", "x" * 300):
        drawn.name_session(odd)
    assert drawn.session == before
    assert caller() is not caller()


def test_ports_are_asked_by_the_deployment_they_were_found_behind() -> None:
    ports = ModelPorts(ONE, "1.0.0", "bcid", None, ())
    assert ports.reference == "bcid"
    assert replace(ports, deployment="deploy:digits").reference == "deploy:digits"


async def test_the_kept_answers_are_told(node: AskedNode, client: AsyncClient) -> None:
    node.usage = AnswerCacheUsage(1000, 10, 1, 2, 3, 4)
    assert await client.deployments.cache() == node.usage


class BehindNode(ServingNode):
    """Has alice/digits and alice/texts behind deployments of these names. named: what was asked, and for whom."""

    def __init__(self) -> None:
        super().__init__()
        self.named: list[tuple[str, str]] = []

    async def model_ports(self, ref: str) -> ModelPorts:
        ports = await super().model_ports(ref.replace("deploy:", "alice/"))
        return replace(ports, deployment=ref) if ref.startswith("deploy:") else ports

    async def predict(self, ref: str, inputs: Tensor, output: str = "", *, peer: str = "") -> Prediction:
        if ref.startswith("deploy:"):
            self.named.append((ref, caller().session))
        return await super().predict(ref.replace("deploy:", "alice/"), inputs, output, peer=peer)


async def test_standard_clients_ask_the_deployment_and_not_what_was_behind_it() -> None:
    node = BehindNode()
    await node.publish()
    transport = httpx.ASGITransport(app=gateway_app(node, "t"))
    numbers = {"name": "input", "shape": [1, 2, 2], "datatype": "FP32", "data": [0, 1, 2, 3]}
    wanted = [{"name": "labels"}]
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        headers = {"X-Celluler-Session": "bob"}
        body = {"inputs": [numbers], "outputs": wanted}
        answer = await http.post("/v2/models/deploy:digits/infer", json=body, headers=headers)
        assert (answer.status_code, answer.json()["model_name"]) == (200, "deploy:digits")
        body = {"model": "deploy:texts", "input": ["a", "b"], "user": "carol"}
        assert (await http.post("/v1/embeddings", json=body)).status_code == 200
        assert (await http.get("/v2/models/deploy:digits/versions/1.0.0")).status_code == 400
    node.close()
    assert node.named == [("deploy:digits", "said:bob"), ("deploy:texts", "user:carol")]


async def test_prometheus_is_told_of_arms_and_kept_answers(node: AskedNode, client: AsyncClient) -> None:
    await client.deployments.create("digits", ONE, arms={"b": (TWO, "30%")})
    node.usage = AnswerCacheUsage(1000, 10, 1, 2, 3, 4)
    transport = httpx.ASGITransport(app=gateway_app(node, "t"))
    headers = {"Authorization": "Bearer t"}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as http:
        lines = (await http.get("/metrics")).text.splitlines()
    assert 'celluler_deployment_share{arm="b",deployment="digits"} 0.3' in lines
    assert 'celluler_answer_cache_asked_total{result="hit"} 2.0' in lines


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def deploy(node: AskedNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> object:
    @asynccontextmanager
    async def session() -> AsyncIterator[AsyncClient]:
        transport = httpx.ASGITransport(app=gateway_app(node, "t"), raise_app_exceptions=False)
        async with AsyncClient("http://localhost", "t", transport=transport) as client:
            yield client

    monkeypatch.setattr(deploy_commands, "open_session", session)
    monkeypatch.setattr("sys.stdin", io.StringIO())

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(["deploy", *arguments])
        return code, *capsys.readouterr()

    return call


def test_the_commands_do_what_they_say(deploy: object) -> None:
    assert callable(deploy)
    code, out, _ = deploy("create", "digits", ONE, "--arm", f"b={TWO}=25%", "--min", "2", "--json")
    made = json.loads(out)
    assert (code, made["schema"], made["max_replicas"]) == (0, "celluler/v1", 2)
    assert [arm["share"] for arm in made["arms"]] == [0.75, 0.25]
    assert deploy("promote", "deploy:digits")[0] == 0
    assert deploy("update", "digits", ONE, "--canary", "10%", "--keep-warm", "10m")[0] == 0
    code, out, _ = deploy("ls")
    assert [line.split("\t")[:3] for line in out.splitlines()] == [
        ["deploy:digits", "stable", "90%"],
        ["deploy:digits", "canary", "10%"],
    ]
    code, out, _ = deploy("show", "digits", "--compare")
    assert [line.split("\t")[0] for line in out.splitlines()] == ["stable", "canary"]
    assert json.loads(deploy("show", "digits", "--json")[1])["keep_warm_s"] == 600
    assert deploy("rollback", "digits")[0] == 0
    assert deploy("rm", "digits")[0] == 0
    assert deploy("show", "digits")[0] == 4


def test_wrong_use_is_told(deploy: object) -> None:
    assert callable(deploy)
    assert deploy("create", "digits", ONE, "--arm", "b=x")[0] == 2
    assert deploy("create", "digits", ONE, "--keep-warm", "soon")[0] == 2
