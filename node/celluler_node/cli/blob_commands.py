"""`celluler blob`: contents by CID."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from celluler.errors import InvalidSpec
from celluler.quantities import format_bytes, format_duration, parse_bytes
from celluler.views import Blob
from celluler_node.cli.output import Output, ending, say
from celluler_node.cli.progress import with_bars
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
            size = await with_bars(client, cid, lambda: client.blobs.get(cid, output), quiet=json)
        if json:
            Output(as_json=True).document({"cid": cid, "path": str(output), "bytes": size})
        else:
            say(f"wrote {format_bytes(size)} to {output}")

    run(main)


@app.command()
def stat(cid: str, join: Join = NOBODY, json: Json = False) -> None:
    """What is here of a content, what came from whom, and who provides it. Fetches nothing."""

    async def main() -> None:
        async with open_session(join) as client:
            _show(Output(as_json=json), await client.blobs.stat(cid))

    run(main)


@app.command()
def gc(
    target: Annotated[
        str, typer.Option(metavar="SIZE", help="Stop when the store holds no more than this, such as 10GiB.")
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """Evict what was used least recently: never what is pinned, served, loaded or on its way here."""
    target_bytes = _size(target) if target else None

    async def main() -> None:
        async with open_session(join) as client:
            gone = await client.blobs.gc(target_bytes=target_bytes, dry_run=dry_run)
        rows = ((b.cid, b.kind, format_bytes(b.have_bytes), _age(b.last_used_s)) for b in gone.contents)
        output = Output(as_json=json)
        if json:
            output.document(gone)
        else:
            output.table(("cid", "kind", "size", "used"), rows)
            say(f"{format_bytes(gone.freed_bytes)} {'would be freed' if dry_run else 'freed'}")

    run(main)


def _size(text: str) -> int:
    try:
        return 0 if text == "0" else parse_bytes(text)
    except ValueError as error:
        raise InvalidSpec("target", str(error)) from None


def _age(at_s: float) -> str:
    return f"{format_duration(max(0.0, time.time() - at_s))} ago" if at_s else ""


def _show(output: Output, blob: Blob) -> None:
    part = f"{format_bytes(blob.have_bytes)} of {format_bytes(blob.wanted_bytes or blob.total_bytes)} wanted"
    lines = {
        "cid": blob.cid,
        "kind": blob.kind,
        "size": format_bytes(blob.total_bytes),
        "here": "all of it" if blob.complete else part,
        "kept": "pinned" if blob.pinned else "in use" if blob.in_use else "until room is needed",
        "used": _age(blob.last_used_s),
        "came from": [f"{ending(one.peer)} {format_bytes(one.received_bytes)}" for one in blob.received],
        "went to": [f"{ending(one.peer)} {format_bytes(one.sent_bytes)}" for one in blob.received if one.sent_bytes],
        "provided by": blob.providers,
    }
    output.facts(blob, lines)
