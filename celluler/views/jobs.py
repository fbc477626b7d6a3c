"""Jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from celluler.views.swarm import PeerTraffic
from celluler.views.training import TrainingRound


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to submit.

    client_id: chosen by the client; the same submitter sending the same one again gets the job it already has.
    spec: the document, JSON or YAML text. attachments: CIDs the job needs that may be nowhere but here; they are handed
    over before submission is answered.
    """

    client_id: str
    spec: str
    attachments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Exclusion:
    """A peer whose contribution was not used, and why."""

    peer: str
    reason: str
    round: int | None = None


@dataclass(frozen=True, slots=True)
class JobResult:
    """What a finished job left: the published model, its manifest's and its weights' CIDs, final metrics."""

    model: str
    manifest: str
    weights: str
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """A job as its coordinator last told it. metrics: the newest of each name."""

    id: str
    client_id: str
    name: str
    kind: str
    state: str
    reason: str
    submitter: str
    coordinator: str
    created_s: float
    updated_s: float
    members: tuple[str, ...] = ()
    excluded: tuple[Exclusion, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    traffic: tuple[PeerTraffic, ...] = ()
    result: JobResult | None = None


@dataclass(frozen=True, slots=True)
class JobLine:
    """One event of a job. cursor: its place; ask for events since it. metrics: what was measured then, if anything.

    round: of a training, the round that was certified then.
    """

    cursor: int
    at_s: float
    state: str
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    round: TrainingRound | None = None


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What was asked for. spec: the document with every default filled in."""

    job: str
    spec: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class JobChange:
    """What its submitter may still change of a job that goes on; None leaves a thing as it is.

    deadline_s: from submission, as in the spec. priority: 0…9. max_peers: how many may take part.
    """

    deadline_s: int | None = None
    priority: int | None = None
    max_peers: int | None = None


@dataclass(frozen=True, slots=True)
class JobCheckpoint:
    """What a training has come to so far, published. rounds: how many are in it. model: `author/name:version`;
    manifest and weights: CIDs."""

    rounds: int
    model: str
    manifest: str
    weights: str


@dataclass(frozen=True, slots=True)
class StoppedJob:
    """A job that was stopped, and where it can be taken up again."""

    job: Job
    checkpoint: JobCheckpoint


@dataclass(frozen=True, slots=True)
class JobInvite:
    """invite: what its node shows to join the job's run late. job and peer: ids. expires_s: Unix time."""

    invite: str
    job: str
    peer: str
    expires_s: float


@dataclass(frozen=True, slots=True)
class JobReport:
    """A job and its events after the cursor asked for. cursor: what to ask with next."""

    job: Job
    events: tuple[JobLine, ...]
    cursor: int


def rounds_of(events: Iterable[JobLine]) -> tuple[TrainingRound, ...]:
    """The rounds that a job's events tell of, ascending; of a round that was told twice, as when the job was queued
    again, the last. An event with figures and without a round gives one with what the figures say."""
    found: dict[int, TrainingRound] = {}
    before_s: float | None = None
    for event in events:
        if event.round is not None:
            found[event.round.round] = event.round
        elif "round" in event.metrics:
            told = event.metrics
            number, seconds = int(told["round"]), None if before_s is None else event.at_s - before_s
            found[number] = TrainingRound(number, int(told.get("views", 1)), seconds=seconds, loss=told.get("loss"))
        if event.state == "Running":
            before_s = event.at_s
    return tuple(found[number] for number in sorted(found))
