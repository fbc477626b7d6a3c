"""The endpoint on a socket: anycorn under trio."""

from __future__ import annotations

import logging
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import anycorn
import anyio.abc
import trio
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from celluler.errors import LocalError

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM: a certificate with its chain, and its secret key without a password."""

    certificate: Path
    key: Path


class PortStatus(Protocol):
    """trio's task status, as far as it is used here."""

    def started(self, value: int) -> None: ...


class _PortRelay(anyio.abc.TaskStatus[list[str]]):
    """anycorn reports, once it listens, the addresses it bound; the node wants to know the port."""

    def __init__(self, outer: PortStatus, port: int) -> None:
        self._outer, self._port = outer, port

    def started(self, value: list[str] | None = None) -> None:
        self._outer.started(self._port)


class _Requests:
    """The application without a life of its own. Starlette answers a cancelled lifespan with a failure, anycorn raises
    that as an error: every end of a node would be one."""

    def __init__(self, app: Starlette) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            return await self._app(scope, receive, send)
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})
        return None


async def serve_gateway(
    app: Starlette,
    host: str,
    port: int,
    *,
    tls: TlsFiles | None = None,
    task_status: PortStatus = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; `started` gives the port, which `port=0` leaves to the system.

    tls: speak it at that address, and plain HTTP at a loopback port for whoever trusts no certificate but this machine;
    then `started` gives the latter. Raises LocalError when the address cannot be had, or the files not be used.
    """
    config = anycorn.Config()
    listener = await _bind(host, port)
    bound_port: int = listener.getsockname()[1]
    if tls is not None:
        config.certfile, config.keyfile = str(tls.certificate), str(tls.key)
        try:
            _check_tls(tls)
            local = await _bind(LOOPBACK, 0)
        except LocalError:
            listener.close()
            raise
        bound_port = local.getsockname()[1]
        config.insecure_bind = [f"fd://{local.detach()}"]
    config.bind = [f"fd://{listener.detach()}"]  # bound by us: anycorn raises what goes wrong in a nest of groups
    config.errorlog = logging.getLogger("celluler.gateway")  # its own would write to stderr whatever we configured
    config.accesslog = None
    config.alpn_protocols = ["http/1.1"]
    config.include_server_header = False
    config.keep_alive_timeout = 10.0  # seconds; also for whoever connects and says nothing
    asgi: Any = _Requests(app)  # anycorn types the messages of ASGI more closely than starlette
    await anycorn.serve(asgi, config, task_status=_PortRelay(task_status, bound_port), mode="asgi")


def _check_tls(files: TlsFiles) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(files.certificate, files.key, _no_password)
    except (OSError, ValueError) as error:
        raise LocalError(
            f"cannot use the certificate {files.certificate} with {files.key}: {error}",
            hint="set api.tls_certificate and api.tls_key to PEM files",
        ) from None


def _no_password() -> str:
    """What is called for a key that has one: asking the terminal would stop a node that nobody sits before."""
    raise ValueError("the key has a password")


async def _bind(host: str, port: int) -> socket.socket:
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise LocalError(
            f"cannot listen at {host}:{port}: {error.strerror}", hint="celluler up --api-port 0 takes a free port"
        ) from None
    return bound
