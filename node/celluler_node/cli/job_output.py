"""How a job and its events are printed."""

from __future__ import annotations

from datetime import UTC, datetime

from celluler.client import AsyncJob
from celluler.quantities import format_duration
from celluler.views import Job, JobLine
from celluler_node.cli.output import Output, ending, printable


async def follow(output: Output, job: AsyncJob) -> bool:
    """Print events until the job has ended; whether it succeeded."""
    async for line in job.logs(follow=True, since=0):
        print_line(output, line)
    return (await job.refresh()).state == "Succeeded"


def print_line(output: Output, line: JobLine) -> None:
    if output.as_json:
        output.document(line)
        return
    figures = "  ".join(f"{name} {value:.4g}" for name, value in line.metrics.items())
    print(printable(f"{clock(line.at_s)}  {line.state:<10}  {line.reason}{figures}").rstrip(), flush=True)


def clock(at_s: float) -> str:
    """`14:03:59`, here."""
    return datetime.fromtimestamp(at_s, UTC).astimezone().strftime("%H:%M:%S")


def show_job(output: Output, job: Job) -> None:
    lines = {
        "job": job.id,
        "name": job.name,
        "kind": job.kind,
        "state": f"{job.state} ({job.reason})" if job.reason else job.state,
        "submitted by": job.submitter,
        "coordinated by": job.coordinator,
        "members": [ending(peer) for peer in job.members],
        "excluded": [f"{ending(one.peer)}: {one.reason}" for one in job.excluded],
        "figures": [f"{name} {value:.4g}" for name, value in job.metrics.items()],
        "took": format_duration(job.updated_s - job.created_s),
        "result": job.result and job.result.model,
        "manifest": job.result and job.result.manifest,
    }
    output.facts(job, lines)
