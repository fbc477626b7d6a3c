"""Start a node in the background and wait until it is ready."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from celluler.errors import CellulerError, TimedOut, WorkerFailed
from celluler.home import NodeFile, read_node_file
from celluler_node.config import NodeConfig

READY_S = 60.0
TAIL_BYTES = 2000
_LINE_BYTES = 1 << 16
_FLAGS = {
    "network.join": "--join",
    "network.listen": "--listen",
    "nickname": "--nickname",
    "api.host": "--api-host",
    "api.port": "--api-port",
    "store.quota": "--quota",
    "log.format": "--log-format",
    "log.level": "--log-level",
    "log.file": "--log-file",
}


def start_detached(config: NodeConfig, flags: Mapping[str, Any]) -> NodeFile:
    """The node, ready, in a session of its own; without a log file of its own choice it logs to its home.

    Raises WorkerFailed with the end of the log when it ended, TimedOut when it is not ready in time (it is stopped).
    """
    arguments = [sys.executable, "-m", "celluler_node.cli", "up", "--json"]
    for path, value in flags.items():
        for item in value if isinstance(value, list) else [] if value is None else [value]:
            arguments += [_FLAGS[path], str(item)]
    log_file = config.log_file or config.detached_log_file
    if config.log_file is None:
        arguments += ["--log-file", str(log_file)]
    descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "wb") as log:
        child = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True
        )
    assert child.stdout is not None
    with child.stdout:
        line = _first_line(child.stdout.fileno(), time.monotonic() + READY_S)
    if line is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(10)
        child.kill()
        raise TimedOut(f"the node was not ready in {READY_S:.0f} s; its log is {log_file}")
    if not line:
        code = child.wait()
        raise WorkerFailed(f"the node ended with code {code}: {_last_words(log_file)}")
    json.loads(line)  # our own line: anything else is a bug, and shows as one
    return read_node_file(config.home)


def _first_line(descriptor: int, deadline: float) -> bytes | None:
    """None when it does not come in time, empty when the other side is gone."""
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while b"\n" not in line and len(line) < _LINE_BYTES:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return None
            chunk = os.read(descriptor, 4096)
            if not chunk:
                return b""
            line += chunk
    return line


def _last_words(log_file: Path) -> str:
    """The end of the log; an error of ours in JSON as its message."""
    text = log_file.read_bytes()[-TAIL_BYTES:].decode("utf-8", "replace").strip()
    with contextlib.suppress(ValueError, KeyError, TypeError, CellulerError):
        return str(json.loads(text.splitlines()[-1])["error"]["message"])
    return text.splitlines()[-1] if text else "it said nothing"
