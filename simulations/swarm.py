"""A swarm of real node processes on loopback, for the demo, the benchmarks and the integration tests.

Every process is started here, waited for by a line it prints, and gone when the context ends, also after an error or
Ctrl-C. Knows the command line only: what a person could type.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHIPPED = ("-m", "celluler_node.cli")
READY_S = 60.0
STOP_S = 15.0


class CommandFailed(Exception):
    """A command ended with another exit code than 0."""

    def __init__(self, arguments: Sequence[str], code: int, errors: str) -> None:
        super().__init__(f"celluler {' '.join(arguments)} ended with {code}:\n{errors[-4000:]}")
        self.code, self.errors = code, errors


@dataclass(slots=True)
class NodeProcess:
    """One running node. `ready` is the document it printed when it was ready."""

    name: str
    home: Path
    process: subprocess.Popen[bytes]
    ready: dict[str, Any]

    @property
    def address(self) -> str:
        return str(self.ready["addresses"][0])

    @property
    def peer_id(self) -> str:
        return str(self.ready["peer_id"])

    def call(self, *arguments: str, timeout_s: float = 60.0) -> Any:
        """A command against this node's own endpoint, as JSON."""
        return celluler(*arguments, home=self.home, timeout_s=timeout_s)

    def kill(self) -> None:
        """SIGKILL: no goodbye."""
        self.process.kill()
        self.process.wait(STOP_S)

    def log(self) -> str:
        return (self.home / "node.log").read_text("utf-8", "replace")


class Swarm:
    """Nodes under one folder. Use `open_swarm`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: list[NodeProcess] = []

    def start(
        self,
        name: str,
        *,
        join: Sequence[str] = (),
        program: Sequence[str] = SHIPPED,
        listen: str = "/ip4/127.0.0.1/tcp/0",
        options: Sequence[str] = (),
    ) -> NodeProcess:
        """One node, ready. program: the module and its own options that take the place of the shipped node."""
        return self.await_ready(self.launch(name, join=join, program=program, listen=listen, options=options))

    def launch(
        self,
        name: str,
        *,
        join: Sequence[str] = (),
        program: Sequence[str] = SHIPPED,
        listen: str = "/ip4/127.0.0.1/tcp/0",
        options: Sequence[str] = (),
    ) -> NodeProcess:
        """Start a node without waiting for it, so that several start side by side."""
        home = self.folder / name
        home.mkdir(parents=True, exist_ok=True)
        joins = [part for address in join for part in ("--join", address)]
        command = [sys.executable, *program, "up", "--json", "--nickname", name, "--listen", listen]
        with (home / "node.log").open("ab") as log:
            process = subprocess.Popen(
                [*command, "--api-port", "0", *joins, *options],
                env=environment(home),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # a terminal's Ctrl-C reaches us, and we stop the nodes
            )
        node = NodeProcess(name, home, process, {})
        self.nodes.append(node)
        return node

    def await_ready(self, node: NodeProcess) -> NodeProcess:
        """Wait for the line that says the node serves. Raises RuntimeError with its log when none comes."""
        line = _read_line(node.process, READY_S)
        if not line:
            raise RuntimeError(f"node {node.name} did not become ready:\n{node.log()[-4000:]}")
        node.ready = json.loads(line)
        return node

    def stop(self) -> None:
        """Ask all, wait bounded, then kill."""
        for node in self.nodes:
            with suppress(ProcessLookupError):
                node.process.terminate()
        deadline = time.monotonic() + STOP_S
        for node in self.nodes:
            try:
                node.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                node.kill()
            if node.process.stdout:
                node.process.stdout.close()


@contextmanager
def open_swarm(folder: Path | None = None) -> Iterator[Swarm]:
    """A swarm in `folder`, or in a temporary one that is removed with it."""
    own = folder is None
    folder = Path(tempfile.mkdtemp(prefix="celluler-swarm-")) if folder is None else folder
    swarm = Swarm(folder)
    try:
        yield swarm
    finally:
        with _deaf_to_interrupt():
            swarm.stop()
            if own:
                shutil.rmtree(folder, ignore_errors=True)


def celluler(*arguments: str, home: Path, timeout_s: float = 60.0) -> Any:
    """Run `celluler … --json` and return the document it printed (a list of them for streams).

    Raises CommandFailed with the exit code, or subprocess.TimeoutExpired.
    """
    command = [sys.executable, *SHIPPED, *arguments, "--json"]
    done = subprocess.run(
        command,
        env=environment(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode:
        raise CommandFailed(arguments, done.returncode, done.stderr)
    documents = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
    return documents[0] if len(documents) == 1 else documents


def celluler_events(*arguments: str, home: Path, timeout_s: float = 60.0) -> Iterator[Any]:
    """Run `celluler … --json` and yield each document as it is printed. Raises as `celluler` does."""
    with subprocess.Popen(
        [sys.executable, *SHIPPED, *arguments, "--json"],
        env=environment(home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        deadline = time.monotonic() + timeout_s
        try:
            while line := _read_line(process, max(0.0, deadline - time.monotonic())):
                yield json.loads(line)
            errors = process.communicate(timeout=max(0.1, deadline - time.monotonic()))[1]
        finally:
            process.kill()
    if process.returncode:
        raise CommandFailed(arguments, process.returncode, errors.decode("utf-8", "replace"))


def environment(home: Path) -> dict[str, str]:
    """The caller's environment without celluler's own settings, and with this home."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CELLULER_")}
    return {**kept, "CELLULER_HOME": str(home), "NO_COLOR": "1"}


def _read_line(process: subprocess.Popen[bytes], timeout_s: float) -> bytes:
    """One whole line of the process's output; empty when it ended or the time is over."""
    assert process.stdout is not None
    descriptor, line = process.stdout.fileno(), bytearray()
    deadline = time.monotonic() + timeout_s
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        byte = os.read(descriptor, 1) if ready else b""
        if not byte:
            return b""
        line += byte
    return bytes(line)


@contextmanager
def _deaf_to_interrupt() -> Iterator[None]:
    """A second Ctrl-C must not leave processes behind."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
