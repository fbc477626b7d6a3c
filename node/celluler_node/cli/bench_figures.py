"""What a benchmark of a model came to. Pure: figures of samples that somebody measured."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Sample:
    """One request. latency_s: to the end of its answer; first_s: to its first token. tokens: that were drawn. failure:
    type of the error it ended with, else empty."""

    latency_s: float
    peer: str = ""
    first_s: float | None = None
    tokens: int = 0
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Spread:
    """Milliseconds. p50, p95, p99: as many hundredths took no longer."""

    mean: float
    p50: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class Load:
    """What was asked. kind: `predict`, `embed`, `text`. batch: samples of a request. concurrency: requests at once."""

    kind: str
    output: str
    requests: int
    concurrency: int
    batch: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Card:
    """seconds: of all requests together, after one that warmed up and took warm_up_s. failures: by type. peers: who
    answered how many. first_token_ms, tokens_per_s: of a model that writes, the latter of all requests together.
    memory_bytes: of the worker here, None where that is not known."""

    model: str
    cid: str
    load: Load
    seconds: float
    warm_up_s: float
    answered: int
    failures: dict[str, int]
    peers: dict[str, int]
    latency_ms: Spread | None
    first_token_ms: Spread | None
    requests_per_s: float
    samples_per_s: float
    tokens_per_s: float | None
    weights_bytes: int
    memory_bytes: int | None = None
    node: dict[str, str | int] = field(default_factory=dict)


def spread_of(seconds: Sequence[float]) -> Spread | None:
    """None of nothing."""
    if not seconds:
        return None
    ranked = sorted(1000 * one for one in seconds)

    def at(share: float) -> float:
        return ranked[max(0, math.ceil(share * len(ranked)) - 1)]

    return Spread(sum(ranked) / len(ranked), at(0.5), at(0.95), at(0.99), ranked[-1])


def card_of(
    model: str,
    cid: str,
    load: Load,
    samples: Sequence[Sample],
    seconds: float,
    *,
    warm_up_s: float,
    weights_bytes: int,
    memory_bytes: int | None = None,
    node: dict[str, str | int] | None = None,
) -> Card:
    answered = [one for one in samples if not one.failure]
    tokens = sum(one.tokens for one in answered)
    return Card(
        model=model,
        cid=cid,
        load=load,
        seconds=seconds,
        warm_up_s=warm_up_s,
        answered=len(answered),
        failures=dict(Counter(one.failure for one in samples if one.failure)),
        peers=dict(Counter(one.peer for one in answered)),
        latency_ms=spread_of([one.latency_s for one in answered]),
        first_token_ms=spread_of([one.first_s for one in answered if one.first_s is not None]),
        requests_per_s=len(answered) / seconds if seconds > 0 else 0.0,
        samples_per_s=len(answered) * load.batch / seconds if seconds > 0 else 0.0,
        tokens_per_s=tokens / seconds if load.kind == "text" and seconds > 0 else None,
        weights_bytes=weights_bytes,
        memory_bytes=memory_bytes,
        node=node or {},
    )
