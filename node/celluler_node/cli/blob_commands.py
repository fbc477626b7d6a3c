"""`celluler blob`: contents by CID."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from celluler.quantities import format_bytes
from celluler.views import Blob
from celluler_node.cli.output import Output, say
from celluler_node.cli.session import NOBODY, Join, Json, open_session, run

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
APPS = {"blob": app}


@app.command()
def add(
    file: Annotated[Path, typer.Argument(help="File to keep and to provide.")],
    kind: Annotated[str, typer.Option(help="`blob`, `dataset` or `model`.")] = "blob",
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """Put a file into the store. Prints its CID."""

    async def main() -> None:
        async with open_session(join) as client:
            _show(Output(as_json=json), await client.blobs.add(file, kind=kind))

    run(main)


@app.command()
def get(
    cid: str,
    output: Annotated[Path, typer.Argument(help="File to write.")],
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """Write a content to a file, fetched from peers when need be."""

    async def main() -> None:
        async with open_session(join) as client:
            size = await client.blobs.get(cid, output)
        if json:
            Output(as_json=True).document({"cid": cid, "path": str(output), "bytes": size})
        else:
            say(f"wrote {format_bytes(size)} to {output}")

    run(main)


@app.command()
def stat(cid: str, join: Join = NOBODY, json: Json = False) -> None:
    """What is here of a content. Fetches nothing."""

    async def main() -> None:
        async with open_session(join) as client:
            _show(Output(as_json=json), await client.blobs.stat(cid))

    run(main)


def _show(output: Output, blob: Blob) -> None:
    lines = {
        "cid": blob.cid,
        "kind": blob.kind,
        "size": format_bytes(blob.total_bytes),
        "here": "all of it" if blob.complete else format_bytes(blob.have_bytes),
    }
    output.facts(blob, lines)
