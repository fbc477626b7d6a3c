"""The demo as a person runs it, and leaves it by Ctrl-C in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

WAIT_S = 90.0


def test_ctrl_c_in_mid_demo_leaves_nothing_behind(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    demo = subprocess.Popen(
        [sys.executable, "-m", "simulations.demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**_environment(), "TMPDIR": str(temporary)},
        start_new_session=True,
    )
    seen: list[psutil.Process] = []
    try:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "starting the worker" in line:  # averagers and their daemons run, and workers begin to
                break
        seen = psutil.Process(demo.pid).children(recursive=True)
        assert len(seen) >= 10, "five nodes and five averagers at least"
        demo.send_signal(signal.SIGINT)
        rest = demo.communicate(timeout=WAIT_S)[0]
        assert demo.returncode == 130, rest
    finally:
        demo.kill()
        _, alive = psutil.wait_procs(seen, timeout=10)
        for process in alive:
            process.kill()
    assert not alive
    assert not list(temporary.iterdir())


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("CELLULER_")}
