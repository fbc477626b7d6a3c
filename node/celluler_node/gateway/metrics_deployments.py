"""Deployments and kept answers, as Prometheus' families. As many arms as there may be deployments, times eight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from celluler.views import AnswerCacheUsage, Deployment

if TYPE_CHECKING:
    from prometheus_client import Metric

_ARM = ("deployment", "arm")


def deployment_families(deployments: Sequence[Deployment]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415

    asked = CounterMetricFamily("celluler_deployment_requests", "Requests of an arm", labels=_ARM)
    failed = CounterMetricFamily("celluler_deployment_errors", "Of those, that failed", labels=(*_ARM, "kind"))
    tokens = CounterMetricFamily("celluler_deployment_tokens", "Of texts", labels=(*_ARM, "kind"))
    took = GaugeMetricFamily(
        "celluler_deployment_seconds", "What this share of answers took at most", labels=(*_ARM, "quantile")
    )
    share = GaugeMetricFamily("celluler_deployment_share", "Of the sessions", labels=_ARM)
    ready = GaugeMetricFamily("celluler_deployment_replicas", "Peers that keep it loaded", labels=_ARM)
    wanted = GaugeMetricFamily("celluler_deployment_replicas_wanted", "As many as there should be", labels=_ARM)
    compared = CounterMetricFamily("celluler_deployment_compared", "Samples that two arms were asked", labels=_ARM)
    agreed = CounterMetricFamily("celluler_deployment_agreed", "Of those, where both said the same", labels=_ARM)
    for one in deployments:
        for arm in one.arms:
            name, told = [one.name, arm.name], arm.report
            asked.add_metric(name, told.requests)
            for kind, count in told.errors.items():
                failed.add_metric([*name, kind], count)
            tokens.add_metric([*name, "prompt"], told.prompt_tokens)
            tokens.add_metric([*name, "generated"], told.generated_tokens)
            for quantile, ms in (("0.5", told.p50_ms), ("0.95", told.p95_ms), ("0.99", told.p99_ms)):
                if ms is not None:
                    took.add_metric([*name, quantile], ms / 1000)
            share.add_metric(name, arm.share)
            ready.add_metric(name, sum(replica.ready for replica in arm.replicas))
            wanted.add_metric(name, arm.wanted)
            compared.add_metric(name, told.compared)
            agreed.add_metric(name, told.agreed)
    yield from (asked, failed, tokens, took, share, ready, wanted, compared, agreed)


def cache_families(usage: AnswerCacheUsage) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415

    asked = CounterMetricFamily("celluler_answer_cache_asked", "Whether an answer was kept", labels=["result"])
    asked.add_metric(["hit"], usage.hits)
    asked.add_metric(["miss"], usage.misses)
    yield asked
    yield CounterMetricFamily("celluler_answer_cache_evicted", "Answers that made room", value=usage.evicted)
    yield GaugeMetricFamily("celluler_answer_cache_bytes", "What kept answers take", value=usage.used_bytes)
    yield GaugeMetricFamily("celluler_answer_cache_limit_bytes", "What they may take", value=usage.limit_bytes)
