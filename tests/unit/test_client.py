"""The clients: what they send, what they give back, and that both are alike."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import trio
import trio.testing

from celluler.client import AsyncClient, Client, asynchronous, synchronous
from celluler.errors import (
    Denied,
    InvalidSpec,
    LocalError,
    NodeNotRunning,
    NotFound,
    ProtocolViolation,
    TimedOut,
    Unavailable,
    WorkerFailed,
)
from celluler.home import NodeFile, read_node_file, remove_node_file, write_node_file
from celluler.jobs.states import JobState
from celluler.jobs.telemetry import Amount, RoundFigures
from celluler.tensors import tensor_of
from celluler.views import DamagedContent, JobChange, ModelQuery, Transfer, TransferSource
from celluler_node.gateway.app import gateway_app
from tests.support.jobs import ALICE, BOB, JOB_YAML
from tests.support.operations import MemoryNode


@pytest.fixture
async def node() -> AsyncIterator[MemoryNode]:
    node = MemoryNode()
    yield node
    node.close()


@pytest.fixture
async def client(node: MemoryNode) -> AsyncIterator[AsyncClient]:
    transport = httpx.ASGITransport(app=gateway_app(node, "t"))
    async with AsyncClient("http://localhost", "t", transport=transport) as client:
        yield client


async def test_status_and_peers_are_records(client: AsyncClient) -> None:
    assert (await client.status()).hardware.cores == 2
    alice, bob = await client.peers.ls()
    assert (alice.status, bob.round_trip_s) == ("self", 0.0021)
    assert (await client.peers.show("bob")).peer_id == bob.peer_id
    assert (await client.peers.ping("bob")).round_trip_s == 0.002
    assert [check.ok for check in await client.doctor()] == [True, False]
    assert (await client.violations())[0].banned


async def test_content_goes_in_and_comes_out(client: AsyncClient, tmp_path: Path) -> None:
    source, target = trio.Path(tmp_path, "in"), trio.Path(tmp_path, "out")
    await source.write_bytes(os.urandom(3 << 20))
    blob = await client.blobs.add(tmp_path / "in", kind="dataset")
    assert (blob.kind, blob.total_bytes) == ("dataset", 3 << 20)
    assert await client.blobs.get(blob.cid, tmp_path / "out") == 3 << 20
    assert await target.read_bytes() == await source.read_bytes()
    assert await client.blobs.stat(blob.cid) == blob


async def test_a_model_is_added_with_its_weights_and_predicts(client: AsyncClient, tmp_path: Path) -> None:
    await trio.Path(tmp_path, "w.safetensors").write_bytes(b"weights")
    added = await client.models.add("alice/d:1.0.0", {"layers": []}, weights=tmp_path / "w.safetensors", labels=["a"])
    assert (await client.blobs.stat(added.weights)).kind == "model"
    assert (await client.models.show("alice/d")).spec == {"layers": []}
    assert [model.reference for model in await client.models.ls()] == ["alice/d:1.0.0"]
    assert (await client.models.pull(added.cid)).local
    from_lists = await client.predict("alice/d", [[1, 2], [3, 4]])
    assert from_lists.outputs.lists() == [[2.0, 4.0], [6.0, 8.0]]
    from_numpy = await client.predict("alice/d", np.array([[1, 2], [3, 4]], dtype=np.float64))
    assert from_numpy.outputs.dtype == "float32"
    assert from_numpy.outputs.numpy().tolist() == from_lists.outputs.lists()
    sampled = await client.predict("alice/d", [1, 2], output="sample")
    assert (sampled.outputs.dtype, sampled.outputs.lists()) == ("int64", [3, 6])


async def test_an_embedding_is_a_prediction_of_that_name(client: AsyncClient) -> None:
    await client.models.add("alice/d:1.0.0", "{}")
    told = await client.embed("alice/d", [[1, 2]])
    assert (told.output, told.lists()) == ("embedding", [[2.0, 4.0]])


async def test_texts_go_in_and_come_out(client: AsyncClient) -> None:
    before = {"transforms": 1, "steps": []}
    assert (await client.models.add("alice/d:1.0.0", "{}", preprocess=before)).preprocess == before
    told = await client.predict("alice/d", ["käse", "a", ""], output="echo")
    assert (told.lists(), told.outputs.shape, told.outputs.dtype) == (["käse", "a", ""], (3, 5), "uint8")
    assert (await client.predict("alice/d", "one", output="echo")).lists() == ["one"]
    for wrong in (["a", 1], ["a\0"], ["\ud800"]):
        with pytest.raises(InvalidSpec, match=r"inputs\[\d\]"):
            await client.predict("alice/d", wrong)
    with pytest.raises(InvalidSpec, match="no text"):
        tensor_of([1.0]).texts()


async def test_what_a_name_means_is_changed_and_told(client: AsyncClient, tmp_path: Path) -> None:
    await trio.Path(tmp_path, "card.md").write_text("# Digits")
    models = client.models
    said = await models.add("alice/d:1.0.0", "{}", card=tmp_path / "card.md", tags=("a",), copies=4, aliases=["stable"])
    assert (said.tags, said.copies, await models.card("alice/d")) == (("a",), 4, "# Digits")
    await models.add("alice/d:1.1.0", "{}", licence="MIT", description="digits of 8x8")
    assert [version.aliases for version in (await models.versions("alice/d")).versions] == [(), ("stable",)]
    assert (await models.alias("alice/d:1.1.0", "stable")).versions[0].aliases == ("stable",)
    assert (await models.drop_alias("alice/d@stable")).versions[0].aliases == ()
    assert (await models.rollback("alice/d:1.0.0")).versions[1].current
    assert (await models.retract("alice/d:1.1.0", "wrong")).versions[0].retracted == "wrong"
    assert (await models.log("alice/d")).entries[0].note == "wrong"
    assert (await models.diff("alice/d:1.0.0", "alice/d:1.1.0")).tensors[1].new == (4,)
    assert (await models.lineage("alice/d")).nodes[1].kind == "dataset"
    assert not (await models.verify("alice/d:1.1.0")).ok
    assert [model.version for model in await models.search("8x8")] == ["1.1.0"]
    assert [model.version for model in await models.ls(ModelQuery(tag="a", local=True))] == ["1.0.0"]
    assert (await models.pull("alice/d:1.0.0", layers="0:2")).local
    assert (await models.rm("alice/d:1.1.0")).freed_bytes == 40
    for wrong in ("..", "alice/..", "alice//d", ""):
        with pytest.raises(InvalidSpec):
            await models.show(wrong)
    await trio.Path(tmp_path, "card.md").write_bytes(bytes(257 << 10))
    with pytest.raises(LocalError, match="larger"):
        await models.add("alice/d:2.0.0", "{}", card=tmp_path / "card.md")


async def test_a_dataset_goes_in_with_its_file(client: AsyncClient, node: MemoryNode, tmp_path: Path) -> None:
    await trio.Path(tmp_path, "d.parquet").write_bytes(b"rows")
    added = await client.datasets.add("alice/digits:1.0.0", tmp_path / "d.parquet", label="digit")
    assert (await client.blobs.stat(added.content)).kind == "dataset"
    assert await client.datasets.show("alice/digits") == added == await client.datasets.pull(added.cid)
    assert [(one.reference, one.columns) for one in await client.datasets.ls()] == [("alice/digits:1.0.0", ())]


async def test_the_store_is_looked_after(client: AsyncClient, node: MemoryNode, tmp_path: Path) -> None:
    await trio.Path(tmp_path, "in").write_bytes(b"bytes")
    cid = (await client.blobs.add(tmp_path / "in")).cid
    assert (await client.blobs.gc()).contents == ()
    assert not (await client.unpin(cid)).pinned
    assert (await client.blobs.gc(dry_run=True)).freed_bytes == 5
    assert (await client.pin(cid)).pinned
    node.damaged = (DamagedContent(cid, "blob", 1, 5),)
    assert not (await client.check_store()).ok
    assert (await client.check_store(repair=True)).ok
    node.moving = (Transfer(cid, "alice/d", 1.0, 2, 5, 1.5, None, (TransferSource("p", 2, 1.5, "bulk"),)),)
    assert await client.transfers() == node.moving


async def test_a_file_bears_its_name_once_it_is_whole(tmp_path: Path) -> None:
    class Broken(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"half"
            raise httpx.ReadError("gone")

    transport = httpx.MockTransport(lambda _request: httpx.Response(200, stream=Broken()))
    await trio.Path(tmp_path, "out").write_text("what was there")
    async with AsyncClient("http://localhost", "t", transport=transport) as client:
        with pytest.raises(Unavailable, match="broke off"):
            await client.blobs.get("b1", tmp_path / "out")
        with pytest.raises(LocalError, match="No such file"):
            await client.blobs.get("b1", tmp_path / "absent" / "out")
    assert [path.name for path in await trio.Path(tmp_path).iterdir()] == ["out"]
    assert await trio.Path(tmp_path, "out").read_text() == "what was there"


async def test_errors_come_back_as_they_were(client: AsyncClient, tmp_path: Path) -> None:
    with pytest.raises(NotFound) as missing:
        await client.models.show("alice/none")
    assert (missing.value.what, missing.value.hint) == ("model alice/none", "celluler model ls")
    with pytest.raises(InvalidSpec) as invalid:
        await client.jobs.submit(JOB_YAML.replace("rounds", "round"))
    assert invalid.value.path == "train.round"
    with pytest.raises(NotFound):
        await client.blobs.get((await client.models.add("alice/d:1.0.0", "{}")).cid, tmp_path / "out")
    assert not await trio.Path(tmp_path, "out").exists()
    for wrong in ("", "..", "."):
        with pytest.raises(LocalError):
            await client.peers.show(wrong)
    with pytest.raises(LocalError, match="no file"):
        await client.blobs.add(tmp_path / "absent")


async def test_a_job_is_followed_to_its_end(client: AsyncClient, node: MemoryNode, tmp_path: Path) -> None:
    await trio.Path(tmp_path, "job.yaml").write_text(JOB_YAML)
    job = await client.jobs.submit(tmp_path / "job.yaml", client_id="mine", attachments=["b1"])
    again = await client.jobs.submit(JOB_YAML, client_id="mine")
    assert (again.id, node.attachments) == (job.id, ("b1",))
    with pytest.raises(LocalError, match="no results"):
        await job.results()
    seen = []

    async def follow() -> None:
        seen.extend([line async for line in (await client.jobs.get(job.id[-8:])).logs(follow=True)])

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            for state in (JobState.FETCHING, JobState.RUNNING):
                node.move(job.id, state)
            node.measure(job.id, round=1, loss=0.5)
            nursery.start_soon(job.wait, 4)
            await trio.testing.wait_all_tasks_blocked(0.01)
            node.move(job.id, JobState.VERIFYING)
            node.move(job.id, JobState.SUCCEEDED)
    states = [line.state for line in seen]
    assert states == ["Pending", "Fetching", "Running", "Running", "Verifying", "Succeeded"]
    assert [line.cursor for line in seen] == [1, 2, 3, 4, 5, 6]
    assert job.info.state == "Succeeded"
    assert (await job.results()).metrics == {"round": 1.0, "loss": 0.5}
    assert [line.cursor async for line in job.logs(since=4)] == [5, 6]
    assert len(await client.jobs.ls()) == 1


async def test_a_failed_job_raises_with_its_reason_when_its_results_are_wanted(
    client: AsyncClient, node: MemoryNode
) -> None:
    job = await client.jobs.submit(JOB_YAML)
    node.move(job.id, JobState.FAILED, "the worker was killed")
    assert (await job.wait(1)).state == "Failed"
    with pytest.raises(WorkerFailed, match="the worker was killed"):
        await job.results()


async def test_waiting_ends_in_time_and_does_not_spin(client: AsyncClient, node: MemoryNode) -> None:
    job = await client.jobs.submit(JOB_YAML)
    with pytest.raises(TimedOut, match="still Pending"):
        await job.wait(0.05)
    assert node.polls <= 3
    assert (await job.cancel()).state == "Cancelled"


async def test_a_training_tells_its_rounds_by_the_names_of_peers(client: AsyncClient, node: MemoryNode) -> None:
    job = await client.jobs.submit(JOB_YAML)
    node.told[job.id] = replace(node.told[job.id], members=(ALICE.peer_id, BOB.peer_id))
    node.move(job.id, JobState.FETCHING)
    node.move(job.id, JobState.RUNNING)
    node.measure(job.id, round=1, views=1, loss=2.0)  # a node that tells figures alone
    told = RoundFigures(2, 1, 0.5, (0, 1), absent=(2,), norms=(Amount(1, 3.0),), loss=1.0)
    node.measure(job.id, told, round=2, loss=1.0)
    first, second = await job.rounds()
    assert (first.round, first.loss, first.seconds, first.contributed) == (1, 2.0, 1.0, ())
    assert second.contributed == (ALICE.peer_id, BOB.peer_id)
    assert (second.absent, dict(second.norms)) == (("member 2",), {BOB.peer_id: 3.0})


async def test_an_invited_peer_joins(client: AsyncClient, node: MemoryNode) -> None:
    job = await client.jobs.submit(JOB_YAML)
    invite = await job.invite(BOB.peer_id, for_s=60)
    assert (invite.job, invite.peer) == (job.id, BOB.peer_id)
    assert (await client.jobs.join(invite.invite)).id == job.id
    with pytest.raises(InvalidSpec, match="no peer id"):
        await job.invite("bob")
    with pytest.raises(Denied, match="is for"):
        await client.jobs.join((await job.invite(ALICE.peer_id)).invite)


async def test_a_training_is_stopped_at_a_checkpoint_and_changed_as_it_goes(
    client: AsyncClient, node: MemoryNode
) -> None:
    job = await client.jobs.submit(JOB_YAML)
    assert (await job.spec())["policy"]["deadline"] == 7200
    await job.update(max_peers=5, priority=0)
    assert node.changes == [JobChange(None, 0, 5)]
    with pytest.raises(InvalidSpec, match="nothing to change"):
        await job.update()
    node.move(job.id, JobState.FETCHING)
    node.move(job.id, JobState.RUNNING)
    node.measure(job.id, round=7)
    assert (await job.checkpoint()).rounds == 7
    assert (await job.stop()).model == "alice/digits-checkpoint:2.0.0-round.7"
    assert job.info.state == "Cancelled"
    with pytest.raises(LocalError, match="has ended"):
        await job.stop()


async def test_an_answer_of_somebody_else_is_a_violation() -> None:
    for body in (b"<html>", b"{}", b"[1]", b'{"schema": "celluler/v1"}'):

        def answer(_request: httpx.Request, body: bytes = body) -> httpx.Response:
            return httpx.Response(200, content=body)

        async with AsyncClient("http://localhost", "t", transport=httpx.MockTransport(answer)) as client:
            with pytest.raises(ProtocolViolation):
                await client.status()


def test_both_clients_have_one_shape() -> None:
    for name in ("Client", "Peers", "Blobs", "Models", "Datasets", "Jobs", "Job"):
        ours, theirs = getattr(synchronous, name), getattr(asynchronous, f"Async{name}")
        for method, function in inspect.getmembers(theirs, inspect.isfunction):
            twin = getattr(ours, {"aclose": "close", "__aenter__": "__enter__", "__aexit__": "__exit__"}.get(method, method))  # fmt: skip  # noqa: E501
            assert list(inspect.signature(twin).parameters) == list(inspect.signature(function).parameters), method
            if method not in ("__init__", "aclose"):
                assert inspect.getdoc(twin) == inspect.getdoc(function), method


def test_the_local_node_is_found_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLULER_HOME", str(tmp_path))
    with pytest.raises(NodeNotRunning) as absent:
        Client()
    assert absent.value.hint == "celluler up"
    node = NodeFile(os.getpid(), "http://127.0.0.1:1", "secret", ALICE.peer_id, (), 0.0)
    write_node_file(tmp_path, node)
    assert read_node_file(tmp_path) == node
    assert (tmp_path / "node.json").stat().st_mode & 0o777 == 0o600
    with Client() as client, pytest.raises(NodeNotRunning, match="no node answers"):
        client.status()
    write_node_file(tmp_path, NodeFile(2**22 + 1, "http://127.0.0.1:1", "secret", ALICE.peer_id, (), 0.0))
    with pytest.raises(NodeNotRunning, match="has ended"):
        Client()
    remove_node_file(tmp_path)
    with pytest.raises(LocalError, match="needs a token"):
        Client("http://127.0.0.1:1")


def test_importing_celluler_stays_light() -> None:
    script = (
        "import sys, json, celluler, celluler.wire, celluler.views;"
        "before = sorted(sys.modules); from celluler import Client;"
        "print(json.dumps([before, sorted(sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, timeout=30)
    before, after = (set(modules) for modules in json.loads(done.stdout))
    heavy = {"httpx", "torch", "libp2p", "hivemind", "numpy", "pydantic", "trio", "yaml"}
    assert not heavy & before
    assert heavy & after == {"httpx"}
