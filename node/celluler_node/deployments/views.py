"""Deployments from and to what a person writes and sees."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from celluler import views
from celluler.inference.deployments import WHOLE, Arm, Deployment, Scale, read_share, resize, with_trials
from celluler.views import ArmReport, DeploymentArm, DeploymentChange, NewDeployment, Replica
from celluler_node.deployments.book import ArmState


class States(Protocol):
    """Where the state of an arm is found."""

    def state(self, name: str, cid: str) -> ArmState: ...


def new_deployment(new: NewDeployment, stable: Arm, arms: tuple[Arm, ...], now: float) -> Deployment:
    """Raises InvalidSpec."""
    return Deployment(
        name=new.name,
        arms=with_trials(stable, arms),
        scale=Scale(new.min_replicas, new.max_replicas, new.in_flight, new.latency_ms, new.keep_warm_s),
        regions=new.regions,
        compare=read_share(new.compare, "compare"),
        created_s=int(now),
        changed_s=int(now),
    )


def changed_scale(old: Deployment, change: DeploymentChange, now: float) -> Deployment:
    """The same where nothing is said of it. Raises InvalidSpec."""
    scale, said = old.scale, change
    least = scale.least if said.min_replicas is None else said.min_replicas
    most = scale.most if said.max_replicas is None else said.max_replicas
    wanted = Scale(
        least,
        max(most, least) if said.max_replicas is None else most,
        scale.in_flight if said.in_flight is None else said.in_flight,
        scale.latency_ms if said.latency_ms is None else said.latency_ms,
        scale.keep_warm_s if said.keep_warm_s is None else said.keep_warm_s,
    )
    regions = old.regions if said.regions is None else said.regions
    compare = old.compare if said.compare is None else read_share(said.compare, "compare")
    if (wanted, regions, compare) == (old.scale, old.regions, old.compare):
        return old
    return resize(old, now, scale=wanted, regions=regions, compare=compare)


def deployment_view(one: Deployment, desk: States) -> views.Deployment:
    return views.Deployment(
        name=one.name,
        reference=one.reference,
        arms=tuple(_arm_view(arm, desk.state(one.name, arm.cid)) for arm in one.arms),
        min_replicas=one.scale.least,
        max_replicas=one.scale.most,
        in_flight=one.scale.in_flight,
        latency_ms=one.scale.latency_ms,
        keep_warm_s=one.scale.keep_warm_s,
        regions=one.regions,
        compare=one.compare / WHOLE,
        incoming=None
        if one.incoming is None
        else replace(_arm_view(one.incoming, desk.state(one.name, one.incoming.cid)), share=0.0),
        previous="" if one.previous is None else one.previous.model,
        number=one.number,
        created_s=float(one.created_s),
        changed_s=float(one.changed_s),
    )


def _arm_view(arm: Arm, state: ArmState) -> DeploymentArm:
    return DeploymentArm(
        name=arm.name,
        model=arm.model,
        cid=arm.cid,
        share=arm.share / WHOLE,
        wanted=state.wanted,
        replicas=tuple(Replica(peer, region, ready) for peer, region, ready in state.replicas.all),
        failure=state.failure,
        report=_report(state),
    )


def _report(state: ArmState) -> ArmReport:
    counts, latencies = state.counts, state.counts.latencies

    def ms(share: float) -> float | None:
        told = latencies.quantile(share)
        return None if told is None else told * 1000

    return ArmReport(
        requests=counts.requests,
        errors=dict(counts.errors),
        cached=counts.cached,
        samples=counts.samples,
        prompt_tokens=counts.prompt_tokens,
        generated_tokens=counts.generated_tokens,
        p50_ms=ms(0.5),
        p95_ms=ms(0.95),
        p99_ms=ms(0.99),
        mean_ms=1000 * latencies.sum_s / latencies.count if latencies.count else None,
        compared=counts.compared,
        agreed=counts.agreed,
        under_way=state.demand.under_way,
    )
