"""A training on one page of a terminal. Everything that a peer wrote is shown without what would steer the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from celluler.quantities import format_duration
from celluler.views import TrainingRound
from celluler.views.training import GROWING, SHARES
from celluler_node.cli.job_output import clock
from celluler_node.cli.output import ending, printable
from celluler_node.cli.training import Member, Training, elapsed_s, left_s, name_of, pace, plan, table

BAR_CELLS = 30
CURVE_CELLS = 40
LAST_EVENTS = 4
_BLOCKS = "▁▂▃▄▅▆▇█"
_STATE_STYLES = {"Succeeded": "bold green", "Failed": "bold red", "Cancelled": "bold yellow", "Running": "bold cyan"}


def page(training: Training, now: float) -> RenderableType:
    rounds = training.rounds
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(training, rounds, now):
        facts.add_row(name, Text(value))
    parts: list[RenderableType] = [_head(training), facts]
    if training.members:
        parts += ["", _members(training)]
    notes = [_note(training, one) for one in training.members if one.notes]
    if notes:
        parts += ["", *notes]
    told = [event for event in training.events if not event.metrics][-LAST_EVENTS:]
    parts += ["", *(Text(f"{clock(one.at_s)}  {one.state:<10}  {printable(one.reason)}".rstrip()) for one in told)]
    return Group(*parts)


def sparkline(values: Sequence[float], cells: int = CURVE_CELLS) -> str:
    """The course of the values in one line; of more values than cells, the mean of those that share one."""
    count = min(cells, len(values))
    means = [_mean(values[len(values) * n // count : len(values) * (n + 1) // count]) for n in range(count)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((value - low) * scale)] for value in means)


def bar(done: int, total: int, cells: int = BAR_CELLS) -> str:
    full = cells * min(done, total) // max(1, total)
    return "━" * full + "─" * (cells - full)


# --- parts -------------------------------------------------------------------------------------------------------


def _head(training: Training) -> Text:
    job, text = training.job, Text()
    text.append(printable(job.name), style="bold")
    text.append(f"  {ending(job.id)}  ", style="dim")
    return text.append(job.state, style=_STATE_STYLES.get(job.state, "bold"))


def _facts(training: Training, rounds: Sequence[TrainingRound], now: float) -> Iterator[tuple[str, str]]:
    done = rounds[-1].round if rounds else 0
    yield "round", f"{done} of {training.total}  {bar(done, training.total)}  {_times(training, rounds, now)}"
    yield "training", printable(plan(training))
    losses = [one.loss for one in rounds if one.loss is not None]
    if losses:
        yield "loss", f"{losses[-1]:<8.4g} {sparkline(losses)}  from {losses[0]:.4g}, best {min(losses):.4g}"
    yield from _metric(rounds)
    if rounds and rounds[-1].norms:
        yield "norms", _norms(rounds[-1])
    if rounds and rounds[-1].views:
        yield "agreed in", _agreed(rounds)
    if rounds and rounds[-1].contributed:
        yield "members", _contributed(rounds[-1])
    audits, accused = sum(each.audits.done for each in rounds), sum(len(each.audits.accused) for each in rounds)
    if audits or accused:
        yield "audits", f"{audits}, {accused} accused, {sum(len(each.audits.guilty) for each in rounds)} guilty"
    if training.checkpoint is not None:
        yield "checkpoint", f"{printable(training.checkpoint.model)} (as its publisher says)"
    if training.job.result is not None:
        yield "result", printable(training.job.result.model)


def _metric(rounds: Sequence[TrainingRound]) -> Iterator[tuple[str, str]]:
    """What the objective is judged by, as far as it was told."""
    told = [(one.metric, one.value) for one in rounds if one.metric and one.value is not None]
    if not told:
        return
    name = told[-1][0]
    values = [value for metric, value in told if metric == name]
    last, first, best = (
        f"{value:{'.1%' if name in SHARES else '.4g'}}"
        for value in (values[-1], values[0], (max if name in GROWING else min)(values))
    )
    yield printable(name).replace("_", " "), f"{last:<8} {sparkline(values)}  from {first}, best {best}"


def _times(training: Training, rounds: Sequence[TrainingRound], now: float) -> str:
    times, rate, left = [format_duration(elapsed_s(training, now))], pace(rounds), left_s(training, now)
    if rate is not None:
        times.append(f"{format_duration(rate)} a round")
    if left is not None:
        times.append(f"{format_duration(left)} left")
    return ", ".join(times)


def _norms(one: TrainingRound) -> str:
    norms = sorted(one.norms.values())
    spread = f", {norms[-1] / norms[0]:.3g} times apart" if norms[0] > 0 else ""
    return f"{norms[0]:.3g} to {norms[-1]:.3g}, median {statistics.median(norms):.3g}{spread}"


def _agreed(rounds: Sequence[TrainingRound]) -> str:
    one, more = rounds[-1], sum(each.views > 1 for each in rounds)
    text = f"{one.views} view{'' if one.views == 1 else 's'}"
    if more:
        text += f" (more than one in {more} of {len(rounds)} rounds)"
    return text


def _contributed(one: TrainingRound) -> str:
    everybody = len(one.contributed) + len(one.absent)
    return f"{len(one.contributed)} of {everybody} contributed, {len(one.no_weight)} without weight"


def _members(training: Training) -> Table:
    headings, *rows = table(training)
    drawn = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for place, heading in enumerate(headings):
        drawn.add_column(heading, justify="right" if place else "left", no_wrap=True)
    for one, cells in zip(training.members, rows, strict=True):
        drawn.add_row(*map(Text, cells), style=_style(one))
    return drawn


def _note(training: Training, one: Member) -> Text:
    return Text(f"{name_of(training, one.peer)}: {printable('; '.join(one.notes))}", style=_style(one))


def _style(one: Member) -> str:
    grave = any(note.startswith(("expelled", "excluded with proof", "found guilty")) for note in one.notes)
    return "red" if grave else "yellow" if one.notes else ""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
