"""`python -m tests.fuzz [TARGET…] [--seconds N]`: feed mutated bytes to the parsers, each for its share of the time.

By atheris, which sees which lines were reached, where it is installed; else by hypothesis. A parser may refuse by the
errors of `targets.REFUSALS`; anything else is a failure, printed with the smallest input found for it. Memory is
limited to a gigabyte above what the program takes. Exit code 1 when something failed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.mutations import inputs
from tests.fuzz.targets import TARGETS, Target

EXAMPLES_A_TURN = 500
SPARE_BYTES = 1 << 30
SHRINK_S = 10.0
"""To make an input smaller that was let through, beyond its target's share of the time."""
MAX_INPUT_BYTES = 1 << 16
GUIDED = ("celluler.formats", "celluler.models", "celluler.documents", "celluler.wire", "celluler.jobs.spec")


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz")
    parser.add_argument("target", nargs="*", choices=[[], *TARGETS], default=[])
    parser.add_argument("--seconds", type=float, default=120.0, help="in all")
    parser.add_argument("--with-atheris", action="store_true", help=argparse.SUPPRESS)
    given_here = sys.argv[1:]  # behind "--" come the options of libFuzzer
    asked = parser.parse_args(given_here[: given_here.index("--")] if "--" in given_here else given_here)
    names = asked.target or list(TARGETS)
    if asked.with_atheris:
        return _guided(names[0])
    _bound_memory()
    share_s = asked.seconds / len(names)
    guided = importlib.util.find_spec("atheris") is not None
    print(f"{len(names)} targets, {share_s:.1f} s each, by {'atheris' if guided else 'hypothesis'}", flush=True)
    failed = [name for name in names if not (_run_guided(name, share_s) if guided else _run(name, share_s))]
    print(f"failed: {', '.join(failed)}" if failed else "nothing was let through")
    return 1 if failed else 0


@dataclass
class _Progress:
    """fed, taken: inputs. failure: the smallest input that was let through, and what came of it."""

    until: float
    fed: int = 0
    taken: int = 0
    failure: tuple[bytes, BaseException] | None = None


def _run(name: str, seconds: float) -> bool:
    """Turns of `EXAMPLES_A_TURN`, until the time is over or something was let through."""
    target, progress = TARGETS[name], _Progress(time.monotonic() + seconds)
    while time.monotonic() < progress.until and progress.failure is None:
        with contextlib.suppress(Exception):  # told below, from the smallest input
            _turn(target, progress)
    if progress.failure is None:
        print(f"{name}: {progress.fed} inputs, {progress.taken} taken", flush=True)
        return True
    data, error = progress.failure
    print(f"{name}: {type(error).__name__}: {str(error)[:500]}\n  from {data!r}", flush=True)
    traceback.print_exception(error, limit=-6)
    return False


def _turn(target: Target, progress: _Progress) -> None:
    @settings(
        max_examples=EXAMPLES_A_TURN,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(inputs(target))
    def feed(data: bytes) -> None:
        if time.monotonic() > progress.until + SHRINK_S:
            return
        progress.fed += 1
        try:
            progress.taken += target.feed(data)
        except Exception as error:
            if progress.failure is None or len(data) < len(progress.failure[0]):
                progress.failure = data, error
            raise

    hypothesis.seed(random.getrandbits(32))(feed)()


def _run_guided(name: str, seconds: float) -> bool:
    """In a process of its own: libFuzzer ends its process."""
    with tempfile.TemporaryDirectory(prefix="celluler-fuzz-") as folder:
        for number, seed in enumerate(TARGETS[name].seeds()):
            Path(folder, f"seed-{number}").write_bytes(seed)
        command = [sys.executable, "-m", "tests.fuzz", name, "--with-atheris"]
        options = [f"-max_total_time={max(1, int(seconds))}", f"-max_len={MAX_INPUT_BYTES}", folder]
        done = subprocess.run([*command, "--", *options], check=False, capture_output=True, text=True)
    if done.returncode:
        print(f"{name}:\n{(done.stdout + done.stderr)[-4000:]}", flush=True)
    else:
        print(f"{name}: {done.stderr.strip().splitlines()[-1]}", flush=True)
    return done.returncode == 0


def _guided(name: str) -> int:
    import atheris  # noqa: PLC0415  not everywhere

    target = TARGETS[name]
    options = sys.argv[sys.argv.index("--") + 1 :]
    for function in set(_functions()):
        atheris.instrument_func(function)
    atheris.Setup([sys.argv[0], *options], lambda data: target.feed(data) and None)
    atheris.Fuzz()
    return 0


def _functions() -> Iterator[types.FunctionType]:
    """Ours that read documents and files; torch and the rest would take minutes to instrument."""
    for module in [one for name, one in sys.modules.items() if name.startswith(GUIDED)]:
        for value in vars(module).values():
            holders = [value, *vars(value).values()] if isinstance(value, type) else [value]
            yield from (
                one for one in holders if isinstance(one, types.FunctionType) and one.__module__.startswith(GUIDED)
            )


def _bound_memory() -> None:
    statm = Path("/proc/self/statm")
    if statm.exists():
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    sys.exit(main())
