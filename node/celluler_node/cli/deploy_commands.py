"""`celluler deploy`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

import typer

from celluler.client import AsyncClient
from celluler.client.calls_deployments import DeploymentFields
from celluler.inference.deployments import read_keep_warm
from celluler.quantities import format_duration
from celluler.views import Deployment, DeploymentArm
from celluler_node.cli.output import Output, ending, say
from celluler_node.cli.session import Json, open_session, run

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
APPS = {"deploy": app}
Name = Annotated[str, typer.Argument(help="Of the deployment, with or without deploy: before it.")]
Least = Annotated[int | None, typer.Option("--min", help="Replicas of each version at least; 0 lets idle ones go.")]
Most = Annotated[int | None, typer.Option("--max", help="Replicas of each version at most.")]
InFlight = Annotated[int | None, typer.Option(help="Requests under way that one replica is to have.")]
Latency = Annotated[int | None, typer.Option(help="Milliseconds of the slowest twentieth that make one more; 0: none.")]
KeepWarm = Annotated[str, typer.Option(help="How long what nobody needs stays loaded, as 10m; 0 for not at all.")]
Regions = Annotated[list[str], typer.Option("--region", help="Where replicas may be. May be repeated.")]
Compare = Annotated[str, typer.Option(help="Share of predictions that are asked of a second arm, too, as 1%.")]
NOWHERE: list[str] = []


@app.command()
def create(
    name: Name,
    model: Annotated[str, typer.Argument(help="author/name:1.0.0, author/name@alias, author/name or a CID.")],
    arm: Annotated[
        list[str], typer.Option(metavar="NAME=MODEL=SHARE", help="A version beside it, as b=alice/digits:2.0.0=50%.")
    ] = NOWHERE,
    least: Least = None,
    most: Most = None,
    in_flight: InFlight = None,
    latency_ms: Latency = None,
    keep_warm: KeepWarm = "",
    region: Regions = NOWHERE,
    compare: Compare = "",
    json: Json = False,
) -> None:
    """Put a version behind a name, to be asked as deploy:NAME; with --arm several, each for its share of sessions."""
    said = _said(least, most, in_flight, latency_ms, keep_warm, region, compare)
    if least is not None and most is None:
        said["max_replicas"] = max(1, least)
    arms = dict(map(_arm, arm))
    _change(lambda client: client.deployments.create(_plain(name), model, arms=arms, **said), json)


@app.command()
def update(
    name: Name,
    model: Annotated[str, typer.Argument(help="The version to be there; without it the rest changes.")] = "",
    canary: Annotated[
        str, typer.Option(metavar="SHARE", help="Only this share of the sessions gets it, as 10%; or gets it now.")
    ] = "",
    arm: Annotated[str, typer.Option(help="The arm that --canary is about.")] = "canary",
    blue_green: Annotated[bool, typer.Option(help="Switch to it as soon as it is ready, and not before.")] = False,
    least: Least = None,
    most: Most = None,
    in_flight: InFlight = None,
    latency_ms: Latency = None,
    keep_warm: KeepWarm = "",
    region: Regions = NOWHERE,
    compare: Compare = "",
    json: Json = False,
) -> None:
    """Change a deployment: another version, tried out or at once, another share, other replicas."""
    said = _said(least, most, in_flight, latency_ms, keep_warm, region, compare)
    _change(
        lambda client: client.deployments.update(
            _plain(name), model or None, canary=canary or None, arm=arm, blue_green=blue_green, **said
        ),
        json,
    )


@app.command()
def promote(
    name: Name,
    arm: Annotated[str, typer.Option(help="Which, if several are tried out.")] = "",
    json: Json = False,
) -> None:
    """Let every session have the version that is tried out."""
    _change(lambda client: client.deployments.promote(_plain(name), arm), json)


@app.command()
def rollback(name: Name, json: Json = False) -> None:
    """Take back what is tried out or brought in, else the last switch."""
    _change(lambda client: client.deployments.rollback(_plain(name)), json)


@app.command()
def rm(name: Name, json: Json = False) -> None:
    """Remove a deployment. Its models stay."""

    async def main() -> None:
        async with open_session() as client:
            await client.deployments.rm(_plain(name))
        Output(as_json=json).facts({"removed": _plain(name)}, {"removed": _plain(name)})

    run(main)


@app.command()
def ls(json: Json = False) -> None:
    """Deployments of this node."""

    async def main() -> None:
        async with open_session() as client:
            found = await client.deployments.ls()
        rows = (
            (one.reference, *_brief(arm), f"{_ready(arm)}/{arm.wanted}", arm.report.requests)
            for one in found
            for arm in one.arms
        )
        headings = ("deployment", "arm", "share", "model", "ready", "requests")
        Output(as_json=json).listing("deployments", found, headings, rows)

    run(main)


@app.command()
def show(
    name: Name,
    compare: Annotated[
        bool, typer.Option("--compare", help="Arms beside each other: latency, errors, agreement.")
    ] = False,
    json: Json = False,
) -> None:
    """One deployment: its versions, where they run, and what became of their requests since the node started."""

    async def main() -> None:
        async with open_session() as client:
            one = await client.deployments.show(_plain(name))
        if json:
            Output(as_json=True).document(one)
        elif compare:
            _compare(one)
        else:
            _show(one)

    run(main)


def _change(call: Callable[[AsyncClient], Awaitable[Deployment]], json: bool) -> None:
    async def main() -> None:
        async with open_session() as client:
            one = await call(client)
        if json:
            Output(as_json=True).document(one)
        else:
            _show(one)

    run(main)


def _show(one: Deployment) -> None:
    output = Output(as_json=False)
    output.facts(
        one,
        {
            "reference": one.reference,
            "replicas": f"{one.min_replicas}…{one.max_replicas} of each version, {one.in_flight} requests each",
            "kept warm": format_duration(one.keep_warm_s),
            "regions": one.regions,
            "compared": f"{one.compare:.4g}" if one.compare else "",
            "coming": one.incoming.model if one.incoming else "",
            "before": one.previous,
        },
    )
    arms = (*one.arms, one.incoming) if one.incoming else one.arms
    rows = [
        (*_brief(arm), f"{_ready(arm)}/{arm.wanted}", [ending(replica.peer) for replica in arm.replicas], arm.failure)
        for arm in arms
    ]
    output.table(("arm", "share", "model", "ready", "at", "problem"), rows)


def _compare(one: Deployment) -> None:
    """What can be held against each other: of each arm a column of figures."""
    headings = ("arm", "requests", "errors", "p50 ms", "p95 ms", "p99 ms", "tokens", "cached", "compared", "agreed")
    rows = []
    for arm in one.arms:
        told = arm.report
        failed = sum(told.errors.values())
        kinds = f" ({', '.join(f'{kind} {count}' for kind, count in sorted(told.errors.items()))})" if failed else ""
        agreed = f"{100 * told.agreed / told.compared:.4g}%" if told.compared else None
        times = (told.p50_ms, told.p95_ms, told.p99_ms)
        tokens = told.prompt_tokens + told.generated_tokens
        rows.append((arm.name, told.requests, f"{failed}{kinds}", *times, tokens, told.cached, told.compared, agreed))
    Output(as_json=False).table(headings, rows)
    if len(one.arms) < 2:
        say("only one version is there; what it has answered is told all the same")


def _brief(arm: DeploymentArm) -> tuple[str, str, str]:
    return arm.name, f"{arm.share * 100:.4g}%", arm.model


def _ready(arm: DeploymentArm) -> int:
    return sum(replica.ready for replica in arm.replicas)


def _arm(text: str) -> tuple[str, tuple[str, str]]:
    parts = text.split("=")
    if len(parts) != 3 or not all(parts):
        raise typer.BadParameter(f"--arm {text!r} is not NAME=MODEL=SHARE")
    return parts[0], (parts[1], parts[2])


def _plain(name: str) -> str:
    return name.removeprefix("deploy:")


def _said(
    least: int | None,
    most: int | None,
    in_flight: int | None,
    latency_ms: int | None,
    keep_warm: str,
    regions: list[str],
    compare: str,
) -> DeploymentFields:
    """What was given of it."""
    said = DeploymentFields()
    if least is not None:
        said["min_replicas"] = least
    if most is not None:
        said["max_replicas"] = most
    if in_flight is not None:
        said["in_flight"] = in_flight
    if latency_ms is not None:
        said["latency_ms"] = latency_ms
    if keep_warm:
        said["keep_warm_s"] = read_keep_warm(keep_warm)
    if regions:
        said["regions"] = regions
    if compare:
        said["compare"] = compare
    return said
