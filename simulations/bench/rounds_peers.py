"""The peers of one kind in `simulations.bench.rounds`: processes that talk with us in lines of JSON.

A round is three lines: we name it, everybody says what the others must know, we tell that to all, and each says how
long it took. A round is as long as its slowest peer.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import structlog

ROOT = Path(__file__).parents[2]
START_S = 240.0
ROUND_S = 240.0


def quiet() -> None:
    """For a peer, before all else: what libraries log goes nowhere."""
    logging.disable(logging.CRITICAL)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())


def say(answer: Any) -> None:
    print(json.dumps(answer), flush=True)


def hear() -> Any:
    """None when it is over."""
    line = sys.stdin.readline()
    return json.loads(line) if line else None


class Group:
    """The peers of one kind. Made, they are ready and know of each other."""

    def __init__(self, kind: str, count: int, size: int, options: dict[str, Any]) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in ("", "protocols", "node")),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        module = f"simulations.bench.rounds_{kind.partition(':')[0]}"
        self._peers = [
            subprocess.Popen(
                [sys.executable, "-m", module, str(place), str(count), str(size), json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
                cwd=ROOT,
            )
            for place in range(count)
        ]
        try:
            self._tell(self._ask(START_S))
            self._ask(START_S)
        except BaseException:
            self.close()
            raise

    def round(self, number: int) -> dict[str, float]:
        """What the peers say of one round, of each figure the largest; `cpu`: seconds of all processes together."""
        before = self._cpu_s()
        self._tell(number)
        self._tell(self._ask(ROUND_S))
        answers = self._ask(ROUND_S)
        return {phase: max(answer[phase] for answer in answers) for phase in answers[0]} | {
            "cpu": self._cpu_s() - before
        }

    def close(self) -> None:
        """End them all, and what hivemind leaves of a p2pd that was killed: the process and its sockets in /tmp."""
        family = self._family()
        sockets = [argument for process in family for argument in _arguments(process) if "-listen=/unix" in argument]
        for process in self._peers:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._peers:
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for relative in psutil.wait_procs(family, timeout=5)[1]:
            relative.kill()
        for socket in sockets:
            path = Path(socket.partition("/unix")[2])
            for each in (path, path.with_name(path.name.replace("p2pd", "p2pclient"))):
                each.unlink(missing_ok=True)

    def _cpu_s(self) -> float:
        """Of all its processes, p2pd included: what a busy machine falsifies least."""
        return sum(sum(process.cpu_times()[:2]) for process in self._family())

    def _family(self) -> list[psutil.Process]:
        roots = [psutil.Process(process.pid) for process in self._peers if process.poll() is None]
        return [*roots, *(child for root in roots for child in root.children(recursive=True))]

    def _kill(self) -> None:
        for process in self._peers:
            process.kill()

    def _tell(self, what: Any) -> None:
        for process in self._peers:
            assert process.stdin is not None
            process.stdin.write(json.dumps(what) + "\n")
            process.stdin.flush()

    def _ask(self, wait_s: float) -> list[Any]:
        killer = threading.Timer(wait_s, self._kill)
        killer.start()
        try:
            lines = [process.stdout.readline() for process in self._peers if process.stdout is not None]
        finally:
            killer.cancel()
        if not all(lines):
            raise RuntimeError("a peer of the benchmark ended")
        return [json.loads(line) for line in lines]


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
