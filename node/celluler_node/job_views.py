"""Jobs as a person sees them, from what the desk or a coordinator tells."""

from __future__ import annotations

from collections.abc import Sequence

from celluler.content.digest import Codec, Digest, cid_of
from celluler.jobs.states import JobEvent
from celluler.views import Exclusion, Job, JobLine, JobReport, JobResult, PeerTraffic
from celluler_protocols.jobs_messages import Facts, OpenedOrder, Outcome, from_figures


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
    lines = tuple(
        JobLine(event.cursor, event.at_s, event.state.value, event.reason, dict(event.metrics))
        for event in events
        if event.cursor > since
    )
    return JobReport(job_view(order, events, facts), lines, events[-1].cursor)


def _result(outcome: Outcome) -> JobResult:
    return JobResult(
        outcome.model,
        cid_of(Digest(outcome.manifest), Codec.MANIFEST),
        cid_of(Digest(outcome.weights), Codec.MANIFEST),
        from_figures(outcome.figures),
    )
