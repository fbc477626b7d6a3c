"""Where a node keeps its things, and how a client finds the node that runs there.

`CELLULER_HOME` puts everything into one folder; without it the XDG folders are used. The running node leaves a file
there, `node.json`, readable by its user alone: the address of its HTTP endpoint and the token that opens it.

The environment is handed in by the two edges that may read it, the command line and `Client()`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from celluler.errors import CellulerError, IntegrityError, NodeNotRunning
from celluler.views import from_json

NODE_FILE = "node.json"


@dataclass(frozen=True, slots=True)
class Places:
    """home: key, state, node.json. store: content. config_file: may be absent."""

    home: Path
    store: Path
    config_file: Path


def places(environment: Mapping[str, str]) -> Places:
    """Where things are for this environment; touches no file. Source: XDG Base Directory specification 0.8."""
    if chosen := environment.get("CELLULER_HOME"):
        home = Path(chosen).expanduser().absolute()
        return Places(home, home / "store", home / "config.toml")
    user = Path(environment.get("HOME") or Path.home())

    def xdg(name: str, default: str) -> Path:
        value = Path(environment.get(name, ""))
        return (value if value.is_absolute() else user / default) / "celluler"  # the standard: ignore relative ones

    return Places(
        xdg("XDG_STATE_HOME", ".local/state"),
        xdg("XDG_DATA_HOME", ".local/share") / "store",
        xdg("XDG_CONFIG_HOME", ".config") / "config.toml",
    )


@dataclass(frozen=True, slots=True)
class NodeFile:
    """The running node. api: `http://host:port`. token: opens the API, a secret."""

    pid: int
    api: str
    token: str
    peer_id: str
    addresses: tuple[str, ...]
    started_s: float


def write_node_file(home: Path, node: NodeFile) -> None:
    """Replace `home/node.json` in one step, mode 0600 from its first byte."""
    temporary = home / f".{NODE_FILE}.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(node), file)
    temporary.replace(home / NODE_FILE)


def read_node_file(home: Path) -> NodeFile:
    """The node whose home this is. Raises NodeNotRunning when there is none, or when its process has gone."""
    path = home / NODE_FILE
    try:
        node = from_json(NodeFile, json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        raise NodeNotRunning(f"no node runs with its home in {home}", hint="celluler up") from None
    except (OSError, ValueError, CellulerError) as error:
        raise IntegrityError(f"cannot read {path}: {error}", hint=f"rm {path}, then celluler up") from error
    if not _alive(node.pid):
        raise NodeNotRunning(f"the node of {home} (process {node.pid}) has ended", hint="celluler up")
    return node


def remove_node_file(home: Path) -> None:
    """The node has ended in order."""
    (home / NODE_FILE).unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
