"""`celluler key`: the file of API keys, without a running node; one that runs reads it again by itself."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from celluler.errors import NotFound
from celluler.home import places
from celluler_node.cli.output import Output, say
from celluler_node.cli.session import Json
from celluler_node.gateway.keys import new_key, read_keys, write_keys

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
APPS = {"key": app}
INFER = ["infer"]
"""The default of `--scope`."""


def keys_file() -> Path:
    return places(os.environ).home / "keys.json"


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What to call it: a-z, 0-9 and, inside, . _ -")],
    scope: Annotated[
        list[str],
        typer.Option(
            help="What it opens: infer (predictions, embeddings), read (GET of /api/v1), metrics, admin (everything). "
            "May be repeated."
        ),
    ] = INFER,
    rate: Annotated[int, typer.Option(help="Requests a minute; 0 for api.rate.")] = 0,
    json: Json = False,
) -> None:
    """Make a key and print it, once: only its hash is kept."""
    key, text = new_key(name, scope, rate)
    write_keys(keys_file(), (*read_keys(keys_file()), key))
    if json:
        told = {"id": key.id, "name": key.name, "scopes": key.scopes, "a_minute": key.a_minute}
        Output(as_json=True).document({**told, "key": text})
        return
    print(text)
    say(f"{key.id} opens {', '.join(key.scopes)}; it is shown this once")


@app.command()
def ls(json: Json = False) -> None:
    """The keys, without what opens them."""
    keys = read_keys(keys_file())
    records = [
        {"id": key.id, "name": key.name, "scopes": key.scopes, "a_minute": key.a_minute, "created_s": key.created_s}
        for key in keys
    ]
    rows = [(key.id, key.name, key.scopes, key.a_minute or "", _day(key.created_s)) for key in keys]
    Output(as_json=json).listing("keys", records, ("id", "name", "scopes", "a minute", "created"), rows)


@app.command()
def rm(key: Annotated[str, typer.Argument(metavar="KEY", help="Its id, or a name that only one bears.")]) -> None:
    """Remove a key: it opens nothing from then on."""
    keys = read_keys(keys_file())
    named = [one for one in keys if one.id == key] or [one for one in keys if one.name == key]
    if len(named) != 1:
        raise NotFound(f"one key {key}", hint="celluler key ls")
    write_keys(keys_file(), [one for one in keys if one.id != named[0].id])
    say(f"removed {named[0].id}, {named[0].name}")


def _day(created_s: float) -> str:
    return datetime.fromtimestamp(created_s, UTC).strftime("%Y-%m-%d")
