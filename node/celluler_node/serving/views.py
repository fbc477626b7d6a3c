"""What a model server has loaded, as a person sees it."""

from __future__ import annotations

import math
import time

import trio

from celluler.content.digest import Codec, cid_of
from celluler.views import LoadedModel, Serving, Tally
from celluler_node.repository import Repository
from celluler_node.serving.figures import Buckets
from celluler_node.serving.loading import Loaded, State
from celluler_node.serving.server import ModelServer


def serving_view(server: ModelServer, repository: Repository) -> Serving:
    figures = server.figures
    return Serving(
        models=tuple(loaded_view(one, server, repository) for one in server.models),
        memory_bytes=server.models.used_bytes,
        limit_bytes=server.models.limit_bytes,
        batches=_tally(figures.batches),
        loads=_tally(figures.loads),
        loads_failed=figures.failed,
    )


def nothing_served() -> Serving:
    """Of a peer that runs no models."""
    return Serving((), 0, 0, Tally((), (0,), 0.0), Tally((), (0,), 0.0), 0)


def loaded_view(one: Loaded, server: ModelServer, repository: Repository) -> LoadedModel:
    now = trio.current_time()
    batching = (0, 0) if one.batching is None else (one.batching.running, one.batching.waiting)
    writing = (0, 0) if one.writing is None else (one.writing.running, one.writing.waiting)
    until, batches = server.models.kept_until(one), one.batches.per_second(now)
    return LoadedModel(
        model=repository.held(one.opened).name,
        cid=cid_of(one.opened.digest, Codec.MANIFEST),
        state=one.state.value,
        progress=_progress(one, repository),
        memory_bytes=one.byte_count,
        running=batching[0] + writing[0],
        waiting=batching[1] + writing[1],
        batch=one.samples.per_second(now) / batches if batches > 1e-6 else 0.0,
        requests_s=one.requests.per_second(now),
        tokens_s=one.tokens.per_second(now),
        requests=one.requests.total,
        device=one.device,
        dtype=one.dtype,
        loading_s=one.loading_s,
        used_s=one.used_s,
        kept=until is not None,
        kept_until_s=None if until is None or math.isinf(until) else time.time() + until - now,
        names=server.following.names_of(one.opened.digest),
    )


def _progress(one: Loaded, repository: Repository) -> float | None:
    if one.state is not State.FETCHING:
        return None
    told = repository.fetched(one.opened)
    return None if told is None else told[0] / told[1]


def _tally(buckets: Buckets) -> Tally:
    return Tally(buckets.bounds, tuple(buckets.counts), buckets.sum)
