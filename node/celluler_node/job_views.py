"""Jobs as a person sees them, from what the desk or a coordinator tells."""

from __future__ import annotations

from collections.abc import Sequence

from celluler.content.digest import Codec, Digest, cid_of
from celluler.jobs.states import JobEvent
from celluler.jobs.telemetry import Amount, RoundFigures
from celluler.views import (
    Exclusion,
    Job,
    JobCheckpoint,
    JobLine,
    JobReport,
    JobResult,
    JobSpec,
    PeerTraffic,
    RoundAudits,
    Suspected,
    TrainingRound,
)
from celluler_protocols.jobs_messages import Checkpointed, Facts, Outcome, from_figures
from celluler_protocols.jobs_orders import OpenedOrder


def job_view(order: OpenedOrder, events: Sequence[JobEvent], facts: Facts) -> Job:
    """events: all that are known, at least one."""
    record, last = order.signed.record, events[-1]
    metrics: dict[str, float] = {}
    for event in events:
        metrics.update(event.metrics)
    return Job(
        id=order.id,
        client_id=record.client_id,
        name=order.spec.name,
        kind=order.spec.kind,
        state=last.state.value,
        reason=next((event.reason for event in reversed(events) if event.reason or not event.metrics), ""),
        submitter=order.submitter,
        coordinator=record.coordinator,
        created_s=float(record.created_s),
        updated_s=last.at_s,
        members=facts.members,
        excluded=tuple(Exclusion(one.peer, one.reason, one.round) for one in facts.excluded),
        metrics=metrics,
        traffic=tuple(PeerTraffic(one.peer, one.sent_bytes, one.received_bytes) for one in facts.moved),
        result=None if facts.outcome is None else _result(facts.outcome),
    )


def job_report(order: OpenedOrder, events: Sequence[JobEvent], facts: Facts, since: int) -> JobReport:
    """The job, and its events after the cursor `since`."""
    lines = tuple(_line(event, facts.members) for event in events if event.cursor > since)
    return JobReport(job_view(order, events, facts), lines, events[-1].cursor)


def job_spec(order: OpenedOrder) -> JobSpec:
    return JobSpec(order.id, order.spec.model_dump(mode="json"))


def round_view(told: RoundFigures, members: Sequence[str]) -> TrainingRound:
    """members: of the job, by place; a place beyond them, of one that came when they were told, is named by it."""

    def name(place: int) -> str:
        return members[place] if place < len(members) else f"member {place}"

    def names(places: Sequence[int]) -> tuple[str, ...]:
        return tuple(map(name, places))

    def values(amounts: Sequence[Amount]) -> dict[str, float]:
        return {name(amount.member): amount.value for amount in amounts}

    return TrainingRound(
        round=told.round,
        views=told.views,
        contributed=names(told.contributed),
        no_weight=names(told.no_weight),
        absent=names(told.absent),
        expelled=names(told.expelled),
        suspended=names(told.suspended),
        credits=values(told.credits),
        seconds=told.seconds,
        suspected=tuple(Suspected(name(one.member), one.reason) for one in told.suspected),
        norms=values(told.norms),
        traffic=tuple(PeerTraffic(name(one.member), one.sent_bytes, one.received_bytes) for one in told.traffic),
        audits=RoundAudits(told.audits.done, names(told.audits.accused), names(told.audits.guilty)),
        loss=told.loss,
        metric=told.metric,
        value=told.value,
    )


def _line(event: JobEvent, members: Sequence[str]) -> JobLine:
    told = None if event.round is None else round_view(event.round, members)
    return JobLine(event.cursor, event.at_s, event.state.value, event.reason, dict(event.metrics), told)


def _result(outcome: Outcome) -> JobResult:
    return JobResult(
        outcome.model,
        cid_of(Digest(outcome.manifest), Codec.MANIFEST),
        cid_of(Digest(outcome.weights), Codec.MANIFEST),
        from_figures(outcome.figures),
    )


def checkpoint_view(told: Checkpointed) -> JobCheckpoint:
    result = _result(told.outcome)
    return JobCheckpoint(told.rounds, result.model, result.manifest, result.weights)
