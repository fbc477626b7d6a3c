"""`celluler job`."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from celluler.client import AsyncClient, AsyncJob
from celluler.errors import InvalidSpec, LocalError
from celluler.jobs.spec import canonical_job, check_job, job_digest, read_document
from celluler.quantities import format_bytes, format_duration
from celluler.views import Job, JobLine
from celluler_node.cli.output import Output, ending, say
from celluler_node.cli.session import NOBODY, Join, Json, open_session, run

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
APPS = {"job": app}
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id, or its last 6 characters or more.")]
SpecFile = Annotated[str, typer.Argument(metavar="SPEC", help="YAML or JSON file; - for stdin.")]


@app.command()
def submit(
    spec: SpecFile,
    data: Annotated[Path | None, typer.Option(help="Dataset file: added first, its CID becomes data.cid.")] = None,
    architecture: Annotated[
        Path | None, typer.Option(help="Architecture file: published first as the spec's model.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights of that architecture; else initial ones.")] = None,
    client_id: Annotated[str, typer.Option(help="Submitting it again gives the same job.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print events until the job has ended.")] = False,
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """Submit a job. With --follow the exit code tells how it ended."""
    output = Output(as_json=json)
    document = _document(spec)

    async def main() -> bool:
        async with open_session(join) as client:
            attachments = await _attach(client, document, data, architecture, weights)
            check_job(document)  # here, where the place in the file is known, and again at the node
            job = await client.jobs.submit(document, client_id=client_id or None, attachments=attachments)
            _show(output, job.info)
            return await _follow(output, job) if follow else True

    if not run(main):
        raise typer.Exit(1)


@app.command()
def validate(spec: SpecFile, json: Json = False) -> None:
    """Check a spec without a node."""
    job = check_job(_document(spec))
    document = {"valid": True, "name": job.name, "kind": job.kind, "digest": job_digest(job).hex()}
    Output(as_json=json).facts(document, {"valid": f"{job.kind} {job.name}", "bytes": len(canonical_job(job))})


@app.command()
def ls(join: Join = NOBODY, json: Json = False) -> None:
    """Jobs, newest first."""

    async def main() -> None:
        async with open_session(join) as client:
            jobs = await client.jobs.ls()
        now = time.time()
        rows = (
            (ending(j.id), j.name, j.kind, j.state, format_duration(max(0.0, now - j.created_s)), j.reason)
            for j in jobs
        )
        Output(as_json=json).listing("jobs", jobs, ("job", "name", "kind", "state", "age", "reason"), rows)

    run(main)


@app.command()
def show(job: JobId, join: Join = NOBODY, json: Json = False) -> None:
    """One job."""

    async def main() -> None:
        async with open_session(join) as client:
            _show(Output(as_json=json), (await client.jobs.get(job)).info)

    run(main)


@app.command()
def logs(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job has ended.")] = False,
    since: Annotated[int, typer.Option(help="Only events after this cursor.")] = 0,
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """What happened: changes of state with reasons, and figures."""

    async def main() -> None:
        async with open_session(join) as client:
            async for line in (await client.jobs.get(job)).logs(follow=follow, since=since):
                _print_line(Output(as_json=json), line)

    run(main)


@app.command()
def wait(
    job: JobId,
    timeout: Annotated[float, typer.Option(help="Seconds; 0 for as long as it takes.")] = 0.0,
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """Wait until a job has ended. Exit code 0 when it succeeded, 1 when not, 6 when it did not end in time."""

    async def main() -> bool:
        async with open_session(join) as client:
            ended = await (await client.jobs.get(job)).wait(timeout or None)
        _show(Output(as_json=json), ended)
        return ended.state == "Succeeded"

    if not run(main):
        raise typer.Exit(1)


@app.command()
def cancel(job: JobId, join: Join = NOBODY, json: Json = False) -> None:
    """Cancel a job of yours."""

    async def main() -> None:
        async with open_session(join) as client:
            _show(Output(as_json=json), await (await client.jobs.get(job)).cancel())

    run(main)


# --- submitting --------------------------------------------------------------------------------------------------


def _document(spec: str) -> dict[str, Any]:
    try:
        text = sys.stdin.buffer.read(1 << 20) if spec == "-" else Path(spec).read_bytes()
    except OSError as error:
        raise LocalError(f"cannot read {spec}: {error.strerror}") from None
    document = read_document(text)
    if not isinstance(document, dict):
        raise InvalidSpec("", "a job is a mapping", hint="see docs/reference/job-spec.md")
    return document


async def _attach(
    client: AsyncClient,
    document: dict[str, Any],
    data: Path | None,
    architecture: Path | None,
    weights: Path | None,
) -> list[str]:
    """Add what was given as files, write their CIDs into the document; returns all of them."""
    attached = []
    if data is not None:
        part = document.setdefault("data", {})
        if not isinstance(part, dict):
            raise InvalidSpec("data", "not a mapping")
        blob = await client.blobs.add(data, kind="dataset")
        say(f"added {data} ({format_bytes(blob.total_bytes)})")
        part["cid"] = blob.cid
        attached.append(blob.cid)
    if architecture is not None:
        model = await client.models.add(str(document.get("model")), architecture, weights=weights)
        say(f"published {model.reference} ({model.parameters} parameters)")
        document["model"] = model.cid
        attached += [model.cid, model.weights]
    elif weights is not None:
        raise LocalError("--weights goes with --architecture")
    return attached


# --- showing -----------------------------------------------------------------------------------------------------


async def _follow(output: Output, job: AsyncJob) -> bool:
    async for line in job.logs(follow=True, since=0):
        _print_line(output, line)
    return (await job.refresh()).state == "Succeeded"


def _print_line(output: Output, line: JobLine) -> None:
    if output.as_json:
        output.document(line)
        return
    at = datetime.fromtimestamp(line.at_s, UTC).astimezone().strftime("%H:%M:%S")
    figures = "  ".join(f"{name} {value:.4g}" for name, value in line.metrics.items())
    print(f"{at}  {line.state:<10}  {line.reason}{figures}".rstrip(), flush=True)


def _show(output: Output, job: Job) -> None:
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
