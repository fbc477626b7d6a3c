"""From a request's head to whom it is answered for, and from how it was answered to the head of the answer.

A session is what `X-Celluler-Session` says, else what the body's `user` says, else the API key, else drawn anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from celluler.inference.deployments import MAX_SESSION_BYTES
from celluler_node.callers import Caller, called_by, caller
from celluler_node.gateway.guard import KEY_ID

SESSION = b"x-celluler-session"
_STALE = (b"no-cache", b"no-store")
_PLAIN = frozenset(map(chr, range(33, 127)))


class Callers:
    """ASGI middleware, inside the guard."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        one = read_caller(dict(scope["headers"]), scope.get(KEY_ID, ""))

        async def telling(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_headers(one.told)]}
            await send(message)

        with called_by(one):
            await self._app(scope, receive, telling)


def read_caller(headers: Mapping[bytes, bytes], key: str) -> Caller:
    """key: the id of an API key, empty for none."""
    session = headers.get(SESSION, b"")[:MAX_SESSION_BYTES].decode("latin-1")
    stale = headers.get(b"cache-control", b"").lower()
    return Caller(
        client=f"key:{key}" if key else "",
        session=f"said:{session}" if session else "",
        fresh=any(word in stale for word in _STALE),
    )


def note_body(body: Mapping[str, Any]) -> None:
    """What the body of a standard client says of who asks, and whether it chose how answers are drawn."""
    one = caller()
    one.name_session(body.get("user"))
    one.seeded = isinstance(body.get("seed"), int)


def _headers(told: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Plain ASCII alone, which is all that names of arms and models are made of."""
    return [
        (f"x-celluler-{name}".encode(), "".join(char for char in value if char in _PLAIN)[:256].encode())
        for name, value in told.items()
    ]
