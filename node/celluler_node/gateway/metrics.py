"""`/metrics` in Prometheus' text form: a status of the node, read when asked, and whatever else the node counts.

prometheus-client is imported at the first scrape: a node that nobody scrapes does not carry it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from celluler.identity import short
from celluler.views import AnswerCacheUsage, Deployment, Serving, Status
from celluler_node.gateway.asking import Asking
from celluler_node.gateway.asking_text import AskingText
from celluler_node.gateway.counted import Counted, Histogram
from celluler_node.gateway.metrics_deployments import cache_families, deployment_families
from celluler_node.gateway.metrics_serving import serving_families
from celluler_node.operations import Operations

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def metrics_route(
    operations: Operations, asking: Asking, texts: AskingText, registry: CollectorRegistry | None
) -> Route:
    """registry: the node's own counters, served after the status."""

    async def metrics(_request: Request) -> Response:
        told = await operations.status(), await operations.serving()
        deployed = await operations.deployments(), await operations.answer_cache()
        text = _render(*told, *deployed, asking, texts, registry)
        return Response(text, media_type=CONTENT_TYPE)

    return Route("/metrics", metrics)


def _render(
    status: Status,
    serving: Serving,
    deployments: Sequence[Deployment],
    kept: AnswerCacheUsage,
    asking: Asking,
    texts: AskingText,
    registry: CollectorRegistry | None,
) -> bytes:
    from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415
    from prometheus_client.registry import Collector  # noqa: PLC0415

    class Snapshot(Collector):
        def collect(self) -> Iterator[Metric]:
            yield from _families(status)
            yield from serving_families(serving)
            yield from deployment_families(deployments)
            yield from cache_families(kept)
            yield from _work(asking)
            yield from _writing(asking.counted, texts)

    own = CollectorRegistry()
    own.register(Snapshot())
    return generate_latest(own) + (generate_latest(registry) if registry else b"")


def _families(status: Status) -> Iterator[Metric]:
    from prometheus_client.core import (  # noqa: PLC0415
        CounterMetricFamily,
        GaugeMetricFamily,
        InfoMetricFamily,
    )

    yield InfoMetricFamily("celluler_node", "Who this node is", {"peer_id": status.peer_id, "version": status.version})
    gauges = (
        ("celluler_uptime_seconds", "Since the node started", status.uptime_s),
        ("celluler_members", "Live members of the swarm, this node included", status.members),
        ("celluler_models", "Models known here", status.models),
        ("celluler_store_used_bytes", "What counts against the quota", status.store.used_bytes),
        ("celluler_store_quota_bytes", "The most that content may take", status.store.quota_bytes),
    )
    for name, text, value in gauges:
        yield GaugeMetricFamily(name, text, value=value)
    yield CounterMetricFamily("celluler_violations", "Breaches of protocol by peers", value=status.violations)
    jobs = GaugeMetricFamily("celluler_jobs", "Jobs by state", labels=["state"])
    for state, count in status.jobs.items():
        jobs.add_metric([state], count)
    yield jobs
    traffic = CounterMetricFamily("celluler_traffic_bytes", "Bytes of streams by peer", labels=["peer", "direction"])
    for one in status.traffic:
        traffic.add_metric([short(one.peer), "sent"], one.sent_bytes)
        traffic.add_metric([short(one.peer), "received"], one.received_bytes)
    yield traffic


def _work(asking: Asking) -> Iterator[Metric]:
    """What the endpoint itself did."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415

    counted = asking.counted
    yield _histogram(
        "celluler_http_request_seconds",
        "From a request's head to the last byte of its answer",
        ("method", "route", "status"),
        counted.requests,
    )
    errors = CounterMetricFamily("celluler_http_errors", "Requests answered with an error", labels=["route", "kind"])
    for labels, count in counted.errors.items():
        errors.add_metric(labels, count)
    yield errors
    yield _histogram(
        "celluler_prediction_seconds", "Predictions asked for here, waiting included", ("model",), counted.predictions
    )
    yield _histogram("celluler_prediction_samples", "Samples of a prediction", ("model",), counted.batches)
    yield GaugeMetricFamily("celluler_predictions_at_work", "Predictions being made", value=asking.at_work)
    yield GaugeMetricFamily("celluler_predictions_waiting", "Predictions that wait for a place", value=asking.waiting)
    failed = CounterMetricFamily("celluler_predictions_failed", "Predictions that failed", labels=["kind"])
    for kind, count in counted.refused.items():
        failed.add_metric([kind], count)
    yield failed


def _writing(counted: Counted, texts: AskingText) -> Iterator[Metric]:
    """Answers that models wrote for this endpoint."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415

    for name, text, values in (
        ("celluler_first_token_seconds", "From a question to the first token of its answer", counted.first_words),
        ("celluler_generation_seconds", "From a question to the last token of its answer", counted.answers),
        ("celluler_generation_tokens_per_second", "Of an answer, from its first token on", counted.rates),
    ):
        yield _histogram(name, text, ("model",), values)
    tokens = CounterMetricFamily(
        "celluler_tokens",
        "Tokens of prompts, those of them not computed again, and tokens drawn",
        labels=["model", "kind"],
    )
    for labels, count in counted.tokens.items():
        tokens.add_metric(labels, count)
    yield tokens
    yield GaugeMetricFamily("celluler_generations_under_way", "Answers being written or waiting", value=texts.under_way)
    yield GaugeMetricFamily("celluler_generations_silent", "Of these, without a word yet", value=texts.silent)
    failed = CounterMetricFamily("celluler_generations_failed", "Answers that failed", labels=["kind"])
    for kind, count in counted.not_written.items():
        failed.add_metric([kind], count)
    yield failed


def _histogram(name: str, text: str, labels: tuple[str, ...], values: Histogram) -> Metric:
    from prometheus_client.core import HistogramMetricFamily  # noqa: PLC0415

    family = HistogramMetricFamily(name, text, labels=labels)
    for given, buckets, total in values.read():
        family.add_metric(given, buckets, sum_value=total)
    return family
