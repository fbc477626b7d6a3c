"""A client of a node in memory, through its endpoint, with answers that come piece by piece."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from celluler.client import AsyncClient
from celluler_node.gateway.app import gateway_app
from celluler_node.gateway.in_process import open_in_process
from celluler_node.operations import Operations

TOKEN = "t"


@asynccontextmanager
async def open_client(node: Operations) -> AsyncIterator[AsyncClient]:
    async with (
        open_in_process(gateway_app(node, TOKEN)) as transport,
        AsyncClient("http://localhost", TOKEN, transport=transport) as client,
    ):
        yield client
