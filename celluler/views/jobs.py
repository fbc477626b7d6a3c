"""Jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from celluler.views.swarm import PeerTraffic


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
    """One event of a job. cursor: its place; ask for events since it. metrics: what was measured then, if anything."""

    cursor: int
    at_s: float
    state: str
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobReport:
    """A job and its events after the cursor asked for. cursor: what to ask with next."""

    job: Job
    events: tuple[JobLine, ...]
    cursor: int
