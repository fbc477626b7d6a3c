"""The part of `celluler model` about what became of a name: versions, aliases, differences, log, lineage."""

from __future__ import annotations

import json as json_module
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Annotated

import typer

from celluler.client import AsyncClient
from celluler.quantities import format_bytes
from celluler.views import Lineage, ModelDiff, Version, Versions
from celluler_node.cli.output import Output, say
from celluler_node.cli.session import NOBODY, Join, Json, open_session, run

Reference = Annotated[
    str, typer.Argument(metavar="MODEL", help="author/name:1.0.0, author/name@alias, author/name or a CID.")
]


def versions(model: Reference, join: Join = NOBODY, json: Json = False) -> None:
    """All versions under a name, newest first."""
    _change(lambda client: client.models.versions(model), join, json)


def diff(
    old: Annotated[str, typer.Argument(help="The model to start from.")],
    new: Annotated[str, typer.Argument(help="The model to compare with it.")],
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """What differs between two models, and what would have to be fetched."""

    async def main() -> None:
        async with open_session(join) as client:
            _show_diff(Output(as_json=json), await client.models.diff(old, new))

    run(main)


def alias(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="author/name:1.0.0; with --drop author/name@alias.")],
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="Such as `stable`.")] = "",
    drop: Annotated[bool, typer.Option("--drop", help="Let the alias mean nothing.")] = False,
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """Let author/name@ALIAS mean a version of yours."""
    if drop == bool(name):
        raise typer.BadParameter("give MODEL and ALIAS, or --drop author/name@alias")

    def change(client: AsyncClient) -> Awaitable[Versions]:
        return client.models.drop_alias(model) if drop else client.models.alias(model, name)

    _change(change, join, json)


def rollback(model: Reference, join: Join = NOBODY, json: Json = False) -> None:
    """Let the name alone mean this version of yours, until another is published."""
    _change(lambda client: client.models.rollback(model), join, json)


def retract(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="author/name:1.0.0")],
    reason: Annotated[str, typer.Option(help="Why nobody should use it; everybody sees that.")],
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """Sign that a version of yours should not be used. It cannot be undone."""
    _change(lambda client: client.models.retract(model, reason), join, json)


def log(model: Reference, join: Join = NOBODY, json: Json = False) -> None:
    """What its author did to a name, newest first; chain and signatures are checked."""

    async def main() -> None:
        async with open_session(join) as client:
            told = await client.models.log(model)
        if json:
            Output(as_json=True).document(told)
            return
        rows = (
            (one.number, _day(one.at_s, "%Y-%m-%d %H:%M"), one.action, one.version, one.note) for one in told.entries
        )
        Output(as_json=False).table(("", "at", "done", "version", "note"), rows)
        if not told.complete:
            say("older entries cannot be had: nobody who holds them answered")

    run(main)


def lineage(model: Reference, join: Join = NOBODY, json: Json = False) -> None:
    """What a model was made from: models, datasets, jobs."""

    async def main() -> None:
        async with open_session(join) as client:
            told = await client.models.lineage(model)
        if json:
            Output(as_json=True).document(told)
        else:
            Output(as_json=False).table(("made from", "", "cid"), _tree(told))
            if told.truncated:
                say("there is more than is shown")

    run(main)


def add_to(app: typer.Typer) -> None:
    for command in (versions, diff, alias, rollback, retract, log, lineage):
        app.command()(command)


def brief(version: Version) -> str:
    """`1.2.0 (current, stable)`"""
    marks = [*(["current"] if version.current else []), *version.aliases, *(["RETRACTED"] if version.retracted else [])]
    return f"{version.version} ({', '.join(marks)})" if marks else version.version


def _change(call: Callable[[AsyncClient], Awaitable[Versions]], join: list[str], json: bool) -> None:
    """Ask for the versions, or change them, and show what they are then."""

    async def main() -> None:
        async with open_session(join) as client:
            told = await call(client)
        if json:
            Output(as_json=True).document(told)
            return
        if told.equivocation:
            say(f"do not trust {told.name}: {told.equivocation}")
        Output(as_json=False).table(("version", "", "aliases", "published", "cid"), map(_row, told.versions))

    run(main)


def _row(version: Version) -> tuple[object, ...]:
    mark = f"RETRACTED: {version.retracted}" if version.retracted else "current" if version.current else ""
    published = "" if version.created_s is None else _day(version.created_s, "%Y-%m-%d")
    return version.version, mark, version.aliases, published, version.cid


def _day(at_s: float, form: str) -> str:
    return datetime.fromtimestamp(at_s, UTC).astimezone().strftime(form)


def _show_diff(output: Output, diff: ModelDiff) -> None:
    if output.as_json:
        output.document(diff)
        return
    fetch = "not known: a layout cannot be had" if diff.bytes_to_fetch is None else format_bytes(diff.bytes_to_fetch)
    lines = {
        "from": diff.old,
        "to": diff.new,
        "step": diff.bump,
        "to fetch": fetch,
        "equal tensors": diff.unchanged,
        "not compared": diff.unknown or None,
    }
    output.facts(diff, lines)
    output.table(("", "what", "old", "new", "change"), _differences(diff))


def _differences(diff: ModelDiff) -> Iterator[tuple[object, ...]]:
    for field in diff.architecture:
        yield "architecture", field.path, field.old, field.new, ""
    for tensor in diff.tensors:
        how = "added" if tensor.old is None else "removed" if tensor.new is None else ""
        if tensor.norm is not None:
            how = f"norm {tensor.norm:.3g}" + ("" if tensor.relative is None else f", {tensor.relative:.2%}")
        yield "tensor", tensor.name, _shape(tensor.old), _shape(tensor.new), how
    for field in diff.metadata:
        yield "metadata", field.path, field.old, field.new, ""


def _shape(shape: tuple[int, ...] | None) -> str:
    return "" if shape is None else json_module.dumps(list(shape))


def _tree(lineage: Lineage) -> Iterator[tuple[object, ...]]:
    """The nodes in the order of a walk from the model, each once, indented by how far it is."""
    nodes = {node.cid: node for node in lineage.nodes}
    stack, seen = [(lineage.cid, 0)], set()
    while stack:
        cid, depth = stack.pop()
        if cid in seen or cid not in nodes:
            continue
        seen.add(cid)
        node = nodes[cid]
        yield "  " * depth + (node.reference or "?"), node.kind, cid
        stack += [(parent, depth + 1) for parent in reversed(node.parents)]
