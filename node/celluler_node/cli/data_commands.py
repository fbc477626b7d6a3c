"""`celluler data`: datasets by name or CID."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from celluler.quantities import format_bytes
from celluler.views import Column, Dataset
from celluler_node.cli.output import Output, say
from celluler_node.cli.progress import with_bars
from celluler_node.cli.session import NOBODY, Join, Json, open_session, run

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
APPS = {"data": app}
Reference = Annotated[
    str, typer.Argument(metavar="DATASET", help="author/name:1.0.0, author/name@alias, author/name or a CID.")
]


@app.command()
def add(
    file: Annotated[Path, typer.Argument(help="A safetensors, Parquet or Arrow file.")],
    name: Annotated[str, typer.Option(help="author/name:1.0.0; the author is this node.")],
    label: Annotated[str, typer.Option(metavar="COLUMN", help="The column to predict.")] = "",
    format: Annotated[str, typer.Option(help="`safetensors`, `parquet` or `arrow`; else told by the file.")] = "",
    card: Annotated[Path | None, typer.Option(help="What to say about it: a Markdown file, at most 256 KiB.")] = None,
    description: Annotated[str, typer.Option(help="The same in a line.")] = "",
    tag: Annotated[list[str], typer.Option(help="A word to be found by. May be repeated.")] = NOBODY,
    licence: Annotated[str, typer.Option(help="As SPDX names it: `CC-BY-4.0`.")] = "",
    parent: Annotated[
        list[str], typer.Option(metavar="CID", help="A dataset it was made from. May be repeated.")
    ] = NOBODY,
    copies: Annotated[int, typer.Option(help="How many peers should hold it; 0 for the swarm's default.")] = 0,
    region: Annotated[list[str], typer.Option(help="Where they should be. May be repeated.")] = NOBODY,
    alias: Annotated[list[str], typer.Option(help="A name for this version. May be repeated.")] = NOBODY,
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """Summarise, sign and publish a dataset."""

    async def main() -> None:
        async with open_session(join) as client:
            dataset = await client.datasets.add(
                name,
                file,
                label=label,
                format=format,
                card=card or "",
                description=description,
                tags=tag,
                licence=licence,
                parents=parent,
                copies=copies,
                regions=region,
                aliases=alias,
            )
        _show(Output(as_json=json), dataset)

    run(main)


@app.command()
def ls(join: Join = NOBODY, json: Json = False) -> None:
    """Datasets known here, own and announced."""

    async def main() -> None:
        async with open_session(join) as client:
            datasets = await client.datasets.ls()
        headings = ("dataset", "format", "rows", "size", "licence", "")
        Output(as_json=json).listing("datasets", datasets, headings, map(_row, datasets))

    run(main)


@app.command()
def show(dataset: Reference, join: Join = NOBODY, json: Json = False) -> None:
    """One dataset with its columns."""

    async def main() -> None:
        async with open_session(join) as client:
            _show(Output(as_json=json), await client.datasets.show(dataset))

    run(main)


@app.command()
def pull(dataset: Reference, join: Join = NOBODY, json: Json = False) -> None:
    """Fetch a dataset and verify it."""

    async def main() -> None:
        async with open_session(join) as client:
            if not json:
                say(f"fetching {dataset}")
            pulled = await with_bars(client, dataset, lambda: client.datasets.pull(dataset), quiet=json)
        _show(Output(as_json=json), pulled)

    run(main)


def _row(one: Dataset) -> tuple[object, ...]:
    mark = "RETRACTED" if one.retracted else "here" if one.local else ""
    return one.reference, one.format, one.rows, format_bytes(one.content_bytes), one.licence, mark


def _show(output: Output, dataset: Dataset) -> None:
    lines = {
        "dataset": dataset.reference,
        "cid": dataset.cid,
        "RETRACTED": dataset.retracted,
        "author": f"{dataset.nickname or '?'} {dataset.author}",
        "description": dataset.description,
        "tags": dataset.tags,
        "licence": dataset.licence,
        "content": f"{dataset.content} ({dataset.format}, {format_bytes(dataset.content_bytes)})",
        "rows": dataset.rows,
        "here": "yes" if dataset.local else "no",
        "label": dataset.label,
        "balance": [f"{label}: {count}" for label, count in dataset.balance.items()],
        "made from": dataset.parents,
        "aliases": dataset.aliases,
        "copies wanted": " ".join(str(part) for part in (dataset.copies, *dataset.regions) if part),
        "provided by": dataset.providers,
    }
    output.facts(dataset, lines)
    if not output.as_json and dataset.columns:
        headings = ("column", "type", "shape", "missing", "least", "most", "mean", "distinct")
        output.table(headings, map(_column, dataset.columns))


def _column(one: Column) -> tuple[object, ...]:
    shape = "×".join(str(size) for size in one.shape)
    return one.name, one.dtype, shape, one.missing or "", one.minimum, one.maximum, one.mean, one.distinct
