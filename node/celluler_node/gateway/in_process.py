"""An httpx transport that calls the endpoint in this process, with bodies that stream both ways.

What httpx brings for this purpose gathers the whole answer in memory: a content may be larger than that. Here a chunk
of the answer is handed over when the reader asks for the next one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import structlog
import trio
from starlette.types import ASGIApp

from celluler_protocols.nursery import own_nursery

log = structlog.get_logger()


@asynccontextmanager
async def open_in_process(app: ASGIApp) -> AsyncIterator[httpx.AsyncBaseTransport]:
    """Requests under way end with it."""
    async with own_nursery() as nursery:
        yield _InProcess(app, nursery)


class _InProcess(httpx.AsyncBaseTransport):
    def __init__(self, app: ASGIApp, nursery: trio.Nursery) -> None:
        self._app, self._nursery = app, nursery

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        exchange = _Exchange(request)
        self._nursery.start_soon(exchange.run, self._app)
        try:
            await exchange.begun.wait()
        except trio.Cancelled:
            await exchange.aclose()
            raise
        if exchange.status is None:
            raise httpx.ReadError("the endpoint gave no answer")
        return httpx.Response(exchange.status, headers=exchange.headers, stream=exchange)


class _Exchange(httpx.AsyncByteStream):
    """One request and its answer. `begun`: status and headers are there, or it ended without."""

    def __init__(self, request: httpx.Request) -> None:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        self._request, self._body = request, aiter(request.stream)
        self._send, self._chunks = trio.open_memory_channel[bytes](0)
        self._asked, self._closed, self._whole = False, trio.Event(), False
        self._scope = trio.CancelScope()
        self.begun = trio.Event()
        self.status: int | None = None
        self.headers: list[tuple[bytes, bytes]] = []

    async def run(self, app: ASGIApp) -> None:
        try:
            with self._scope:
                await app(_scope(self._request), self._receive, self._take)
        except Exception as error:  # the boundary of a request: its answer breaks off, and the application logged why
            log.debug("gateway.broke_off", path=self._request.url.path, error=repr(error))
        finally:
            self.begun.set()
            self._send.close()

    async def _receive(self) -> MutableMapping[str, Any]:
        if self._asked:
            await self._closed.wait()
            return {"type": "http.disconnect"}
        try:
            return {"type": "http.request", "body": await anext(self._body), "more_body": True}
        except StopAsyncIteration:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}

    async def _take(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message.get("headers", ()))
            self.begun.set()
        elif message["type"] == "http.response.body":
            self._whole = not message.get("more_body", False)
            try:
                if body := message.get("body"):
                    await self._send.send(bytes(body))
            except trio.BrokenResourceError:  # the reader has enough
                self._scope.cancel()
            if self._whole:
                self._send.close()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._chunks:
            yield chunk
        if not self._whole:
            raise httpx.ReadError("the endpoint broke off in its answer")

    async def aclose(self) -> None:
        """The reader has read everything, or wants no more. What the application does afterwards, it still does."""
        self._closed.set()
        self._chunks.close()
        if not self._whole:
            self._scope.cancel()


def _scope(request: httpx.Request) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "scheme": request.url.scheme,
        "path": request.url.path,
        "raw_path": request.url.raw_path.partition(b"?")[0],
        "query_string": request.url.query,
        "server": (request.url.host, request.url.port),
        "client": ("127.0.0.1", 0),
        "root_path": "",
    }
