"""`celluler model quantize`, `prune`, `distill` and `optimize`: a smaller model, and what it costs. The work is done in
a confined worker of this command's own."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from celluler.errors import InvalidSpec, LocalError
from celluler.views import Model, to_json
from celluler_node.cli.output import Output, say
from celluler_node.cli.session import NOBODY, Join, Json, run

if TYPE_CHECKING:
    from celluler_node.cli.compress_session import Wish, Workshop
    from celluler_node.processes.worker_compress_words import Compressed

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "int8": "int8", "int4": "int4"}
TARGETS = ("edge",)
Reference = Annotated[
    str, typer.Argument(metavar="MODEL", help="author/name:1.0.0 or a CID; or a folder that holds a model.")
]
Data = Annotated[
    str, typer.Option(metavar="DATA", help="To judge both models on: a file, or a published dataset. Held out, best.")
]
Label = Annotated[str, typer.Option(help="Of the data: the column, or tensor, to predict.")]
As = Annotated[
    str, typer.Option("--as", metavar="NAME", help="author/name:1.0.0; without it the next version of the model.")
]
OutputFolder = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write the model into this folder and publish nothing.")
]
Alias = Annotated[list[str], typer.Option(help="A name for the new version. May be repeated.")]


def quantize(
    model: Reference,
    to: Annotated[str, typer.Option(help="`bf16`, `fp16`, `int8` or `int4`.")],
    data: Data = "",
    label: Label = "",
    name: As = "",
    output: OutputFolder = None,
    alias: Alias = NOBODY,
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """Store a model's weights in fewer bits, and publish that as a version with the model as its parent.

    The smaller model predicts and is evaluated; training starts from its parent.
    """
    if to not in DTYPES:
        raise InvalidSpec("to", f"is {to[:16]!r}, must be one of {', '.join(DTYPES)}")

    async def work(shop: Workshop) -> Made:
        return await _quantised(shop, model, DTYPES[to], data, label, 0.0, _wish(name, output, alias, "quantised"))

    _run(work, join, json)


def prune(
    model: Reference,
    share: Annotated[float, typer.Option(help="Of the weights, or units, to take out: 0.5 is half.")],
    structured: Annotated[
        bool, typer.Option("--structured", help="Take whole units out: a smaller spec, a smaller file.")
    ] = False,
    data: Data = "",
    label: Label = "",
    name: As = "",
    output: OutputFolder = None,
    alias: Alias = NOBODY,
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """Take out the weights that matter least, by magnitude, and publish what is left with the model as its parent.

    Single weights become zero, and the file stays as long as it was; with --structured whole units of dense layers,
    convolutions and feed-forwards go, where the spec allows. `distill` from the model teaches what is left.
    """

    async def work(shop: Workshop) -> Made:
        from celluler.datasets.schema import Selection  # noqa: PLC0415
        from celluler.models.weights import need_float32  # noqa: PLC0415
        from celluler_node.processes.worker_compress_words import Prune  # noqa: PLC0415

        source = await shop.model(model)
        need_float32(source.body, "pruned")
        wanted = Prune(source.given(), share, structured, await shop.data(data), Selection(label=label))
        return await shop.make(wanted, [source], source, _wish(name, output, alias, "pruned", structured))

    _run(work, join, json)


def distill(
    teacher: Annotated[str, typer.Argument(metavar="TEACHER", help="A published model, or a folder that holds one.")],
    student: Annotated[
        str,
        typer.Argument(metavar="STUDENT", help="The same; or an architecture, a JSON file, to begin untrained."),
    ],
    data: Annotated[str, typer.Option(metavar="DATA", help="To learn on: a file, or a published dataset.")],
    test: Annotated[str, typer.Option(metavar="DATA", help="To judge both on; without it the same data.")] = "",
    label: Label = "",
    steps: Annotated[int, typer.Option(min=1, help="Steps of the lesson.")] = 500,
    batch: Annotated[int, typer.Option(min=1, help="Samples in a step.")] = 64,
    lr: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 1e-3,
    temperature: Annotated[float, typer.Option(help="By which both models' logits are divided.")] = 2.0,
    hard: Annotated[float, typer.Option(help="Share of the data's own labels in the loss, 0…1.")] = 0.3,
    seed: Annotated[int, typer.Option(min=0, help="Of the batches, and of an untrained student.")] = 0,
    name: As = "",
    output: OutputFolder = None,
    alias: Alias = NOBODY,
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """Teach a student what a teacher answers, on this machine, and publish it with both as its parents."""

    async def work(shop: Workshop) -> Made:
        from celluler.datasets.schema import Selection  # noqa: PLC0415
        from celluler.models.body import format_body  # noqa: PLC0415
        from celluler_node.processes.worker_compress_words import Distil  # noqa: PLC0415

        master, pupil = await shop.model(teacher), await shop.model(student)
        wanted = Distil(
            master.given(),
            format_body(pupil.body),
            str(pupil.weights or ""),
            await shop.data(data),
            await shop.data(test),
            steps,
            batch,
            lr,
            temperature,
            hard,
            seed,
            Selection(label=label),
        )
        return await shop.make(wanted, [master, pupil], pupil, _wish(name, output, alias, "distilled"))

    _run(work, join, json)


def optimize(
    model: Reference,
    target: Annotated[str, typer.Option(help="What for: `edge`.")] = "edge",
    tolerance: Annotated[
        float, typer.Option(help="What may be lost: of an accuracy 0.01, of an error or a perplexity 1 %.")
    ] = 0.01,
    onnx: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the float32 model there as ONNX, too.")
    ] = None,
    data: Data = "",
    label: Label = "",
    name: As = "",
    output: OutputFolder = None,
    alias: Alias = NOBODY,
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """Make a model as small as its task allows, and publish that with its card.

    `edge`: of int4, int8 and bf16 the smallest that loses no more than the tolerance on the data; int8 without data.
    """
    if target not in TARGETS:
        raise InvalidSpec("target", f"is {target[:16]!r}, must be {' or '.join(TARGETS)}")
    if onnx is not None and onnx.exists():
        raise LocalError(f"{onnx} is there already", hint="name another")

    async def work(shop: Workshop) -> Made:
        made = await _quantised(shop, model, "", data, label, tolerance, _wish(name, output, alias, "optimised"))
        if onnx is not None:
            await _export(shop, model, onnx)
        return made

    _run(work, join, json)


def add_to(app: typer.Typer) -> None:
    for command in (quantize, prune, distill, optimize):
        app.command()(command)


Made = tuple["Compressed", Model | None]
"""What the worker told, and what it was published as."""


async def _quantised(
    shop: Workshop, model: str, dtype: str, data: str, label: str, tolerance: float, wish: Wish
) -> Made:
    from celluler.datasets.schema import Selection  # noqa: PLC0415
    from celluler_node.processes.worker_compress_words import Quantise  # noqa: PLC0415

    source = await shop.model(model)
    wanted = Quantise(source.given(), dtype, await shop.data(data), Selection(label=label), tolerance)
    return await shop.make(wanted, [source], source, wish)


async def _export(shop: Workshop, model: str, path: Path) -> None:
    """The model itself as ONNX, by the same worker as `convert`."""
    from celluler.models.body import format_body  # noqa: PLC0415
    from celluler.models.folder import DOCUMENT  # noqa: PLC0415
    from celluler_node.cli.convert_commands import deliver, in_our_form  # noqa: PLC0415

    source = await shop.model(model)
    with tempfile.TemporaryDirectory(prefix="celluler-onnx-") as folder:
        document = Path(folder) / DOCUMENT
        document.write_bytes(format_body(source.body))
        async with in_our_form(document, source.weights, to="onnx") as (made, done):
            deliver(made, done.files, path, "onnx")


def _wish(name: str, output: Path | None, aliases: Sequence[str], verb: str, reshaped: bool = False) -> Wish:
    from celluler_node.cli.compress_session import Wish  # noqa: PLC0415

    if name and output is not None:
        raise typer.BadParameter("--as publishes, --output does not: give one of the two")
    if output is not None and output.exists():
        raise LocalError(f"{output} is there already", hint="name another")
    return Wish(name, output, aliases, verb, reshaped)


def _run(work: Callable[[Workshop], Awaitable[Made]], join: Sequence[str], as_json: bool) -> None:
    from celluler_node.cli.compress_session import open_workshop, rows_of  # noqa: PLC0415

    async def main() -> Made:
        with tempfile.TemporaryDirectory(prefix="celluler-smaller-") as folder:
            async with open_workshop(Path(folder), join) as shop:
                return await work(shop)

    done, model = run(main)
    output = Output(as_json=as_json)
    if as_json:
        figures = {"before": to_json(done.before), "after": to_json(done.after)}
        output.document({"model": to_json(model) if model else None, **figures, "tried": done.tried, "loss": done.loss})
        return
    if done.tried:
        say(f"{', '.join(done.tried)} lost more than was allowed")
    output.table(("", "before", "after"), rows_of(done))
    if model is not None:
        say(f"{model.reference} is published: {model.cid}")
