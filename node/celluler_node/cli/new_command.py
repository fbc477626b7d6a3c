"""`celluler model new`: an architecture to start from, written down. Asks no node."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from celluler.errors import LocalError
from celluler.models.spec import parse_spec
from celluler.models.templates import TEMPLATES, fill
from celluler.quantities import format_bytes
from celluler_node.cli.output import Output, say
from celluler_node.cli.session import NOBODY, Json


def new(
    template: Annotated[str, typer.Option(metavar="NAME", help="Which; `--list` names them.")] = "",
    settings: Annotated[
        list[str],
        typer.Option("--set", metavar="PATH=VALUE", help="Such as `layers[0].width=64`. May be repeated."),
    ] = NOBODY,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write it there; without this, to the screen.")
    ] = None,
    show_all: Annotated[bool, typer.Option("--list", help="Which templates there are.")] = False,
    json: Json = False,
) -> None:
    """Write the architecture of a new model from a template: a JSON file for `model add`."""
    if bool(template) is show_all:
        raise typer.BadParameter("give --template NAME, or --list")
    if show_all:
        _list(Output(as_json=json))
        return
    document = fill(template, settings)
    architecture = parse_spec(document)
    text = json_module.dumps(document, indent=2, ensure_ascii=False)
    if output is None:
        print(text)
    else:
        _write(output, text + "\n")
    size = format_bytes(architecture.parameter_bytes)
    say(f"{template}: {architecture.objective.KIND}, {architecture.parameter_count} parameters, {size} of weights")


def _list(output: Output) -> None:
    records, rows = [], []
    for name, template in TEMPLATES.items():
        architecture = parse_spec(template.document)
        task, parameters = architecture.objective.KIND, architecture.parameter_count
        records.append({"name": name, "task": task, "parameters": parameters, "about": template.about})
        rows.append((name, task, parameters, template.about))
    output.listing("templates", records, ("template", "task", "parameters", ""), rows)


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise LocalError(f"{path} is there already", hint="name another file") from error
    except OSError as error:
        raise LocalError(f"{path} cannot be written: {error.strerror}") from error


def add_to(app: typer.Typer) -> None:
    app.command()(new)
