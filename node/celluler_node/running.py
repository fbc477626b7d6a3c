"""A node as a process: its HTTP endpoint, the file that says where it is, and the signals that end it."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import structlog
import trio

from celluler.errors import CellulerError, LocalError, NodeNotRunning
from celluler.home import NodeFile, read_node_file, remove_node_file, write_node_file
from celluler_node.app import Parts, open_node
from celluler_node.config import NodeConfig
from celluler_node.gateway.app import gateway_app
from celluler_node.gateway.guard import LOOPBACK_NAMES
from celluler_node.gateway.keys import KeyRing
from celluler_node.gateway.server import LOOPBACK, TlsFiles, serve_gateway
from celluler_node.node import Node
from celluler_protocols.nursery import own_nursery

JOIN_S = 15.0

log = structlog.get_logger()


async def run_node(
    config: NodeConfig,
    *,
    parts: Parts | None = None,
    on_ready: Callable[[NodeFile], None] = lambda _: None,
) -> None:
    """A node with its HTTP endpoint, until SIGINT, SIGTERM or a request to shut down.

    on_ready: called once, when it serves. Raises LocalError when a node runs there already.
    """
    config.home.mkdir(parents=True, exist_ok=True)
    _refuse_second(config)
    token = secrets.token_urlsafe(32)
    try:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with open_node(config, parts) as node, own_nursery() as nursery:
                app = gateway_app(
                    node,
                    token,
                    allowed_hosts=config.api_allowed_hosts,
                    spool=_spool(config),
                    max_upload_bytes=config.store_quota_bytes,
                    keys=KeyRing(config.keys_file, a_minute=config.api_rate),
                    keys_always=config.api_keys == "always",
                )
                port = await nursery.start(_serve_http, app, config)
                told = NodeFile(
                    pid=os.getpid(),
                    api=f"http://{_local_host(config)}:{port}",
                    token=token,
                    peer_id=node.peer_id,
                    addresses=node.addresses,
                    started_s=time.time(),
                )
                await _join_once(node, config)
                write_node_file(config.home, told)
                on_ready(told)
                nursery.start_soon(_await_signal, signals, node.stopping)
                await node.stopping.wait()
                nursery.cancel_scope.cancel()
    finally:
        remove_node_file(config.home)


async def _join_once(node: Node, config: NodeConfig) -> None:
    """Give joining a bounded chance before we say we are ready; it goes on in the background either way."""
    if not config.join:
        return
    with trio.move_on_after(JOIN_S):
        await node.joined()


def _refuse_second(config: NodeConfig) -> None:
    try:
        running = read_node_file(config.home)
    except NodeNotRunning:
        return
    except CellulerError:
        remove_node_file(config.home)
        return
    raise LocalError(f"a node runs here already (process {running.pid})", hint="celluler down")


def _spool(config: NodeConfig) -> Path:
    spool = config.scratch_folder / "uploads"
    spool.mkdir(parents=True, exist_ok=True)
    return spool


def _tls(config: NodeConfig) -> TlsFiles | None:
    if config.tls_certificate is None or config.tls_key is None:
        return None
    return TlsFiles(config.tls_certificate, config.tls_key)


def _local_host(config: NodeConfig) -> str:
    """By which this machine itself reaches the endpoint."""
    if _tls(config) is not None or config.api_host == "0.0.0.0":  # noqa: S104  # compared, not bound
        return LOOPBACK
    host = "::1" if config.api_host == "::" else config.api_host
    return f"[{host}]" if ":" in host else host


async def _serve_http(app: object, config: NodeConfig, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
    tls = _tls(config)
    if tls is None and config.api_host not in LOOPBACK_NAMES:
        log.warning("api_without_tls", host=config.api_host)
    elif tls is not None:
        log.info("api_with_tls", host=config.api_host, port=config.api_port)
    await serve_gateway(app, config.api_host, config.api_port, tls=tls, task_status=task_status)  # type: ignore[arg-type]


async def _await_signal(signals: AsyncIterator[int], stopping: trio.Event) -> None:
    async for number in signals:
        log.info("stopping", signal=signal.Signals(number).name)
        stopping.set()
        return
