"""Who may talk to the endpoint. Applied to every request, before any route.

The Host header must bear a name of this machine: a web page that points its own domain at 127.0.0.1 (DNS rebinding)
cannot choose that header. Whatever is under /api/ needs the token from node.json, too.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from celluler.errors import Denied
from celluler_node.gateway.documents import failure

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


class Guard:
    """ASGI middleware. allowed_hosts: names besides loopback, lower-case, without port."""

    def __init__(self, app: ASGIApp, token: str, allowed_hosts: Iterable[str]) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()
        self._hosts = frozenset((*LOOPBACK_NAMES, *allowed_hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # no websockets here
        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            status, error = refusal
            await failure(error, status=status)(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, Denied] | None:
        headers = dict(scope["headers"])
        if _host_name(headers.get(b"host", b"")) not in self._hosts:
            return 403, Denied("the Host header names another machine", hint="set api.allowed_hosts")
        given = headers.get(b"authorization", b"")
        if scope["path"].startswith("/api/") and not hmac.compare_digest(given, self._expected):
            return 401, Denied("no or wrong token", hint="send Authorization: Bearer <token of node.json>")
        return None


def _host_name(header: bytes) -> str:
    """`localhost:8787` → `localhost`, `[::1]:8787` → `::1`; an unreadable header names nobody."""
    try:
        text = header.decode("ascii").lower()
    except UnicodeDecodeError:
        return ""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]
