"""`celluler ps`, `load` and `unload`: models at work in the node."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from celluler import views
from celluler.quantities import format_bytes, format_duration
from celluler_node.cli.output import Output
from celluler_node.cli.session import Json, open_session, run

ps_app = typer.Typer(add_completion=False, rich_markup_mode=None)
load_app = typer.Typer(add_completion=False, rich_markup_mode=None)
unload_app = typer.Typer(add_completion=False, rich_markup_mode=None)
APPS = {"ps": ps_app, "load": load_app, "unload": unload_app}

HEADINGS = ("model", "state", "memory", "at work", "waiting", "batch", "a second", "on", "used", "kept")
Model = Annotated[str, typer.Argument(help="author/name, author/name:1.0.0, author/name@alias, or a CID.")]


@ps_app.command()
def ps(json: Json = False) -> None:
    """Models that are loaded, or on their way: one worker each."""

    async def main() -> None:
        async with open_session() as client:
            serving = await client.serving()
        output = Output(as_json=json)
        if json:
            output.document(serving)
        else:
            output.table(HEADINGS, [_row(one) for one in serving.models])

    run(main)


@load_app.command()
def load(model: Model, json: Json = False) -> None:
    """Have a model ready before anybody asks for it."""

    async def main() -> None:
        async with open_session() as client:
            loaded = await client.models.load(model)
        Output(as_json=json).facts(loaded, _facts(loaded))

    run(main)


@unload_app.command()
def unload(model: Model, json: Json = False) -> None:
    """Have a model end what it was asked, and free its memory."""

    async def main() -> None:
        async with open_session() as client:
            left = await client.models.unload(model)
        used = f"{format_bytes(left.memory_bytes)} of {format_bytes(left.limit_bytes)}"
        Output(as_json=json).facts(left, {"models left": len(left.models), "memory": used})

    run(main)


def _row(one: views.LoadedModel) -> tuple[object, ...]:
    state = one.state if one.progress is None else f"{one.state} {one.progress:.0%}"
    where = f"{one.device} {one.dtype}".strip()
    batch = f"{one.batch:.1f}" if one.batch else ""
    used = f"{format_duration(max(0.0, time.time() - one.used_s))} ago"
    return (
        one.model,
        state,
        format_bytes(one.memory_bytes),
        one.running,
        one.waiting,
        batch,
        _rate(one),
        where,
        used,
        (_kept(one)),
    )


def _facts(one: views.LoadedModel) -> dict[str, object]:
    return {
        "model": one.model,
        "cid": one.cid,
        "state": one.state,
        "memory": format_bytes(one.memory_bytes),
        "on": f"{one.device} {one.dtype}".strip(),
        "took": one.loading_s and format_duration(one.loading_s),
        "follows": one.names,
        "kept": _kept(one),
    }


def _rate(one: views.LoadedModel) -> str:
    if one.tokens_s >= 0.05:
        return f"{one.tokens_s:.1f} tokens"
    return f"{one.requests_s:.1f} requests" if one.requests_s >= 0.05 else ""


def _kept(one: views.LoadedModel) -> str:
    if not one.kept:
        return ""
    return "always" if one.kept_until_s is None else f"for {format_duration(max(0.0, one.kept_until_s - time.time()))}"
