"""Models at work, as the endpoint, the clients, Prometheus and the command line show them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import httpx
import pytest

from celluler.client import AsyncClient
from celluler.errors import InvalidSpec, NotFound
from celluler_node.cli import serving_commands
from celluler_node.gateway.app import gateway_app
from celluler_node.gateway.in_process import open_in_process
from celluler_node.operations import Operations
from tests.support.operations import MemoryNode

TOKEN = "t" * 32


@pytest.fixture
def node() -> Iterator[MemoryNode]:
    made = MemoryNode()
    yield made
    made.close()


async def test_a_model_is_loaded_shown_and_unloaded(node: MemoryNode) -> None:
    async with (
        open_in_process(gateway_app(cast(Operations, node), TOKEN)) as transport,
        AsyncClient("http://localhost", TOKEN, transport=transport) as client,
    ):
        loaded = await client.models.load("alice/digits")
        assert (loaded.model, loaded.state, loaded.names) == ("alice/digits", "ready", ("alice/digits",))
        serving = await client.serving()
        assert serving.models == (loaded,)
        assert serving.batches.counts == (3, 1, 0)
        left = await client.models.unload("alice/digits")
        assert (left.models, left.memory_bytes) == ((), 0)
        with pytest.raises(NotFound):
            await client.models.unload("alice/digits")
        with pytest.raises(InvalidSpec):
            await client.models.load("no name")


async def test_prometheus_is_told_of_models_and_batches(node: MemoryNode) -> None:
    await node.load_model("alice/digits")
    async with (
        open_in_process(gateway_app(cast(Operations, node), TOKEN)) as transport,
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        text = (await client.get("/metrics")).text
    for line in (
        'celluler_models_loaded{state="ready"} 1.0',
        'celluler_model_waiting{model="alice/digits"} 2.0',
        'celluler_model_requests_total{model="alice/digits"} 100.0',
        "celluler_models_memory_bytes 4.194304e+08",
        'celluler_batch_samples_bucket{le="1.0"} 3.0',
        'celluler_batch_samples_bucket{le="2.0"} 4.0',
        'celluler_batch_samples_bucket{le="+Inf"} 4.0',
        "celluler_batch_samples_sum 5.0",
        "celluler_model_loads_failed_total 0.0",
    ):
        assert line in text


async def test_a_line_says_what_a_model_is_at(node: MemoryNode, monkeypatch: Any, capsys: Any) -> None:
    loaded = await node.load_model("alice/digits")
    row = serving_commands._row(loaded)
    assert row[:6] == ("alice/digits", "ready", "400.0 MiB", 1, 2, "8.0")
    assert row[6:8] == ("12.5 requests", "cpu float32")
    assert row[-1] == "always"
    assert len(row) == len(serving_commands.HEADINGS)
    assert json.dumps(serving_commands._facts(loaded))
