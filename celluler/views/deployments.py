"""Deployments as their owner sees them: versions behind one name, where they run, and what became of their requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class NewArm:
    """A version that is tried out. share: `10%` of the sessions."""

    name: str
    model: str
    share: str


@dataclass(frozen=True, slots=True)
class NewDeployment:
    """model: the stable version, by any reference. arms: tried out beside it. min_replicas, max_replicas: of each
    version; in_flight: requests under way that one replica is to have; latency_ms: above which there are more, 0 for
    none; keep_warm_s: how long what is not needed stays loaded. regions: where replicas may be, empty for anywhere.
    compare: share of predictions that are asked of a second arm, too."""

    name: str
    model: str
    arms: tuple[NewArm, ...] = ()
    min_replicas: int = 1
    max_replicas: int = 1
    in_flight: int = 8
    latency_ms: int = 0
    keep_warm_s: int = 300
    regions: tuple[str, ...] = ()
    compare: str = "0%"


@dataclass(frozen=True, slots=True)
class DeploymentChange:
    """What is to be another way; None and empty leave a thing as it is.

    model: a version that gets every session; with `share` that share of them, as the arm `arm`; with `blue_green` every
    session once it is ready. share without a model: of the arm that there is.
    """

    model: str | None = None
    share: str | None = None
    arm: str = "canary"
    blue_green: bool = False
    min_replicas: int | None = None
    max_replicas: int | None = None
    in_flight: int | None = None
    latency_ms: int | None = None
    keep_warm_s: int | None = None
    regions: tuple[str, ...] | None = None
    compare: str | None = None


@dataclass(frozen=True, slots=True)
class Replica:
    """A peer that was asked to keep a version loaded. ready: it said that it is."""

    peer: str
    region: str
    ready: bool


@dataclass(frozen=True, slots=True)
class ArmReport:
    """Since the node started. errors: by kind. cached: answered without asking the model. Milliseconds: so long half,
    95 and 99 of 100 answers took at most, None while there are none. tokens: of text alone. compared, agreed: samples
    that another arm was asked, too, and those where it said the same. under_way: now."""

    requests: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    cached: int = 0
    samples: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    mean_ms: float | None = None
    compared: int = 0
    agreed: int = 0
    under_way: int = 0


@dataclass(frozen=True, slots=True)
class DeploymentArm:
    """One version. share: of the sessions, from 0 to 1. wanted: replicas. failure: what the last attempt to get one
    came to, empty when it went well."""

    name: str
    model: str
    cid: str
    share: float
    wanted: int = 0
    replicas: tuple[Replica, ...] = ()
    failure: str = ""
    report: ArmReport = ArmReport()


@dataclass(frozen=True, slots=True)
class Deployment:
    """reference: what it is asked by. arms: `stable` first. incoming: what takes the place of all of them once it is
    ready. previous: the version that `stable` was before, empty for none. number: of changes. Times: Unix seconds."""

    name: str
    reference: str
    arms: tuple[DeploymentArm, ...]
    min_replicas: int
    max_replicas: int
    in_flight: int
    latency_ms: int
    keep_warm_s: int
    regions: tuple[str, ...]
    compare: float
    incoming: DeploymentArm | None
    previous: str
    number: int
    created_s: float
    changed_s: float


@dataclass(frozen=True, slots=True)
class AnswerCacheUsage:
    """Answers kept to be given again. limit_bytes: 0 where none are kept."""

    limit_bytes: int = 0
    used_bytes: int = 0
    answers: int = 0
    hits: int = 0
    misses: int = 0
    evicted: int = 0
