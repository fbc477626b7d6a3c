"""What a member tells of each certified round: what stands in the body, and what it measured itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from celluler.aggregation.digests import mantissas_of
from celluler.aggregation.q16 import decode_parts
from celluler.identity import PeerId
from celluler.jobs.telemetry import Audits, RoundFigures, Traffic, amounts, suspicions
from celluler.learning.report import RoundReport
from celluler.learning.roster import RosterView
from celluler.learning.standing import Standing
from celluler_node.training.averaging import Seen
from celluler_node.training.trainer import Update

MAX_COUNT = 65535

Measure = Callable[[float, Mapping[str, float], RoundFigures], None]
"""(Unix seconds, figures by name, the round): the record's."""
Moved = Callable[[], tuple[int, int]]
"""Bytes (sent, received) so far."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a member may tell of a round. loss: its own mean training loss of it, if it trained. metric, value: what the
    objective is judged by, of the state that it trained from."""

    report: RoundReport
    loss: float | None
    metric: str = ""
    value: float | None = None


def figures_of(progress: Progress) -> dict[str, float]:
    """By name."""
    found = {"round": float(progress.report.round + 1), "views": float(progress.report.views)}
    if progress.loss is not None and math.isfinite(progress.loss):
        found["loss"] = progress.loss
    if progress.value is not None and progress.metric:
        found[progress.metric] = progress.value
    return found


@dataclass(slots=True)
class _Noted:
    """Of one round, until it is certified."""

    loss: float | None = None
    norm: float | None = None
    metric: str = ""
    value: float | None = None
    squares: dict[int, dict[int, float]] = field(default_factory=dict)
    """By place and part."""
    suspected: dict[int, str] = field(default_factory=dict)

    def norms(self, parts: int) -> dict[int, float]:
        """Of the members whose every part we saw, by place."""
        whole = {place: seen.values() for place, seen in self.squares.items() if len(seen) == parts}
        return {place: math.sqrt(math.fsum(squares)) for place, squares in whole.items()}


class Figures:
    """One run's, at one member."""

    def __init__(self, clock: Callable[[], float], moved: Moved, measure: Measure) -> None:
        self._clock, self._moved, self._measure = clock, moved, measure
        self._at_s, self._before = clock(), moved()
        self._rounds: dict[int, _Noted] = {}
        self._audits, self._accused, self._guilty = 0, set[int](), set[int]()

    def trained(self, number: int, loss: float, norm: float, *, metric: str = "", value: float | None = None) -> None:
        """Our own steps of a round. norm: of our update, as `norm_of` has it. metric, value: see `Progress`."""
        noted = self._of(number)
        if metric and value is not None and math.isfinite(value):
            noted.metric, noted.value = metric, value
        noted.loss, noted.norm = loss if math.isfinite(loss) else None, norm

    def seen(self, number: int, seen: Seen) -> None:
        """What the inputs of a part weighed that we reduced, or checked."""
        noted = self._of(number)
        for place, square in seen.squares.items():
            noted.squares.setdefault(place, {})[seen.part] = square

    def suspect(self, number: int, member: int, reason: str) -> None:
        self._of(number).suspected.setdefault(member, reason)

    def audited(self, member: int, *, guilty: bool) -> None:
        """A replay that we did; told with the next round."""
        self._audits += 1
        if guilty:
            self._accused.add(member)

    def convicted(self, member: int) -> None:
        """A member proven not to have trained."""
        self._guilty.add(member)

    def certified(self, roster: RosterView, report: RoundReport, standing: Standing, me: int) -> None:
        """Tell of a round. standing: after it."""
        noted = self._rounds.pop(report.round, _Noted())
        now, moved = self._clock(), self._moved()
        norms = noted.norms(roster.rules.parts) | ({} if noted.norm is None else {me: noted.norm})
        figures = RoundFigures(
            round=report.round + 1,
            views=min(report.views, MAX_COUNT),
            seconds=max(0.0, now - self._at_s),
            contributed=_places(roster, report.contributed),
            no_weight=_places(roster, report.no_weight),
            absent=_places(roster, report.absent),
            expelled=_places(roster, report.expelled),
            suspended=_places(roster, report.suspended),
            suspected=suspicions(noted.suspected.items()),
            norms=amounts({member: norm for member, norm in norms.items() if math.isfinite(norm)}),
            traffic=(Traffic(me, *(max(0, now - then) for now, then in zip(moved, self._before, strict=True))),),
            credits=amounts({place: float(credit.accrued) for place, credit in enumerate(standing.credits)}),
            audits=Audits(min(self._audits, MAX_COUNT), tuple(sorted(self._accused)), tuple(sorted(self._guilty))),
            loss=noted.loss,
            metric=noted.metric,
            value=noted.value,
        )
        told = figures_of(Progress(report, noted.loss, noted.metric, noted.value))
        self._at_s, self._before, self._audits = now, moved, 0
        self._accused, self._guilty = set(), set()
        self._rounds = {number: kept for number, kept in self._rounds.items() if number > report.round}
        self._measure(now, told, figures)

    def _of(self, number: int) -> _Noted:
        return self._rounds.setdefault(number, _Noted())


def norm_of(update: Update) -> float:
    """L2, in the units of the weights."""
    values = decode_parts(update.exponents, mantissas_of(update.mantissas))
    return float(np.sqrt(np.dot(values, values)))


def _places(roster: RosterView, peers: Iterable[PeerId]) -> tuple[int, ...]:
    found = (roster.index_of(peer) for peer in peers)
    return tuple(sorted(place for place in found if place is not None))
