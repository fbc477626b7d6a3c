"""`celluler job`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from celluler.jobs.guarantees import guarantees
from celluler.jobs.spec import canonical_job, check_job, job_digest
from celluler.quantities import format_duration
from celluler_node.cli.job_output import follow as follow_job
from celluler_node.cli.job_output import print_line, show_job
from celluler_node.cli.output import Output, ending, say
from celluler_node.cli.session import NOBODY, Join, Json, open_session, run
from celluler_node.cli.submitting import Files, read_spec
from celluler_node.cli.submitting import submit as submit_job

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
    document, files = read_spec(spec), Files(data, architecture, weights)

    async def main() -> bool:
        async with open_session(join) as client:
            job = await submit_job(client, document, files, client_id=client_id)
            show_job(output, job.info)
            return await follow_job(output, job) if follow else True

    if not run(main):
        raise typer.Exit(1)


@app.command()
def validate(spec: SpecFile, json: Json = False) -> None:
    """Check a spec without a node, and say what its members could rely on and what not."""
    job = check_job(read_spec(spec))
    promised = guarantees(job.train.consensus, job.train.topology)
    document = {
        "valid": True,
        "name": job.name,
        "kind": job.kind,
        "digest": job_digest(job).hex(),
        "guaranteed": list(promised.given),
        "not_guaranteed": list(promised.not_given),
    }
    output = Output(as_json=json)
    output.facts(document, {"valid": f"{job.kind} {job.name}", "bytes": len(canonical_job(job))})
    if not json:
        way = f"{job.train.consensus} over a {job.train.topology}"
        say(f"\n{way} gives:\n" + "\n".join(f"  + {text}" for text in promised.given))
        say(f"{way} does not give:\n" + "\n".join(f"  - {text}" for text in promised.not_given))


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
            show_job(Output(as_json=json), (await client.jobs.get(job)).info)

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
                print_line(Output(as_json=json), line)

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
        show_job(Output(as_json=json), ended)
        return ended.state == "Succeeded"

    if not run(main):
        raise typer.Exit(1)


@app.command()
def cancel(job: JobId, join: Join = NOBODY, json: Json = False) -> None:
    """Cancel a job of yours."""

    async def main() -> None:
        async with open_session(join) as client:
            show_job(Output(as_json=json), await (await client.jobs.get(job)).cancel())

    run(main)
