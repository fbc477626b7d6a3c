"""Server-sent events: documents of one answer as they come. Source: WHATWG HTML, "Server-sent events"."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

import trio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from celluler.errors import CellulerError, TimedOut
from celluler_node.gateway.asking import while_wanted
from celluler_node.gateway.counted import ERROR_KIND
from celluler_node.gateway.failures import kind_of
from celluler_protocols.nursery import own_nursery

DONE = b"data: [DONE]\n\n"
STILL_HERE = b": still here\n\n"
"""A comment, which readers skip."""
SILENCE_S = 15.0
"""What stands between often takes a connection for dead on which nothing passes for a minute."""
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Whatever stands between is to hand each event on at once."""

Tell = Callable[[Iterable[Any]], Awaitable[None]]
"""Sends documents. The first call begins the answer: what is raised before it is answered with a status of its own."""


def event_of(document: Any) -> bytes:
    """One event. In ASCII: some readers take other characters for ends of lines."""
    return b"data: " + json.dumps(document, separators=(",", ":")).encode("ascii") + b"\n\n"


class EventStream(Response):
    """work: tells the documents. failed: the last document, of an error after the first. limit_s: until all is read;
    who reads more slowly is broken off."""

    media_type = "text/event-stream"

    def __init__(
        self,
        request: Request,
        work: Callable[[Tell], Awaitable[object]],
        *,
        failed: Callable[[CellulerError], Any],
        limit_s: float,
    ) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._request, self._work, self._failed, self._limit_s = request, work, failed, limit_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = _Sending(send, self.status_code, self.raw_headers)
        with trio.move_on_after(self._limit_s) as limit:
            try:
                await while_wanted(self._request, partial(self._run, sending))
                await sending.end(DONE)
            except HTTPException:  # the client has gone
                if not sending.begun:
                    raise
            except CellulerError as error:
                if not sending.begun:
                    raise
                scope[ERROR_KIND] = kind_of(error)
                await sending.end(event_of(self._failed(error)))
        if limit.cancelled_caught and not sending.begun:
            raise TimedOut("nothing was answered in time")

    async def _run(self, sending: _Sending) -> None:
        async with own_nursery() as nursery:
            nursery.start_soon(sending.keep_alive)
            try:
                await self._work(sending.tell)
            finally:
                await sending.quiet()


class _Sending:
    """Several tasks may tell: their documents go one after the other."""

    def __init__(self, send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._send, self._status, self._headers = send, status, headers
        self._turn = trio.Lock()
        self._last_s = trio.current_time()
        self.begun, self._over = False, False

    async def tell(self, documents: Iterable[Any]) -> None:
        body = b"".join(event_of(document) for document in documents)
        async with self._turn:
            await self._begin()
            if body:
                await self._send({"type": "http.response.body", "body": body, "more_body": True})
            self._last_s = trio.current_time()

    async def quiet(self) -> None:
        """No comment is on its way any more, nor will one be: whoever ends the task that makes them cuts none off."""
        async with self._turn:
            self._over = True

    async def keep_alive(self) -> None:
        """A comment once in a while, where nothing else is told."""
        while not self._over:
            await trio.sleep_until(self._last_s + SILENCE_S)
            async with self._turn:
                if self._over or trio.current_time() < self._last_s + SILENCE_S:
                    continue
                if self.begun:
                    await self._send({"type": "http.response.body", "body": STILL_HERE, "more_body": True})
                self._last_s = trio.current_time()

    async def end(self, last: bytes) -> None:
        await self._begin()
        await self._send({"type": "http.response.body", "body": last, "more_body": False})

    async def _begin(self) -> None:
        if not self.begun:
            self.begun = True
            await self._send({"type": "http.response.start", "status": self._status, "headers": self._headers})
