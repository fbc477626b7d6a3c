"""A node in memory and its endpoint, as most tests of the HTTP surfaces want them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from celluler_node.gateway.app import gateway_app
from tests.support.serving_node import ServingNode


@pytest.fixture
async def node() -> AsyncIterator[ServingNode]:
    node = ServingNode()
    await node.publish()
    yield node
    node.close()


@pytest.fixture
async def http(node: ServingNode) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=gateway_app(node, "t"), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8787") as http:
        yield http
