"""A node in memory, its endpoint and its command line, as most tests of these surfaces want them."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
import trio

from celluler.client import AsyncClient
from celluler_node.cli import bench_command, chat_command, run_command
from celluler_node.cli.root import run
from celluler_node.gateway.app import gateway_app
from tests.support.gateways import TOKEN, open_client
from tests.support.serving_node import ServingNode

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
async def node() -> AsyncIterator[ServingNode]:
    node = ServingNode()
    await node.publish()
    yield node
    node.close()


@pytest.fixture
async def http(node: ServingNode) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=gateway_app(node, TOKEN), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8787") as http:
        yield http


@pytest.fixture
def tales() -> Iterator[ServingNode]:
    """`node`, for tests that are not asynchronous."""
    node = ServingNode()
    trio.run(node.publish)
    yield node
    node.close()


@pytest.fixture
def celluler(tales: ServingNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process against `tales`: (exit code, stdout, stderr)."""

    @asynccontextmanager
    async def session(join: list[str] = []) -> AsyncIterator[AsyncClient]:  # noqa: B006
        async with open_client(tales) as client:
            yield client

    for module in (bench_command, chat_command, run_command):
        monkeypatch.setattr(module, "open_session", session)

    def call(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        code = run(list(arguments))
        told = capsys.readouterr()
        return code, told.out, told.err

    return call
