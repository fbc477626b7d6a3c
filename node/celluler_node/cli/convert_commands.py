"""`celluler model convert`, and files of other formats for `model add`. The node is not asked."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from celluler.errors import InvalidSpec, LocalError, WorkerFailed
from celluler.models.folder import BESIDE, DOCUMENT, WEIGHTS, kind_of
from celluler_node.cli.output import Output, say
from celluler_node.cli.session import Json, log_to, run

if TYPE_CHECKING:
    from celluler_node.processes.worker_formats_words import Converted

FOLDERS = ("celluler", "hf")
"""What is written as a folder; all else is a file."""


Weights = Annotated[
    Path | None, typer.Option(help="Of a spec: a safetensors file or a PyTorch state dict, of any precision.")
]
Context = Annotated[
    int, typer.Option(help="Places of a sample of a language model; 0 for as many as fit, 2048 at most.", min=0)
]
ByOrder = Annotated[
    bool, typer.Option("--by-order", help="Tell tensors by order and shape where their names are not the spec's.")
]
Objective = Annotated[
    str, typer.Option(help="What an ONNX model is for: `classification`, `regression`, `next_token` …")
]


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN", help="ONNX, GGUF, a Hugging Face folder, a spec or folder of ours, or a state dict."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A file, or a folder; it must not be there yet.")],
    to: Annotated[str, typer.Option(help="`celluler` (a folder), `safetensors`, `onnx` or `hf` (a folder).")] = (
        "celluler"
    ),
    weights: Weights = None,
    context: Context = 0,
    by_order: ByOrder = False,
    objective: Objective = "",
    json: Json = False,
) -> None:
    """Bring a model from one format to another. The file is read in a sandbox, by its bytes and not by its name.

    What may carry code (pickles, TorchScript, .pt2) is refused, and the error says what to do. Keras and SavedModel are
    read where celluler[keras] is installed, as far as they carry none.
    """
    if out.exists():
        raise LocalError(f"{out} is there already", hint="name another")

    async def main() -> Converted:
        async with in_our_form(source, weights, to=to, context=context, by_order=by_order, objective=objective) as (
            folder,
            done,
        ):
            deliver(folder, done.files, out, to)
            return done

    done = run(main)
    record = {
        "source": done.form,
        "to": to,
        "out": str(out),
        "files": done.files,
        "body": done.body,
        "parameters": done.parameters,
        "weights_bytes": done.weights_bytes,
        "deviation": done.deviation if done.compared else None,
        "notes": done.notes,
    }
    Output(as_json=json).facts(record, {name: value for name, value in record.items() if name != "notes"})
    if not json:
        for note in done.notes:
            say(f"note: {note}")


def add_to(app: typer.Typer) -> None:
    app.command()(convert)


@asynccontextmanager
async def in_our_form(
    source: Path,
    weights: Path | None,
    *,
    to: str = "celluler",
    context: int = 0,
    by_order: bool = False,
    objective: str = "",
) -> AsyncIterator[tuple[Path, Converted]]:
    """What a confined worker made of a file, until the block ends. Raises InvalidSpec for a file that is refused."""
    from celluler_node.config import load_config  # noqa: PLC0415  `--help` needs none of it
    from celluler_node.converting import converted  # noqa: PLC0415
    from celluler_node.processes.worker_formats_words import Convert  # noqa: PLC0415

    log_to(None, "text", "warning")
    wanted = Convert(str(source), str(weights or ""), to, "out", context, by_order, objective)
    async with converted(load_config(os.environ), wanted) as made:
        yield made


@asynccontextmanager
async def publishable(
    source: Path, weights: Path | None, *, context: int, by_order: bool, objective: str
) -> AsyncIterator[tuple[Path, Path | None]]:
    """A body and its weights as `model add` takes them, until the block ends: what was given, or what it becomes."""
    if not needs_conversion(source, weights, by_order=by_order):
        yield source, weights
        return
    async with in_our_form(source, weights, context=context, by_order=by_order, objective=objective) as (folder, done):
        for note in done.notes:
            say(f"note: {note}")
        _check_written(folder, set(done.files))
        yield folder, None


def _check_written(folder: Path, told: set[str]) -> None:
    """What will be published of it is what the worker told of, which was looked at: all else may be a link.

    Raises WorkerFailed.
    """
    silent = [name for name in BESIDE if name not in told and os.path.lexists(folder / name)]
    if silent or not {DOCUMENT, WEIGHTS} <= told <= {DOCUMENT, WEIGHTS, *BESIDE}:
        raise WorkerFailed(f"it wrote {', '.join(sorted([*told, *silent]))}")


def needs_conversion(source: Path, weights: Path | None, *, by_order: bool = False) -> bool:
    """Whether `model add` was given something other than a document of ours and weights that fit it as they are."""
    if source.is_dir():
        return not (source / DOCUMENT).is_file()
    try:
        with source.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise LocalError(f"{source} cannot be read: {error.strerror}") from error
    if head.lstrip()[:1] != b"{":
        return True
    return weights is not None and not (_fits(source, weights) and not by_order)


def _fits(source: Path, weights: Path) -> bool:
    from celluler.documents import read_json  # noqa: PLC0415
    from celluler.models.body import MAX_BODY_BYTES, parse_body  # noqa: PLC0415
    from celluler.models.weights import check_weights  # noqa: PLC0415

    try:
        with source.open("rb") as file:
            document = file.read(MAX_BODY_BYTES + 1)
        parsed = read_json(document, limit=MAX_BODY_BYTES)
        if not isinstance(parsed, dict):
            return False
        check_weights(parse_body(kind_of(parsed), document), weights)
    except (InvalidSpec, OSError):
        return False  # the worker tells what is wrong, if anything is
    return True


def deliver(folder: Path, files: tuple[str, ...], out: Path, to: str) -> None:
    """From the scratch folder to where it was asked for; whole, or not there."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        if to in FOLDERS:
            temporary.mkdir()
            for name in files:
                _move(folder / name, temporary / name)
        else:
            _move(folder / files[0], temporary)
        temporary.rename(out)
    except OSError as error:
        raise LocalError(f"{out} cannot be written: {error.strerror}") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _move(made: Path, wanted: Path) -> None:
    """The worker wrote it for nobody else to read; who may read it here, the user's mask says."""
    shutil.move(made, wanted)
    mask = os.umask(0)
    os.umask(mask)
    wanted.chmod(0o666 & ~mask)
