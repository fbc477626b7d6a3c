"""A training as the person watching it needs it: what was told of it, added up. Draws nothing, asks nobody.

Time is an argument. Everything is recomputed from the rounds told, of which there are at most a thousand.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from celluler.models.names import PEER_ID_START
from celluler.quantities import format_bytes
from celluler.views import Job, JobCheckpoint, JobLine, TrainingRound, rounds_of
from celluler_node.cli.output import ending, printable

RATE_ROUNDS = 5
"""The last so many give the pace."""
ENDED = frozenset({"Succeeded", "Failed", "Cancelled"})


@dataclass(frozen=True, slots=True)
class Member:
    """One member over all rounds. counted: contributed, and the rule gave it weight. norm: of its newest update; None
    when it was not told. credits: None likewise. notes: what is held against it, the gravest first."""

    peer: str
    counted: int = 0
    no_weight: int = 0
    absent: int = 0
    norm: float | None = None
    sent_bytes: int = 0
    received_bytes: int = 0
    credits: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)  # without slots: what is computed of it is kept
class Training:
    """spec: the job's document, with defaults. names: nicknames by peer, as far as they are known. checkpoint: the
    newest that was found; as its publisher says, until somebody verifies it."""

    job: Job
    spec: Mapping[str, Any]
    events: tuple[JobLine, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    checkpoint: JobCheckpoint | None = None

    @cached_property
    def rounds(self) -> tuple[TrainingRound, ...]:
        return rounds_of(self.events)

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """In the job's order; who is only in the rounds comes after."""
        return _members(self.job, self.rounds)

    @property
    def ended(self) -> bool:
        return self.job.state in ENDED

    @property
    def total(self) -> int:
        """Rounds asked for."""
        return int(self.spec["train"]["rounds"])

    def document(self) -> dict[str, Any]:
        """All of it, for programs."""
        rounds = self.rounds
        return {
            "job": self.job,
            "spec": self.spec,
            "rounds": rounds,
            "seconds_a_round": pace(rounds),
            "checkpoint": self.checkpoint,
            "events": [event for event in self.events if not event.metrics],
        }


OnTold = Callable[[Training], Awaitable[None]]
"""Called when there is news of a training, one call at a time."""


def pace(rounds: Sequence[TrainingRound]) -> float | None:
    """Seconds a round takes now: the median of the last ones. None when no time was told."""
    seconds = [one.seconds for one in rounds[-RATE_ROUNDS:] if one.seconds is not None]
    return statistics.median(seconds) if seconds else None


def left_s(training: Training, now: float) -> float | None:
    """Seconds until the last round is done; None when nobody can say."""
    rounds = training.rounds
    rate = pace(rounds)
    if rate is None or training.job.state != "Running":
        return None
    last_s = max(event.at_s for event in training.events if event.metrics)
    return max(0.0, (training.total - rounds[-1].round) * rate - max(0.0, now - last_s))


def elapsed_s(training: Training, now: float) -> float:
    """Since the job was submitted, until now or its end."""
    return max(0.0, (training.job.updated_s if training.ended else now) - training.job.created_s)


def table(training: Training) -> tuple[tuple[str, ...], ...]:
    """The members for eyes: headings, then a row each; a column for what is known of anybody."""
    columns = [(heading, cell) for heading, cell in _COLUMNS if any(cell(one) for one in training.members)]
    headings = ("member", *(heading for heading, _ in columns))
    rows = ((name_of(training, one.peer), *(cell(one) for _, cell in columns)) for one in training.members)
    return headings, *rows


def name_of(training: Training, peer: str) -> str:
    """For eyes. A nickname proves nothing: the end of the peer id stands beside it."""
    known = training.names.get(peer, "")
    return printable(f"{known} {ending(peer)}".strip() if peer.startswith(PEER_ID_START) else peer)


def plan(training: Training) -> str:
    """What was asked for, in a line."""
    train, peers, model = training.spec["train"], training.spec["resources"]["peers"], training.spec["model"]
    steps = f"{train['inner_steps']} steps of {train['batch']}, {train['optimizer']} {train['learning_rate']:g}"
    ways = [str(train[key]) for key in ("aggregator", "consensus", "topology", "precision", "wire") if key in train]
    name = model if "/" in model else ending(model)
    return f"{name}; {steps}; {', '.join(ways)}; {peers['min']} to {peers['max']} peers"


# --- inside ------------------------------------------------------------------------------------------------------


def _times(count: int, one: Member) -> str:
    """Empty while no round told who was in it."""
    return str(count) if one.counted or one.no_weight or one.absent else ""


_COLUMNS: tuple[tuple[str, Callable[[Member], str]], ...] = (
    ("counted", lambda one: _times(one.counted, one)),
    ("no weight", lambda one: _times(one.no_weight, one)),
    ("absent", lambda one: _times(one.absent, one)),
    ("norm", lambda one: "" if one.norm is None else f"{one.norm:.3g}"),
    ("sent", lambda one: format_bytes(one.sent_bytes) if one.sent_bytes else ""),
    ("received", lambda one: format_bytes(one.received_bytes) if one.received_bytes else ""),
    ("credits", lambda one: "" if one.credits is None else f"{one.credits:.4g}"),
)


def _members(job: Job, rounds: Sequence[TrainingRound]) -> tuple[Member, ...]:
    counted, no_weight, absent = Counter[str](), Counter[str](), Counter[str]()
    sent, received = Counter[str](), Counter[str]()
    norms: dict[str, float] = {}
    credits_of: dict[str, float] = {}
    for one in rounds:
        counted.update(peer for peer in one.contributed if peer not in one.no_weight)
        no_weight.update(one.no_weight)
        absent.update(one.absent)
        norms.update(one.norms)
        credits_of.update(one.credits)
        for moved in one.traffic:
            sent[moved.peer] += moved.sent_bytes
            received[moved.peer] += moved.received_bytes
    for moved in job.traffic:  # told of the whole job: what its rounds do not tell
        sent[moved.peer] = max(sent[moved.peer], moved.sent_bytes)
        received[moved.peer] = max(received[moved.peer], moved.received_bytes)
    notes = _notes(job, rounds)
    peers = dict.fromkeys((*job.members, *counted, *no_weight, *absent, *notes))
    return tuple(
        Member(
            peer=peer,
            counted=counted[peer],
            no_weight=no_weight[peer],
            absent=absent[peer],
            norm=norms.get(peer),
            sent_bytes=sent[peer],
            received_bytes=received[peer],
            credits=credits_of.get(peer),
            notes=tuple(notes.get(peer, ())),
        )
        for peer in peers
    )


def _notes(job: Job, rounds: Sequence[TrainingRound]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}

    def note(peer: str, text: str) -> None:
        if text not in found.setdefault(peer, []):
            found[peer].append(text)

    for one in rounds:
        for peer in one.expelled:
            note(peer, f"expelled in round {one.round}")
    for excluded in job.excluded:
        note(excluded.peer, excluded.reason)
    for one in rounds:
        for peer in one.audits.guilty:
            note(peer, f"found guilty in an audit of round {one.round}")
        for peer in one.suspended:
            note(peer, f"suspended in round {one.round}")
    for (peer, reason), (count, last) in _suspicions(rounds).items():
        times = f", {count} times, the last" if count > 1 else ""
        note(peer, f"suspected: {reason}{times} in round {last}")
    return found


def _suspicions(rounds: Sequence[TrainingRound]) -> dict[tuple[str, str], tuple[int, int]]:
    """(peer, reason) → (in how many rounds, the last of them)."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for one in rounds:
        for peer, reason in {(each.peer, each.reason) for each in one.suspected}:
            found[peer, reason] = found.get((peer, reason), (0, 0))[0] + 1, one.round
    for one in rounds:
        for peer in one.audits.accused:
            if peer not in one.audits.guilty:
                count = found.get((peer, "accused in an audit"), (0, 0))[0]
                found[peer, "accused in an audit"] = count + 1, one.round
    return found
