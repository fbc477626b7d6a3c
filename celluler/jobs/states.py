"""The life of a job: a table of states, and the list of what happened with a cursor to read on from.

Time is an argument. Knows nothing of what makes a job move on, nor of who may watch it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from celluler.errors import LocalError
from celluler.jobs.telemetry import RoundFigures

MAX_EVENTS = 4096
MAX_REASON_BYTES = 1024
MAX_METRICS = 32
MAX_METRIC_NAME_BYTES = 64


class JobState(Enum):
    PENDING = "Pending"
    QUEUED = "Queued"
    FETCHING = "Fetching"
    RUNNING = "Running"
    VERIFYING = "Verifying"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"

    @property
    def ended(self) -> bool:
        return not TRANSITIONS[self]


_S = JobState
_STOPS = frozenset({_S.FAILED, _S.CANCELLED})
TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    _S.PENDING: frozenset({_S.QUEUED, _S.FETCHING}) | _STOPS,
    _S.QUEUED: frozenset({_S.QUEUED, _S.FETCHING}) | _STOPS,  # queued again: the reason has changed
    _S.FETCHING: frozenset({_S.QUEUED, _S.RUNNING}) | _STOPS,
    _S.RUNNING: frozenset({_S.QUEUED, _S.VERIFYING}) | _STOPS,  # queued again: a retry
    _S.VERIFYING: frozenset({_S.QUEUED, _S.SUCCEEDED}) | _STOPS,
    _S.SUCCEEDED: frozenset(),
    _S.FAILED: frozenset(),
    _S.CANCELLED: frozenset(),
}
NEEDS_REASON = frozenset({_S.QUEUED, _S.FAILED})


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened. cursor: 1 for the first. state: the one after it. metrics: measured then (`loss`).

    round: of a training, what is told of the round that these metrics are of.
    """

    cursor: int
    at_s: float
    state: JobState
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    round: RoundFigures | None = None


class JobLife:
    """One job's states and events. Above MAX_EVENTS the oldest is forgotten, measurements before changes of state."""

    def __init__(self, now: float, reason: str = "") -> None:
        """A new job, Pending."""
        self._events = [JobEvent(1, now, JobState.PENDING, _bounded(reason))]

    @classmethod
    def restore(cls, events: Iterable[JobEvent]) -> JobLife:
        """A life from its events, as another node or a file tells them. Raises LocalError when they make no life."""
        told = list(events)
        if not told or told[0].state is not JobState.PENDING or len(told) > MAX_EVENTS:
            raise LocalError(f"a job's events begin with Pending and are at most {MAX_EVENTS}")
        for before, after in itertools.pairwise(told):
            if after.cursor <= before.cursor or after.at_s < before.at_s:
                raise LocalError("a job's events must go forward")
            if after.state is not before.state and after.cursor == before.cursor + 1:  # else something was forgotten
                _check_move(before.state, after.state, after.reason)
        life = cls(told[0].at_s)
        life._events = told
        return life

    @property
    def state(self) -> JobState:
        return self._events[-1].state

    @property
    def reason(self) -> str:
        """Why it is in this state: given with the last change of state, or of reason, not with a measurement."""
        return next((event.reason for event in reversed(self._events) if event.reason or not event.metrics), "")

    @property
    def ended(self) -> bool:
        return self.state.ended

    @property
    def cursor(self) -> int:
        """Of the newest event."""
        return self._events[-1].cursor

    @property
    def created_s(self) -> float:
        return self._events[0].at_s

    @property
    def updated_s(self) -> float:
        return self._events[-1].at_s

    @property
    def events(self) -> tuple[JobEvent, ...]:
        return tuple(self._events)

    @property
    def metrics(self) -> dict[str, float]:
        """The newest value of each name."""
        newest: dict[str, float] = {}
        for event in self._events:
            newest.update(event.metrics)
        return newest

    def since(self, cursor: int) -> tuple[JobEvent, ...]:
        """Events after the cursor; 0 for all."""
        return tuple(event for event in self._events if event.cursor > cursor)

    def move(self, state: JobState, now: float, reason: str = "") -> JobEvent:
        """Change state. Raises LocalError for a move that the table does not have or that lacks its reason."""
        _check_move(self.state, state, reason)
        return self._append(state, now, _bounded(reason), {})

    def measure(self, now: float, metrics: Mapping[str, float], round_figures: RoundFigures | None = None) -> JobEvent:
        """Note figures without changing state. Raises LocalError when the job has ended or a figure is not finite."""
        if self.ended:
            raise LocalError(f"the job has ended as {self.state.value}")
        if not 1 <= len(metrics) <= MAX_METRICS or not all(math.isfinite(value) for value in metrics.values()):
            raise LocalError(f"1 to {MAX_METRICS} finite figures at a time")
        if not all(1 <= len(name.encode("utf-8")) <= MAX_METRIC_NAME_BYTES for name in metrics):
            raise LocalError(f"a figure's name has 1 to {MAX_METRIC_NAME_BYTES} bytes")
        figures = {name: float(value) for name, value in metrics.items()}
        return self._append(self.state, now, "", figures, round_figures)

    def _append(
        self,
        state: JobState,
        now: float,
        reason: str,
        metrics: Mapping[str, float],
        round_figures: RoundFigures | None = None,
    ) -> JobEvent:
        at_s = max(now, self.updated_s)  # clocks are set back
        event = JobEvent(self.cursor + 1, at_s, state, reason, metrics, round_figures)
        self._events.append(event)
        if len(self._events) > MAX_EVENTS:
            oldest = next((place for place, old in enumerate(self._events) if old.metrics), 1)
            del self._events[oldest]
        return event


def _check_move(old: JobState, new: JobState, reason: str) -> None:
    if new not in TRANSITIONS[old]:
        raise LocalError(f"a job that is {old.value} cannot become {new.value}")
    if new in NEEDS_REASON and not reason:
        raise LocalError(f"{new.value} needs a reason")


def _bounded(reason: str) -> str:
    return reason.encode("utf-8", "replace")[:MAX_REASON_BYTES].decode("utf-8", "ignore")


def match_job(ids: Iterable[str], text: str) -> str | None:
    """The one id that `text` is, or that ends in it (six characters at least); None when none or several do."""
    known = list(ids)
    if text in known:
        return text
    ending = [name for name in known if len(text) >= 6 and name.endswith(text)]
    return ending[0] if len(ending) == 1 else None
