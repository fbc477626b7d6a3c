"""The gateway on a real socket: both clients against anycorn, bad bytes, and an end that leaves no port open."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from celluler.client import AsyncClient, Client
from celluler.errors import LocalError, NodeNotRunning
from celluler.home import NodeFile, write_node_file
from celluler.jobs.states import JobState
from celluler.views import NewModel
from celluler_node.gateway.app import gateway_app
from celluler_node.gateway.server import TlsFiles, serve_gateway
from tests.support.jobs import ALICE, JOB_YAML
from tests.support.operations import MemoryNode
from tests.support.serving_node import ServingNode
from tests.support.writing import TALE

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
async def node() -> AsyncIterator[MemoryNode]:
    node = MemoryNode()
    yield node
    node.close()


@pytest.fixture
async def port(node: MemoryNode, nursery: trio.Nursery) -> int:
    return int(await nursery.start(serve_gateway, gateway_app(node, "t"), "127.0.0.1", 0))


async def test_the_synchronous_client_does_what_the_other_does(node: MemoryNode, port: int, tmp_path: Path) -> None:
    write_node_file(tmp_path, NodeFile(os.getpid(), f"http://127.0.0.1:{port}", "t", ALICE.peer_id, (), 0.0))
    (tmp_path / "in").write_bytes(os.urandom(5 << 20))

    def use() -> None:
        with Client(home=tmp_path) as client:
            assert client.status().nickname == "alice"
            blob = client.blobs.add(tmp_path / "in")
            assert client.blobs.get(blob.cid, tmp_path / "out") == 5 << 20
            assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()
            client.models.add("alice/d:1.0.0", {"layers": []})
            assert client.predict("alice/d", [[1, 2]]).outputs.lists() == [[2.0, 4.0]]
            job = client.jobs.submit(JOB_YAML)
            trio.from_thread.run_sync(node.move, job.id, JobState.FAILED, "no")
            assert [line.state for line in job.logs(follow=True)] == ["Pending", "Failed"]
            assert job.wait(5).reason == "no"
            client.shutdown()

    with trio.fail_after(20):
        await trio.to_thread.run_sync(use)
        await node.ended.wait()


async def test_a_follower_hears_of_a_change_when_it_happens(node: MemoryNode, port: int) -> None:
    async with AsyncClient(f"http://127.0.0.1:{port}", "t") as client:
        job, seen = await client.jobs.submit(JOB_YAML), []

        async def follow() -> None:
            seen.extend([line async for line in job.logs(follow=True)])

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(follow)
                await node.polled_twice.wait()
                node.move(job.id, JobState.CANCELLED, "as asked")
    assert [line.state for line in seen] == ["Pending", "Cancelled"]


@pytest.mark.parametrize(
    "sent",
    [
        b"\xff\x00\n" * 2000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /api/v1/status HTTP/1.1\r\nHost: evil.example\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\nx",
        b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
async def test_bad_bytes_are_survived(port: int, sent: bytes) -> None:
    with trio.fail_after(10):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        answer = b""
        async with stream:
            try:
                await stream.send_all(sent)
                await stream.send_eof()
                while chunk := await stream.receive_some():
                    answer += chunk
            except trio.BrokenResourceError:
                pass
        assert b" 200 " not in answer
        async with AsyncClient(f"http://127.0.0.1:{port}", "t") as client:
            assert (await client.status()).nickname == "alice"


async def test_a_taken_port_is_told_with_what_to_do(node: MemoryNode, port: int) -> None:
    with pytest.raises(LocalError, match=f"127.0.0.1:{port}") as raised:
        await serve_gateway(gateway_app(node, "t"), "127.0.0.1", port)
    assert "--api-port 0" in (raised.value.hint or "")


async def test_nothing_listens_after_the_end(node: MemoryNode) -> None:
    async with trio.open_nursery() as nursery:
        port = int(await nursery.start(partial(serve_gateway, gateway_app(node, "t"), "127.0.0.1", 0)))
        async with AsyncClient(f"http://127.0.0.1:{port}", "t") as client:
            await client.status()
            nursery.cancel_scope.cancel()
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 2):
        pass
    async with AsyncClient(f"http://127.0.0.1:{port}", "t") as client:
        with pytest.raises(NodeNotRunning):
            await client.status()


async def test_with_a_certificate_others_speak_tls_and_this_machine_need_not(
    node: MemoryNode, nursery: trio.Nursery, tmp_path: Path
) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    await trio.to_thread.run_sync(_self_signed, certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as free:
        public = free.getsockname()[1]
    serve = partial(serve_gateway, gateway_app(node, "t"), "127.0.0.1", public, tls=TlsFiles(certificate, key))
    local = int(await nursery.start(serve))
    trusting = await trio.to_thread.run_sync(partial(ssl.create_default_context, cafile=str(certificate)))
    with trio.fail_after(10):
        async with AsyncClient(f"http://127.0.0.1:{local}", "t") as client:
            assert (await client.status()).nickname == "alice"
        async with httpx.AsyncClient(verify=trusting, trust_env=False) as http:
            assert (await http.get(f"https://localhost:{public}/healthz")).text == "ok\n"
            with pytest.raises(httpx.TransportError):
                await http.get(f"http://localhost:{public}/healthz")


def _self_signed(certificate: Path, key: Path) -> None:
    secret, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(secret, hashes.SHA256())
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key.write_bytes(secret.private_bytes(serialization.Encoding.PEM, form, plain))


@pytest.fixture
async def tales(nursery: trio.Nursery) -> AsyncIterator[tuple[ServingNode, str]]:
    """A node whose model writes, and its address."""
    node = ServingNode()
    await node.publish()
    port = await nursery.start(serve_gateway, gateway_app(node, "t"), "127.0.0.1", 0)
    yield node, f"http://127.0.0.1:{port}"
    node.close()


async def test_words_cross_a_socket_as_they_are_written_and_who_hangs_up_hears_no_more(
    tales: tuple[ServingNode, str],
) -> None:
    node, url = tales
    node.writer.pause_after = 6
    asked = {"model": "alice/tales", "prompt": "a", "temperature": 0, "stream": True, "max_tokens": None}
    with trio.fail_after(10):
        async with httpx.AsyncClient(trust_env=False) as http:
            for hangs_up in (True, False):
                node.writer.paused = trio.Event()
                async with http.stream("POST", f"{url}/v1/completions", json=asked) as answer:
                    lines = answer.aiter_lines()
                    first = json.loads((await anext(lines)).removeprefix("data: "))
                    assert first["choices"][0]["text"] == TALE[0]
                    await node.writer.paused.wait()
                    if not hangs_up:
                        node.writer.gate.set()
                        assert [line async for line in lines if line][-1] == "data: [DONE]"
                while node.writer.left != 1:
                    await trio.testing.wait_all_tasks_blocked(0.01)
    assert len(node.writer.questions) == 2


async def test_the_curl_lines_of_the_readme_run_as_they_are_written(tales: tuple[ServingNode, str]) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    node, url = tales
    await node.add_model(NewModel("alice/smollm2:1.0.0", {}))
    lines = re.findall(r"^curl .+$", README.read_text("utf-8"), re.MULTILINE)
    told = []
    for line in lines:
        command = [*shlex.split(line.replace("http://127.0.0.1:8787", url), comments=True), "--fail", "--max-time", "9"]
        told.append((await trio.run_process(command, capture_stdout=True)).stdout.decode())
    assert len(lines) >= 2
    assert any("alice/smollm2:1.0.0" in text for text in told)
    assert any(text.endswith("data: [DONE]\n\n") for text in told)
