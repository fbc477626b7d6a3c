"""The file that `--plot` names: drawn when there is news, not all the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import trio

from celluler.errors import LocalError
from celluler_node import curves_html, curves_png
from celluler_node.cli.output import printable
from celluler_node.cli.training import OnTold, Training, name_of, plan, table
from celluler_node.curves import Sheet, panels_of

EVERY_S = 3.0
REFRESH_S = 5


def plotter(path: Path | None, *, clock: Callable[[], float] = time.monotonic) -> OnTold:
    """What draws a training into the file: at once, at its end, and in between at most every EVERY_S seconds.

    Raises LocalError for a file that is neither .png nor .html, and where nothing is installed that draws PNGs.
    """
    if path is None:
        return _nothing
    if path.suffix not in (".png", ".html"):
        raise LocalError(f"{path} is neither .png nor .html")
    if path.suffix == ".png":
        curves_png.check_installed()
    drawn_s, rounds = -EVERY_S, -1

    async def on_told(training: Training) -> None:
        nonlocal drawn_s, rounds
        told = len(training.rounds)
        if training.ended or (told != rounds and clock() - drawn_s >= EVERY_S):
            drawn_s, rounds = clock(), told
            await trio.to_thread.run_sync(draw, training, path)

    return on_told


def draw(training: Training, path: Path) -> None:
    """Write the drawing; a file that is there is replaced by a whole one. Raises LocalError."""
    sheet, part = sheet_of(training), path.with_name(f".{path.name}.part")
    try:
        if path.suffix == ".png":
            curves_png.draw(sheet, part)
        else:
            part.write_text(curves_html.render(sheet), "utf-8")
        part.replace(path)
    except OSError as error:
        raise LocalError(f"cannot write {path}: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)


def sheet_of(training: Training) -> Sheet:
    """What a drawing of the training says."""
    job, rounds = training.job, training.rounds
    facts = [("training", plan(training)), ("job", job.id)]
    facts.append(("rounds", f"{rounds[-1].round if rounds else 0} of {training.total}"))
    if job.reason:
        facts.append(("now", job.reason))
    if job.result is not None:
        facts.append(("result", f"{job.result.model}, {job.result.manifest}"))
    facts += [(name_of(training, one.peer), "; ".join(one.notes)) for one in training.members if one.notes]
    return Sheet(
        title=job.name,
        state=job.state,
        total=training.total,
        panels=panels_of(rounds),
        facts=tuple((name, printable(value)) for name, value in facts),
        members=table(training),
        refresh_s=None if training.ended else REFRESH_S,
    )


async def _nothing(_training: Training) -> None:
    pass
