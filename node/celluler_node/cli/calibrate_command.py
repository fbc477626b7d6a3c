"""`celluler train calibrate`: how this machine computes, and which tolerance lies between rounding and laziness."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from celluler.errors import InvalidSpec, LocalError
from celluler_node.cli.output import Output, say
from celluler_node.cli.session import Json, log_to, run

if TYPE_CHECKING:
    from celluler_node.calibrate import Measured, Report
    from celluler_node.calibrate_task import Task
    from celluler_node.calibration import Standing

HEADINGS = ("task", "replayed by", "bits", "honest, median", "honest, worst", "lazy, least", "")


def calibrate(
    model: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An architecture (JSON) to measure with, from initial weights.")
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="FILE", help="Data for it; else samples of our own.")] = None,
    optimizer: Annotated[str, typer.Option(help="For --model: adam or sgd.")] = "adam",
    lr: Annotated[float, typer.Option(help="For --model: learning rate.")] = 1e-3,
    inner_steps: Annotated[int, typer.Option(min=2, help="Local steps in a round.")] = 20,
    batch: Annotated[int, typer.Option(min=2, help="Samples in a local step.")] = 32,
    rounds: Annotated[int, typer.Option(min=2, max=64, help="Rounds of each task.")] = 4,
    precision: Annotated[str, typer.Option(help="Of the local steps: fp32, bf16 or fp16.")] = "fp32",
    wire: Annotated[str, typer.Option(help="What travels of a value: q16, q8, q4 or q4-sparse.")] = "q16",
    save: Annotated[bool, typer.Option(help="Keep what was found, for this node to tell the swarm.")] = True,
    json: Json = False,
) -> None:
    """Measure how exactly others can repeat what this machine trains.

    Trains some rounds in a worker, honestly and lazily, and lets workers of other kinds repeat them: another process,
    other threads, older instructions. Prints the largest honest and the smallest lazy deviation, and a tolerance
    between them where there is room. A running node tells its class from its next start on.

    Exit code 6 when not even a process like this node's can tell laziness from rounding.
    """
    log_to(None, "text", "error")
    if data is not None and model is None:
        raise InvalidSpec("data", "goes with --model, whose input it is")
    with tempfile.TemporaryDirectory(prefix="celluler-calibrate-") as folder:
        tasks = _tasks(Path(folder), model, data, optimizer, lr, inner_steps, batch)
        report, place = _measure(Path(folder), tasks, rounds, precision, wire, save=save, quiet=json)
    output = Output(as_json=json)
    output.document(report) if json else _show(output, report, place)
    if report.own.tolerance is None:
        raise typer.Exit(6)


def _tasks(
    folder: Path, model: Path | None, data: Path | None, optimizer: str, lr: float, steps: int, batch: int
) -> tuple[Task, ...]:
    from celluler_node.calibrate_task import own_task, usual_tasks  # noqa: PLC0415  NumPy: not for `--help`

    if model is None:
        return usual_tasks(folder, steps=steps, batch=batch)
    try:
        spec = model.read_bytes()
    except OSError as error:
        raise LocalError(f"{model}: {error.strerror}") from None
    where = None if data is None else data.absolute()
    return (own_task(folder, spec, where, optimizer=optimizer, learning_rate=lr, steps=steps, batch=batch),)


def _measure(
    folder: Path, tasks: Sequence[Task], rounds: int, precision: str, wire: str, *, save: bool, quiet: bool
) -> tuple[Report, Path | None]:
    """(what was found, the file it was written to)."""
    from celluler_node.calibrate import Settings, measure, variations  # noqa: PLC0415
    from celluler_node.calibration import Calibration, save_calibration  # noqa: PLC0415
    from celluler_node.config import load_config  # noqa: PLC0415
    from celluler_node.hardware import find_hardware  # noqa: PLC0415
    from celluler_node.processes.words import Limits  # noqa: PLC0415
    from celluler_node.processes.worker_words import WORKER  # noqa: PLC0415

    config, hardware = load_config(os.environ), find_hardware()
    program = replace(WORKER, confined=config.sandbox)
    limits = Limits(config.worker_memory_bytes, threads=config.worker_threads)
    kinds = variations(config.worker_threads, hardware.cores, hardware.cpu_flags, hardware.architecture)

    settings = Settings(rounds, precision, wire)

    async def main() -> Report:
        return await measure(tasks, kinds, settings, program, limits, folder, on_step=_telling(quiet))

    report = run(main)
    if not save or report.own.tolerance is None:
        return report, None
    config.home.mkdir(parents=True, exist_ok=True)
    found = Calibration(
        precision, report.torch, hardware.cpu, config.worker_threads, time.time(), report.own, report.others
    )
    return report, save_calibration(config.home, found)


def _telling(quiet: bool) -> Callable[[str], None]:
    """Says what begins, to whoever watches a terminal."""
    return (lambda _: None) if quiet or not sys.stderr.isatty() else lambda what: say(f"{what} …")


def _show(output: Output, report: Report, place: Path | None) -> None:
    output.table(HEADINGS, map(_row, report.measured))
    say(f"class of this node ({report.precision}): {report.own.audit_class}")
    say(_verdict("another process of this class", report.own))
    for other in report.others:
        say(_verdict(other.audit_class, other))
    say(f"written to {place}" if place is not None else "nothing was kept")


def _row(one: Measured) -> Sequence[object]:
    kind, least = min(one.lazy.items(), key=lambda item: item[1])
    separates = "" if one.separates else "does not separate"
    bits = "the same" if one.same else "others"
    return one.task, one.variation, bits, f"{one.median:.1e}", f"{one.worst:.1e}", f"{least:.1e} ({kind})", separates


def _verdict(name: str, standing: Standing) -> str:
    figures = f"honest up to {standing.noise:.1e}, lazy from {standing.laziness:.1e}"
    if standing.tolerance is None:
        return f"{name}: {figures}: these two do not separate; neither may judge the other"
    return f"{name}: {figures}: tolerance {standing.tolerance:g}"
