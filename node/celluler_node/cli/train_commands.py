"""`celluler train`. What is heavy is imported by the command that needs it, so that `--help` answers at once."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from celluler.errors import LocalError, NotFound
from celluler_node.cli.calibrate_command import calibrate
from celluler_node.cli.invite_commands import invite
from celluler_node.cli.invite_commands import join as join_by_invite
from celluler_node.cli.job_output import show_job
from celluler_node.cli.output import Output, ending, say
from celluler_node.cli.session import NOBODY, Join, Json, open_session, run

if TYPE_CHECKING:
    from celluler.client import AsyncClient, AsyncJob
    from celluler.views import JobCheckpoint

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
APPS = {"train": app}
NONE: list[str] = []
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id, or its last 6 characters or more.")]
Plot = Annotated[Path | None, typer.Option(metavar="FILE", help="Draw curves into this .png or .html file.")]
ClientId = Annotated[str, typer.Option(help="Submitting it again gives the same job.")]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Print the job and leave it to itself.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Print events until the job has ended.")]


@app.command()
def start(
    context: typer.Context,
    spec: Annotated[
        str, typer.Argument(metavar="SPEC", help="YAML or JSON file; - for stdin. Flags override it.")
    ] = "",
    model: Annotated[str | None, typer.Option(help="To start from: author/name:1.0.0, author/name or a CID.")] = None,
    data: Annotated[str | None, typer.Option(help="A file, which is added first; a CID; or author/name.")] = None,
    partition: Annotated[str | None, typer.Option(help="Of the data: iid, shard, by-label or by-key.")] = None,
    architecture: Annotated[Path | None, typer.Option(help="Architecture file: published first as the model.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights of that architecture; else initial ones.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Averaging rounds.")] = None,
    inner_steps: Annotated[int | None, typer.Option(help="Local steps in a round.")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples in a local step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of the local steps.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="Of the local steps: adam or sgd.")] = None,
    aggregator: Annotated[
        str | None,
        typer.Option(
            help="auto, nk, winsorised-nk, nnm-cc, multi-krum, krum, geometric-median, median, trimmed-mean, "
            "clipping, or mean, which bears no liar."
        ),
    ] = None,
    consensus: Annotated[str | None, typer.Option(help="proof-of-learning, byzantine or gossip.")] = None,
    topology: Annotated[str | None, typer.Option(help="mesh, star, ring or hierarchical.")] = None,
    audits: Annotated[float | None, typer.Option(help="Replays of others' work in a round, of all together.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="Deviation above which a replayed update is guilty.")] = None,
    precision: Annotated[str | None, typer.Option(help="Of the local steps: fp32, bf16 or fp16.")] = None,
    wire: Annotated[str | None, typer.Option(help="What travels of a value: q16, q8, q4 or q4-sparse.")] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Rounds after which a member publishes what there is; 0 for never.")
    ] = None,
    min_peers: Annotated[int | None, typer.Option(help="The job waits for so many.")] = None,
    max_peers: Annotated[int | None, typer.Option(help="And takes no more than so many.")] = None,
    memory: Annotated[str | None, typer.Option(help="That a worker needs: 4GiB.")] = None,
    accelerator: Annotated[str | None, typer.Option(help="That a worker needs: any, cpu, cuda, rocm or mps.")] = None,
    deadline: Annotated[str | None, typer.Option(help="From submission: 2h.")] = None,
    priority: Annotated[int | None, typer.Option(help="0 to 9; higher goes first.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the job and of the result; by default the model's.")] = None,
    version: Annotated[str | None, typer.Option(help="To publish the result as.")] = None,
    sets: Annotated[
        list[str], typer.Option("--set", metavar="PATH=VALUE", help="Any other key: train.parts=4. May be repeated.")
    ] = NONE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the spec and print it; submit nothing.")] = False,
    client_id: ClientId = "",
    detach: Detach = False,
    follow: Follow = False,
    plot: Plot = None,
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """Train a model together, by SPEC, by flags, or both. On a terminal it is shown live; Ctrl-C leaves, the job goes
    on. Of a job that was watched to its end the exit code tells how that was.
    """
    from celluler_node.cli.submitting import Files, check, submit  # noqa: PLC0415
    from celluler_node.cli.train_spec import document_of, take_data  # noqa: PLC0415

    document = document_of(spec, context.params, sets)
    files = Files(take_data(document, data), architecture, weights)
    output = Output(as_json=json)
    if dry_run:
        _print_document(output, check(document, files).model_dump(mode="json", exclude_none=True))
        return
    show = _Showing(output, detach, follow, plot)

    async def main(client: AsyncClient) -> AsyncJob:
        return await submit(client, document, files, client_id=client_id)

    _submit_and_show(join, main, show)


@app.command()
def status(
    job: Annotated[str, typer.Argument(metavar="JOB", help="By default the newest training.")] = "",
    once: Annotated[bool, typer.Option("--once", help="Print one page and leave, as without a terminal.")] = False,
    plot: Plot = None,
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """Show a training, live on a terminal.

    Rounds, loss, update norms, who contributed, what is held against whom. Ctrl-C leaves.
    """
    from celluler_node.cli import live  # noqa: PLC0415
    from celluler_node.cli.plots import plotter  # noqa: PLC0415
    from celluler_node.cli.training_page import page  # noqa: PLC0415

    output, on_told, terminal = Output(as_json=json), plotter(plot), sys.stdout.isatty()

    async def main() -> None:
        async with open_session(join) as client:
            found = await _find(client, job)
            if terminal and not once and not json:
                await live.watch(client, found, live.console_for(terminal), on_told)
                return
            training = await live.look_at(client, found)
            await on_told(training)
            if json:
                output.document(training.document())
            else:
                live.console_for(terminal).print(page(training, time.time()))

    run(main)


@app.command()
def checkpoint(job: JobId, join: Join = NOBODY, json: Json = False) -> None:
    """Publish what a training of yours has come to so far. It goes on."""

    async def main() -> None:
        async with open_session(join) as client:
            _show_checkpoint(Output(as_json=json), await (await client.jobs.get(job)).checkpoint())

    run(main)


@app.command()
def stop(job: JobId, join: Join = NOBODY, json: Json = False) -> None:
    """Publish what a training of yours has come to, then cancel it.

    `train resume` goes on from there.
    """

    async def main() -> None:
        async with open_session(join) as client:
            found = await client.jobs.get(job)
            reached = await found.stop()
            if json:
                Output(as_json=True).document({"job": found.info, "checkpoint": reached})
                return
            _show_checkpoint(Output(as_json=False), reached)
            say(f"stopped; to go on: celluler train resume {ending(found.id)}")

    run(main)


@app.command()
def resume(
    job: JobId,
    rounds: Annotated[int | None, typer.Option(help="How many more; by default those that were left.")] = None,
    model: Annotated[
        str | None, typer.Option(help="To go on from, with --rounds; by default the newest checkpoint.")
    ] = None,
    sets: Annotated[
        list[str], typer.Option("--set", metavar="PATH=VALUE", help="Change a key of its spec. May be repeated.")
    ] = NONE,
    client_id: ClientId = "",
    detach: Detach = False,
    follow: Follow = False,
    plot: Plot = None,
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """Go on from the newest checkpoint, by a new job.

    The training must have ended otherwise than by doing all its rounds.
    """
    from celluler_node.cli import resuming  # noqa: PLC0415
    from celluler_node.cli.submitting import Files, submit  # noqa: PLC0415

    if model is not None and rounds is None:
        raise LocalError("--model needs --rounds: how many are in that model is not known here")

    async def main(client: AsyncClient) -> AsyncJob:
        document, attachments = await resuming.prepare(client, job, rounds=rounds, model=model, sets=sets)
        return await submit(client, document, Files(), client_id=client_id, attachments=attachments)

    _submit_and_show(join, main, _Showing(Output(as_json=json), detach, follow, plot))


@app.command()
def update(
    job: JobId,
    deadline: Annotated[str | None, typer.Option(help="From submission: 4h.")] = None,
    priority: Annotated[int | None, typer.Option(help="0 to 9; higher goes first.")] = None,
    max_peers: Annotated[int | None, typer.Option(help="How many may take part.")] = None,
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """Change deadline, priority or peers while it goes on."""
    from celluler_node.cli.train_spec import seconds  # noqa: PLC0415

    deadline_s = None if deadline is None else seconds(deadline, "deadline")

    async def main() -> None:
        async with open_session(join) as client:
            found = await client.jobs.get(job)
            changed = await found.update(deadline_s=deadline_s, priority=priority, max_peers=max_peers)
            show_job(Output(as_json=json), changed)

    run(main)


app.command()(invite)
app.command("join")(join_by_invite)
app.command()(calibrate)


# --- showing -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Showing:
    """What to do with a job that was submitted."""

    output: Output
    detach: bool
    follow: bool
    plot: Path | None

    async def show(self, client: AsyncClient, job: AsyncJob) -> bool:
        """Whether it succeeded, as far as that was waited for."""
        from celluler_node.cli import live  # noqa: PLC0415
        from celluler_node.cli.plots import plotter  # noqa: PLC0415

        terminal, on_told = sys.stdout.isatty(), plotter(self.plot)
        if self.follow or (self.plot is not None and not terminal):
            show_job(self.output, job.info)
            training = await live.print_lines(client, job, self.output, on_told)
        elif terminal and not self.detach and not self.output.as_json:
            training = await live.watch(client, job, live.console_for(terminal), on_told)
        else:
            show_job(self.output, job.info)
            return True
        return training.job.state == "Succeeded"


def _submit_and_show(
    join: Sequence[str], submit: Callable[[AsyncClient], Awaitable[AsyncJob]], showing: _Showing
) -> None:
    if showing.plot is not None and showing.detach:
        raise LocalError("--plot needs somebody who watches", hint="celluler train status JOB --plot FILE, later")
    submitted: list[str] = []

    async def main() -> bool:
        async with open_session(join) as client:
            job = await submit(client)
            submitted.append(job.id)
            return await showing.show(client, job)

    try:
        succeeded = run(main)
    except KeyboardInterrupt:
        if submitted:
            say(f"the job goes on; to look again: celluler train status {ending(submitted[0])}")
        raise
    if not succeeded:
        raise typer.Exit(1)


async def _find(client: AsyncClient, job: str) -> AsyncJob:
    if job:
        return await client.jobs.get(job)
    newest = next((one for one in await client.jobs.ls() if one.kind == "TrainJob"), None)
    if newest is None:
        raise NotFound("a training", hint="celluler train start")
    return await client.jobs.get(newest.id)


def _show_checkpoint(output: Output, reached: JobCheckpoint) -> None:
    lines = {"checkpoint": reached.model, "rounds": reached.rounds, "manifest": reached.manifest}
    output.facts(reached, lines)


def _print_document(output: Output, document: dict[str, Any]) -> None:
    if output.as_json:
        output.document({"spec": document})
        return
    import yaml  # noqa: PLC0415

    print(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), end="")
