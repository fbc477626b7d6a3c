"""`celluler model`: models by name or CID."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from celluler.documents import read_json
from celluler.errors import IntegrityError, InvalidSpec, LocalError, Unavailable
from celluler.models.transforms.document import MAX_TRANSFORM_BYTES
from celluler.quantities import format_bytes
from celluler.views import Blob, Check, Model, ModelQuery, Port, Verification, Versions, to_json
from celluler_node.cli import compress_commands, convert_commands, new_command, version_commands
from celluler_node.cli.output import Output, printable, say
from celluler_node.cli.progress import with_bars
from celluler_node.cli.session import NOBODY, Join, Json, open_session, run

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
APPS = {"model": app}
Reference = Annotated[
    str, typer.Argument(metavar="MODEL", help="author/name:1.0.0, author/name@alias, author/name or a CID.")
]
Task = Annotated[str, typer.Option(help="Only of this task, such as `classification`.")]
Category = Annotated[str, typer.Option(help="Only of this category.")]
Tag = Annotated[str, typer.Option(help="Only with this tag.")]
Author = Annotated[str, typer.Option(help="Only by this author: a nickname or a peer id.")]
Licence = Annotated[str, typer.Option(help="Only under this licence.")]
Local = Annotated[bool, typer.Option("--local", help="Only what is here.")]


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="author/name:1.0.0; the author is this node.")],
    spec: Annotated[
        Path,
        typer.Argument(
            help="Architecture, a JSON file; a folder that celluler.publish wrote; or a model as `convert` takes it."
        ),
    ],
    weights: Annotated[
        Path | None,
        typer.Option(help="Of an architecture: safetensors or a PyTorch state dict; without one, initial weights."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the initial weights.")] = 0,
    label: Annotated[list[str], typer.Option(help="Name of a class, in order. May be repeated.")] = NOBODY,
    card: Annotated[Path | None, typer.Option(help="What to say about it: a Markdown file, at most 256 KiB.")] = None,
    description: Annotated[str, typer.Option(help="The same in a line.")] = "",
    category: Annotated[str, typer.Option(help="A word to be found by.")] = "",
    tag: Annotated[list[str], typer.Option(help="Another such word. May be repeated.")] = NOBODY,
    licence: Annotated[str, typer.Option(help="As SPDX names it: `Apache-2.0`.")] = "",
    dataset: Annotated[str, typer.Option(metavar="CID", help="What it was trained on.")] = "",
    parent: Annotated[
        list[str], typer.Option(metavar="CID", help="A model it was made from. May be repeated.")
    ] = NOBODY,
    copies: Annotated[int, typer.Option(help="How many peers should hold it; 0 for the swarm's default.")] = 0,
    region: Annotated[list[str], typer.Option(help="Where they should be. May be repeated.")] = NOBODY,
    reader: Annotated[
        list[str], typer.Option(metavar="PEER", help="Encrypt the weights for this peer. May be repeated.")
    ] = NOBODY,
    public: Annotated[
        bool, typer.Option("--public", help="For everybody, though the version before was encrypted.")
    ] = False,
    alias: Annotated[
        list[str], typer.Option(help="A name for this version, such as `stable`. May be repeated.")
    ] = NOBODY,
    preprocess: Annotated[
        Path | None, typer.Option(help="What stands before it: transforms, a JSON file. Inputs are then raw ones.")
    ] = None,
    postprocess: Annotated[
        Path | None, typer.Option(help="What stands after it: transforms, a JSON file. They name what it gives.")
    ] = None,
    context: convert_commands.Context = 0,
    by_order: convert_commands.ByOrder = False,
    objective: convert_commands.Objective = "",
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """Sign and publish a model. One of another format is brought into ours first, in a sandbox, as `convert` does."""
    before, after = (_transforms(path) for path in (preprocess, postprocess))
    ours = convert_commands.publishable(spec, weights, context=context, by_order=by_order, objective=objective)

    async def main() -> None:
        async with ours as (document, held), open_session(join) as client:
            model = await client.models.add(
                name,
                document,
                weights=held,
                seed=seed,
                labels=label,
                card=card or "",
                description=description,
                category=category,
                tags=tag,
                licence=licence,
                dataset=dataset or None,
                parents=parent,
                copies=copies,
                regions=region,
                readers=reader,
                aliases=alias,
                public=public,
                preprocess=before,
                postprocess=after,
            )
        _show(Output(as_json=json), model)

    run(main)


@app.command()
def ls(
    task: Task = "",
    category: Category = "",
    tag: Tag = "",
    author: Author = "",
    licence: Licence = "",
    local: Local = False,
    sort: Annotated[str, typer.Option(help="`name`, `newest`, `size` or `providers`.")] = "name",
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """Models known here, own and announced."""
    query = ModelQuery("", task, category, tag, author, licence, local, sort)

    async def main() -> None:
        async with open_session(join) as client:
            _list(Output(as_json=json), await client.models.ls(query))

    run(main)


@app.command()
def search(
    words: Annotated[list[str], typer.Argument(help="What to look for, in names, descriptions and tags.")],
    task: Task = "",
    category: Category = "",
    tag: Tag = "",
    author: Author = "",
    licence: Licence = "",
    local: Local = False,
    sort: Annotated[str, typer.Option(help="`relevance`, `name`, `newest`, `size` or `providers`.")] = "relevance",
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """Models of the swarm that all these words fit. Works on what is known when nobody can be asked."""
    query = ModelQuery(" ".join(words), task, category, tag, author, licence, local, sort)

    async def main() -> None:
        async with open_session(join) as client:
            _list(Output(as_json=json), await client.models.search(query))

    run(main)


@app.command()
def show(model: Reference, join: Join = NOBODY, json: Json = False) -> None:
    """One model, and which versions there are."""

    async def main() -> None:
        async with open_session(join) as client:
            shown = await client.models.show(model)
            try:
                versions = await client.models.versions(shown.cid)
            except Unavailable:  # nobody has the author's list: what we know of this version is still worth showing
                versions = None
        _show(Output(as_json=json), shown, versions)

    run(main)


@app.command()
def card(model: Reference, join: Join = NOBODY, json: Json = False) -> None:
    """What its author wrote about it, in Markdown."""

    async def main() -> None:
        async with open_session(join) as client:
            text = await client.models.card(model)
        if json:
            Output(as_json=True).document({"model": model, "card": text})
        else:
            print(printable(text.rstrip("\n"), keep="\n\t"))

    run(main)


@app.command()
def pull(
    model: Reference,
    layers: Annotated[
        str, typer.Option(help="Only the tensors of these layers of the spec: `0:6`, `3`, `2:`, or with commas.")
    ] = "",
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """Fetch a model, or what is missing of it, and verify it."""

    async def main() -> None:
        async with open_session(join) as client:
            if not json:
                say(f"fetching {model}")
            pulled = await with_bars(
                client, model, lambda: client.models.pull(model, layers=layers or None), quiet=json
            )
        _show(Output(as_json=json), pulled)

    run(main)


@app.command()
def verify(model: Reference, join: Join = NOBODY, json: Json = False) -> None:
    """Check signatures, records and every byte that is here. Exit code 7 when something does not hold."""

    async def main() -> Verification:
        async with open_session(join) as client:
            return await client.models.verify(model)

    found = run(main)
    output = Output(as_json=json)
    if json:
        output.document(found)
    else:
        rows = [(_verdict(check), check.name, check.detail, check.hint) for check in found.checks]
        output.table(("", "check", "found", "do"), rows)
    if not found.ok:
        raise typer.Exit(IntegrityError.exit_code)


@app.command()
def rm(model: Reference, join: Join = NOBODY, json: Json = False) -> None:
    """Forget a version here. Other peers keep theirs; `retract` tells them not to use it."""

    async def main() -> None:
        async with open_session(join) as client:
            gone = await client.models.rm(model)
        if json:
            Output(as_json=True).document(gone)
        else:
            say(f"{model} is no longer here: {format_bytes(gone.freed_bytes)} freed")

    run(main)


@app.command()
def pin(model: Reference, join: Join = NOBODY, json: Json = False) -> None:
    """Never evict it. Takes the name of a dataset or any CID, too."""

    async def main() -> None:
        async with open_session(join) as client:
            _pinned(await client.pin(model), json)

    run(main)


@app.command()
def unpin(model: Reference, join: Join = NOBODY, json: Json = False) -> None:
    """Let it be evicted when room is needed."""

    async def main() -> None:
        async with open_session(join) as client:
            _pinned(await client.unpin(model), json)

    run(main)


convert_commands.add_to(app)
compress_commands.add_to(app)
new_command.add_to(app)
version_commands.add_to(app)


def _transforms(path: Path | None) -> dict[str, Any] | None:
    """Raises LocalError for a file that cannot be read, InvalidSpec for one that is no JSON object."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            document = read_json(file.read(MAX_TRANSFORM_BYTES + 1), limit=MAX_TRANSFORM_BYTES)
    except OSError as error:
        raise LocalError(f"cannot read {path}: {error.strerror}") from None
    except InvalidSpec as error:
        raise InvalidSpec(f"{path.name}: {error.path}" if error.path else path.name, error.problem) from None
    if not isinstance(document, dict):
        raise InvalidSpec(path.name, "is no JSON object")
    return document


def _port(port: Port) -> str:
    return f"{port.name}: {port.dtype} ({', '.join(map(str, port.shape))})"


def _pinned(blob: Blob, as_json: bool) -> None:
    if as_json:
        Output(as_json=True).document(blob)
    else:
        say(f"{blob.cid} ({format_bytes(blob.total_bytes)}) {'is pinned' if blob.pinned else 'may be evicted'}")


def _list(output: Output, models: tuple[Model, ...]) -> None:
    headings = ("model", "task", "parameters", "size", "licence", "providers", "")
    output.listing("models", models, headings, [_row(model) for model in models])


def _row(model: Model) -> tuple[object, ...]:
    size, marks = format_bytes(model.weights_bytes), ", ".join(_marks(model))
    return model.reference, model.task, model.parameters, size, model.licence, len(model.providers) or "", marks


def _marks(model: Model) -> list[str]:
    told = {
        "here": model.local,
        "part of it here": model.have_bytes and not model.local,
        "encrypted": model.encrypted,
        "RETRACTED": model.retracted,
        "EQUIVOCATED": model.equivocation,
    }
    return [mark for mark, holds in told.items() if holds]


def _show(output: Output, model: Model, versions: Versions | None = None) -> None:
    if output.as_json:
        output.document(to_json(model) | ({"versions": versions.versions} if versions else {}))
        return
    here = "yes" if model.local else f"{format_bytes(model.have_bytes)} of it" if model.have_bytes else "no"
    lines = {
        "model": model.reference,
        "cid": model.cid,
        "RETRACTED": model.retracted,
        "EQUIVOCATED": model.equivocation or (versions.equivocation if versions else ""),
        "author": f"{model.nickname or '?'} {model.author}",
        "description": model.description,
        "task": model.task,
        "body": _body(model),
        "category": model.category,
        "tags": model.tags,
        "licence": model.licence,
        "parameters": model.parameters,
        "weights": f"{model.weights} ({format_bytes(model.weights_bytes)})",
        "format": " ".join(part for part in (model.framework, model.format, model.dtype) if part),
        "readable by": model.readers if model.encrypted else (),
        "here": here,
        "takes": model.takes and _port(model.takes),
        "gives": [_port(one) for one in model.gives],
        "labels": model.labels,
        "metrics": [f"{name} {value:.4g}" for name, value in model.metrics.items()],
        "made from": model.parents,
        "dataset": model.dataset,
        "job": model.job,
        "transcripts": model.transcripts,
        "files": [f"{name} {cid}" for name, cid in model.files.items()],
        "card": model.card and f"celluler model card {model.reference}",
        "aliases": model.aliases,
        "versions": [version_commands.brief(one) for one in versions.versions] if versions else (),
        "copies wanted": " ".join(str(part) for part in (model.copies, *model.regions) if part),
        "provided by": model.providers,
    }
    output.facts(model, lines)


def _body(model: Model) -> str:
    """What it computes, in a line."""
    spec = model.spec or {}
    match model.body:
        case "graph" if spec:
            return f"graph of {len(spec['graph']['nodes'])} operations"
        case "spec" if "layers" in spec:
            return f"spec of {len(spec['layers'])} layers"
        case "spec" if "nets" in spec:
            return f"spec of {', '.join(spec['nets'])}"
    return model.body


def _verdict(check: Check) -> str:
    return "ok" if check.ok else "open" if check.skipped else "WRONG"
