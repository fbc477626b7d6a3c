"""The curves of a training as data: which there are, with which points. `curves_html` and `curves_png` draw them.

Knows neither what a drawing looks like nor where the rounds come from.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from celluler.views import TrainingRound
from celluler.views.training import SHARES

LOG_SPAN = 20.0
"""A curve of positive values is drawn on a logarithmic axis from this ratio of its largest to its smallest on."""

Point = tuple[int, float]
"""(round, value)"""


@dataclass(frozen=True, slots=True)
class Curve:
    """role: what it is, by which a drawing chooses its colour."""

    name: str
    role: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes. band: (round, low, high), drawn behind the curves. stacked: the curves are heights, one upon
    the other in their order, with points for the same rounds. from_zero: where the axis begins."""

    title: str
    curves: tuple[Curve, ...]
    band: tuple[tuple[int, float, float], ...] = ()
    stacked: bool = False
    percent: bool = False
    from_zero: bool = False

    @property
    def values(self) -> list[float]:
        """All heights that are drawn."""
        if self.stacked:
            return [sum(points) for points in zip(*(_heights(curve) for curve in self.curves), strict=True)]
        lows_and_highs = [value for _, low, high in self.band for value in (low, high)]
        return [value for curve in self.curves for _, value in curve.points] + lows_and_highs

    @property
    def log(self) -> bool:
        values = self.values
        low = min(values, default=0.0)
        return not (self.stacked or self.percent or self.from_zero) and low > 0 and max(values) >= LOG_SPAN * low


@dataclass(frozen=True, slots=True)
class Sheet:
    """All that a drawing says. total: rounds asked for, which is how far its axes go. facts: names and values for the
    head. members: a table, its headings first. refresh_s: when whoever shows the drawing may look for a newer one."""

    title: str
    state: str
    total: int
    panels: tuple[Panel, ...]
    facts: tuple[tuple[str, str], ...] = ()
    members: tuple[tuple[str, ...], ...] = ()
    refresh_s: int | None = None


def panels_of(rounds: Sequence[TrainingRound]) -> tuple[Panel, ...]:
    """A panel for what was told of any round."""
    found = (_loss(rounds), _metric(rounds), _norms(rounds), _members(rounds), _seconds(rounds))
    return tuple(panel for panel in found if panel is not None)


def ticks(low: float, high: float, *, log: bool = False, wanted: int = 5) -> tuple[float, ...]:
    """Round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten; with `log`, such numbers."""
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for steps in ((1, 2, 5), (1,)):
            found = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
            if len(found) <= 2 * wanted:
                break
        every = math.ceil(len(found) / (2 * wanted)) or 1
        return tuple(found[::every])
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return tuple(n * step for n in range(first, math.floor(high / step + 1e-9) + 1))


# --- which there are ---------------------------------------------------------------------------------------------


def _loss(rounds: Sequence[TrainingRound]) -> Panel | None:
    return _one("training loss", "loss", rounds, lambda one: one.loss)


def _metric(rounds: Sequence[TrainingRound]) -> Panel | None:
    """What the objective is judged by; the name that was told last."""
    name = next((one.metric for one in reversed(rounds) if one.metric), "")
    title = f"{name.replace('_', ' ')}, before each round"
    return _one(title, "metric", rounds, lambda one: one.value if one.metric == name else None, percent=name in SHARES)


def _seconds(rounds: Sequence[TrainingRound]) -> Panel | None:
    return _one("seconds a round", "seconds", rounds, lambda one: one.seconds, from_zero=True)


def _norms(rounds: Sequence[TrainingRound]) -> Panel | None:
    told = [(one.round, sorted(one.norms.values())) for one in rounds if one.norms]
    if not told:
        return None
    middle = Curve("median", "norm", tuple((number, statistics.median(norms)) for number, norms in told))
    band = tuple((number, norms[0], norms[-1]) for number, norms in told)
    return Panel("norm of the members' updates: median, least to largest", (middle,), band)


def _members(rounds: Sequence[TrainingRound]) -> Panel | None:
    told = [one for one in rounds if one.contributed]
    if not told:
        return None
    heights: tuple[tuple[str, str, Callable[[TrainingRound], int]], ...] = (
        ("counted", "counted", lambda one: len(set(one.contributed) - set(one.no_weight))),
        ("without weight", "no-weight", lambda one: len(one.no_weight)),
        ("absent", "absent", lambda one: len(one.absent)),
    )
    curves = tuple(
        Curve(name, role, tuple((one.round, float(height(one))) for one in told)) for name, role, height in heights
    )
    return Panel("members", curves, stacked=True, from_zero=True)


def _one(
    title: str,
    role: str,
    rounds: Sequence[TrainingRound],
    value: Callable[[TrainingRound], float | None],
    *,
    percent: bool = False,
    from_zero: bool = False,
) -> Panel | None:
    points = tuple((one.round, told) for one in rounds if (told := value(one)) is not None and math.isfinite(told))
    return Panel(title, (Curve(title, role, points),), percent=percent, from_zero=from_zero) if points else None


def _heights(curve: Curve) -> list[float]:
    return [value for _, value in curve.points]
