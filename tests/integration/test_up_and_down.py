"""`celluler up --detach` and `down`, as a person would: a real node in the background, and nothing of it afterwards."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from celluler import Client
from celluler.errors import NodeNotRunning


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    if (tmp_path / "node.json").exists():
        pid = json.loads((tmp_path / "node.json").read_text())["pid"]
        if psutil.pid_exists(pid):
            psutil.Process(pid).kill()


def celluler(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "celluler_node.cli", *arguments],
        capture_output=True, text=True, timeout=90, check=False, env={**os.environ, "CELLULER_HOME": str(home)},
    )  # fmt: skip


def test_a_node_runs_in_the_background_until_it_is_told_to_end(home: Path) -> None:
    up = celluler(home, "up", "--detach", "--api-port", "0", "--nickname", "alice", "--json")
    assert up.returncode == 0, up.stderr
    ready = json.loads(up.stdout)
    assert ready["addresses"][0].endswith(ready["peer_id"])
    assert "token" not in ready
    assert (home / "node.json").stat().st_mode & 0o077 == 0

    status = celluler(home, "status", "--json")
    assert json.loads(status.stdout)["nickname"] == "alice"
    with Client(home=home) as client:
        assert [peer.status for peer in client.peers.ls()] == ["self"]

    second = celluler(home, "up", "--api-port", "0")
    assert second.returncode == 2
    assert "celluler down" in second.stderr

    down = celluler(home, "down")
    assert down.returncode == 0, down.stderr
    assert not psutil.pid_exists(ready["pid"]) or psutil.Process(ready["pid"]).status() == psutil.STATUS_ZOMBIE
    assert not (home / "node.json").exists()
    assert celluler(home, "status").returncode == 3
    with pytest.raises(NodeNotRunning):
        Client(home=home)


def test_a_node_that_cannot_start_says_why(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        up = celluler(home, "up", "--detach", "--api-port", str(taken.getsockname()[1]))
    assert up.returncode != 0
    assert "cannot listen at 127.0.0.1" in up.stderr
    assert not (home / "node.json").exists()
