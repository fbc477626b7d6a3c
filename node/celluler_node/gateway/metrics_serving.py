"""Models at work, as Prometheus' families."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from celluler.views import Serving, Tally

if TYPE_CHECKING:
    from prometheus_client import Metric


def serving_families(serving: Serving) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415

    states = GaugeMetricFamily("celluler_models_loaded", "Models in workers here, by state", labels=["state"])
    for state in sorted({one.state for one in serving.models}):
        states.add_metric([state], sum(one.state == state for one in serving.models))
    yield states
    for name, text, value in (
        ("celluler_models_memory_bytes", "What models in workers are counted as", serving.memory_bytes),
        ("celluler_models_memory_limit_bytes", "What they may take", serving.limit_bytes),
    ):
        yield GaugeMetricFamily(name, text, value=value)
    memory = GaugeMetricFamily("celluler_model_memory_bytes", "What a model is counted as", labels=["model"])
    running = GaugeMetricFamily("celluler_model_running", "Requests that a model is at", labels=["model"])
    waiting = GaugeMetricFamily("celluler_model_waiting", "Requests that wait for a model", labels=["model"])
    asked = CounterMetricFamily("celluler_model_requests", "Requests since a model was loaded", labels=["model"])
    for one in serving.models:  # as many as fit into memory
        memory.add_metric([one.model], one.memory_bytes)
        running.add_metric([one.model], one.running)
        waiting.add_metric([one.model], one.waiting)
        asked.add_metric([one.model], one.requests)
    yield from (memory, running, waiting, asked)
    yield _tally("celluler_batch_samples", "Samples that a worker computed together", serving.batches)
    yield _tally("celluler_model_load_seconds", "From the first request to a model that is ready", serving.loads)
    yield CounterMetricFamily(
        "celluler_model_loads_failed", "Models that did not get ready", value=serving.loads_failed
    )


def _tally(name: str, text: str, tally: Tally) -> Metric:
    from prometheus_client.core import HistogramMetricFamily  # noqa: PLC0415

    family, running, told = HistogramMetricFamily(name, text), 0, []
    for bound, count in zip((*map(str, tally.bounds), "+Inf"), tally.counts, strict=True):
        running += count
        told.append((bound, float(running)))
    family.add_metric([], told, sum_value=tally.sum)
    return family
