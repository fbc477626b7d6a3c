"""`celluler model`: models by name or CID."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from celluler.quantities import format_bytes
from celluler.views import Model
from celluler_node.cli.output import Output, say
from celluler_node.cli.session import NOBODY, Join, Json, open_session, run

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
APPS = {"model": app}
Reference = Annotated[str, typer.Argument(metavar="MODEL", help="author/name:1.0.0, author/name or a CID.")]


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="author/name:1.0.0; the author is this node.")],
    spec: Annotated[Path, typer.Argument(help="Architecture, a JSON file.")],
    weights: Annotated[Path | None, typer.Option(help="A safetensors file; without one, initial weights.")] = None,
    seed: Annotated[int, typer.Option(help="Of the initial weights.")] = 0,
    label: Annotated[list[str], typer.Option(help="Name of a class, in order. May be repeated.")] = NOBODY,
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """Sign and publish a model."""

    async def main() -> None:
        async with open_session(join) as client:
            _show(Output(as_json=json), await client.models.add(name, spec, weights=weights, seed=seed, labels=label))

    run(main)


@app.command()
def ls(join: Join = NOBODY, json: Json = False) -> None:
    """Models known here, own and announced."""

    async def main() -> None:
        async with open_session(join) as client:
            models = await client.models.ls()
        rows = (
            (m.reference, m.task, m.parameters, format_bytes(m.weights_bytes), "here" if m.local else "")
            for m in models
        )
        Output(as_json=json).listing("models", models, ("model", "task", "parameters", "size", ""), rows)

    run(main)


@app.command()
def show(model: Reference, join: Join = NOBODY, json: Json = False) -> None:
    """One model."""

    async def main() -> None:
        async with open_session(join) as client:
            _show(Output(as_json=json), await client.models.show(model))

    run(main)


@app.command()
def pull(model: Reference, join: Join = NOBODY, json: Json = False) -> None:
    """Fetch a model and verify it."""

    async def main() -> None:
        async with open_session(join) as client:
            if not json:
                say(f"fetching {model}")
            _show(Output(as_json=json), await client.models.pull(model))

    run(main)


def _show(output: Output, model: Model) -> None:
    lines = {
        "model": model.reference,
        "cid": model.cid,
        "author": f"{model.nickname or '?'} {model.author}",
        "task": model.task,
        "parameters": model.parameters,
        "weights": f"{model.weights} ({format_bytes(model.weights_bytes)})",
        "here": "yes" if model.local else "no",
        "labels": model.labels,
        "metrics": [f"{name} {value:.4g}" for name, value in model.metrics.items()],
        "dataset": model.dataset,
        "job": model.job,
        "provided by": model.providers,
    }
    output.facts(model, lines)
