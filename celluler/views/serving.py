"""Models at work in a node."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in a worker of this node, or on its way there.

    model: `author/name:version`. state: `fetching`, `verifying`, `building`, `warming`, `ready` or `leaving`. progress:
    share of its weights that is here, while they are fetched. memory_bytes: what it is counted as. running, waiting:
    requests that are computed now, and that wait. batch: samples computed together lately, on average; 0 when nothing
    was. requests_s, tokens_s: a second, lately; requests: since it was loaded. device, dtype: on what and in what it
    computes, empty until it is built. loading_s: what it took to be ready. used_s: when it was last asked. kept: it
    makes room for no other, until kept_until_s; None of one that stays. names: those that go on meaning its author's
    current version while it is loaded.
    """

    model: str
    cid: str
    state: str
    progress: float | None
    memory_bytes: int
    running: int
    waiting: int
    batch: float
    requests_s: float
    tokens_s: float
    requests: int
    device: str
    dtype: str
    loading_s: float | None
    used_s: float
    kept: bool
    kept_until_s: float | None
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tally:
    """How many values were at most each bound, and more than the last: one count more than bounds. sum: of all."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float


@dataclass(frozen=True, slots=True)
class Serving:
    """What a node serves. memory_bytes, limit_bytes: of all models, and what they may take. batches: samples of each
    batch since the start; loads: seconds of each model that got ready, loads_failed those that did not."""

    models: tuple[LoadedModel, ...]
    memory_bytes: int
    limit_bytes: int
    batches: Tally
    loads: Tally
    loads_failed: int
