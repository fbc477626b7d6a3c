"""Who may talk to the endpoint. Applied to every request, before any route.

The Host header must bear a name of this machine: a web page that points its own domain at 127.0.0.1 (DNS rebinding)
cannot choose that header. Whatever is under /api/ needs the token from node.json, or an API key whose scope says so.
What the standard clients ask needs a key unless it comes from this machine itself; health says nothing worth one.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from celluler.errors import Busy, CellulerError, Denied
from celluler_node.gateway.counted import ERROR_KIND
from celluler_node.gateway.failures import failure_at, kind_of
from celluler_node.gateway.keys import KeyRing, Scope

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/openapi.json"})
"""For whoever watches the node, and a description that is the same for every node."""
KEY_ID = "celluler.key"
"""Where a request's scope says which API key opened it."""
_FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-real-ip")
_INFERS = "/api/v1/predict"


class Guard:
    """ASGI middleware. allowed_hosts: names besides loopback, lower-case, without port. keys: None where there are
    none. always: a key is needed from this machine, too."""

    def __init__(
        self, app: ASGIApp, token: str, allowed_hosts: Iterable[str], keys: KeyRing | None = None, always: bool = False
    ) -> None:
        self._app = app
        self._token, self._keys, self._always = token.encode(), keys, always
        self._hosts = frozenset((*LOOPBACK_NAMES, *allowed_hosts))

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # no websockets here
        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            status, error, retry_s = refusal
            scope[ERROR_KIND] = kind_of(error)
            answer = failure_at(scope["path"], error, status=status, retry_s=retry_s)
            if status == 401:
                answer.headers["WWW-Authenticate"] = "Bearer"
            await answer(scope, receive, send)

    def _refusal(self, scope: AsgiScope) -> tuple[int, CellulerError, float | None] | None:
        headers = dict(scope["headers"])
        if _host_name(headers.get(b"host", b"")) not in self._hosts:
            return 403, Denied("the Host header names another machine", hint="set api.allowed_hosts"), None
        path: str = scope["path"]
        if path in OPEN_PATHS:
            return None
        given = _bearer(headers)
        if hmac.compare_digest(given, self._token):
            return None
        if not path.startswith("/api/") and not self._always and _is_local(scope, headers):
            return self._page_refusal(headers)
        return self._key_refusal(scope, given, needed_scope(scope["method"], path))

    def _page_refusal(self, headers: Mapping[bytes, bytes]) -> tuple[int, CellulerError, None] | None:
        """Nobody needs a key here, and a browser sends what any page tells it to: the page's own origin tells."""
        origin = headers.get(b"origin")
        if origin is None or _origin_name(origin) in self._hosts:
            return None
        return 403, Denied("a web page of another origin asks", hint="set api.allowed_hosts"), None

    def _key_refusal(
        self, request: AsgiScope, given: bytes, scope: Scope
    ) -> tuple[int, CellulerError, float | None] | None:
        key = None if self._keys is None else self._keys.find(given.decode("ascii", "replace"))
        if self._keys is None or key is None:
            hint = "send Authorization: Bearer KEY, a key of `celluler key create` or the token of node.json"
            return 401, Denied("no or wrong token", hint=hint), None
        if not key.opens(scope):
            return 403, Denied(f"the key {key.name} is not for this", hint=f"celluler key create --scope {scope}"), None
        if wait_s := self._keys.wait_s(key):
            return 429, Busy(f"the key {key.name} has made all its requests of this minute"), wait_s
        request[KEY_ID] = key.id
        return None


def needed_scope(method: str, path: str) -> Scope:
    """What a key must open for a request."""
    if path == "/metrics":
        return "metrics"
    if not path.startswith("/api/") or path == _INFERS:
        return "infer"
    return "read" if method in ("GET", "HEAD") else "admin"


def _bearer(headers: Mapping[bytes, bytes]) -> bytes:
    kind, _, given = headers.get(b"authorization", b"").partition(b" ")
    return given if kind == b"Bearer" else b""


def _is_local(scope: AsgiScope, headers: Mapping[bytes, bytes]) -> bool:
    """From this machine, and not handed on by something on it for somebody else, as far as that says so."""
    if scope.get("client") is None or any(name in headers for name in _FORWARDED):
        return False
    try:
        address = ipaddress.ip_address(scope["client"][0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def _origin_name(header: bytes) -> str:
    try:
        return urlsplit(header.decode("ascii")).hostname or ""
    except ValueError:
        return ""


def _host_name(header: bytes) -> str:
    """`localhost:8787` → `localhost`, `[::1]:8787` → `::1`; an unreadable header names nobody."""
    try:
        text = header.decode("ascii").lower()
    except UnicodeDecodeError:
        return ""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]
