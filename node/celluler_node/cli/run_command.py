"""`celluler run MODEL INPUT`: predicts from a batch, or has a prompt answered."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from celluler.errors import InvalidSpec, LocalError
from celluler.views import Ensemble, Prediction, to_json
from celluler_node.cli.output import Output, ending, say
from celluler_node.cli.run_text import write
from celluler_node.cli.session import NOBODY, Join, Json, open_session, run
from celluler_node.cli.text_options import (
    NO_STOPS,
    USUAL_S,
    MaxTokens,
    Peer,
    Seed,
    Stop,
    Temperature,
    Timeout,
    TopK,
    TopP,
    read_schema,
    sampling,
)

MAX_INPUT_BYTES = 256 << 20


def run_model(
    model: Annotated[str, typer.Argument(help="author/name:1.0.0, author/name or a CID.")],
    input: Annotated[
        str,
        typer.Argument(
            help="A prompt, for a model that writes. Else a batch: nested lists or texts in JSON, or a .json or .npy "
            "file. - for either on stdin."
        ),
    ],
    dtype: Annotated[str, typer.Option(help="float32, int64 or uint8; by default what the input looks like.")] = "",
    output: Annotated[
        str,
        typer.Option(
            help="What of it: one of its postprocess, or raw, probabilities, labels, next_token, reconstruction, "
            "embedding; or sample, of seeds in place of inputs. `celluler model show` names those a model has, the "
            "usual one first."
        ),
    ] = "",
    ensemble: Annotated[
        int, typer.Option(min=1, max=16, help="Of a batch: answers of so many distinct peers, put together.")
    ] = 1,
    models: Annotated[
        str, typer.Option(metavar="MODEL,…", help="Of a batch: answers of these models, too, put together.")
    ] = "",
    aggregate: Annotated[
        str, typer.Option(metavar="vote|median|mean", help="How answers of an ensemble are put together.")
    ] = "vote",
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    stop: Stop = NO_STOPS,
    schema: Annotated[Path | None, typer.Option(help="A file with a JSON Schema that the answer must follow.")] = None,
    system: Annotated[str, typer.Option(help="What the model is told before the prompt.")] = "",
    raw: Annotated[bool, typer.Option("--raw", help="Go on with the text itself, without its chat template.")] = False,
    as_it_comes: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Show text as it comes; with --json not by default.")
    ] = None,
    stages: Annotated[
        int, typer.Option(min=0, max=16, help="Split the model over so many peers; by default where none can run it.")
    ] = 0,
    timeout: Timeout = USUAL_S,
    peer: Peer = "",
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """Run a model on a prompt or on a batch of inputs, here or at a peer that serves it."""
    text = sys.stdin.read(MAX_INPUT_BYTES).removesuffix("\n") if input == "-" else input
    prompted = not dtype and not output and is_prompt(text)
    inputs = None if prompted else read_batch(text)
    others = [one.strip() for one in models.split(",") if one.strip()]
    if prompted and (ensemble > 1 or others):
        raise InvalidSpec("ensemble", "is of a batch, and the input is a prompt")
    if ensemble > 1 and others:
        raise InvalidSpec("models", "go with one peer each, not with --ensemble")
    together = bool(others) or ensemble > 1
    if stages and not prompted:
        raise InvalidSpec("stages", "are of a model that writes, and the input is a batch")
    said = sampling(max_tokens, temperature, top_p, top_k, seed, stop, timeout, peer)
    if stages:
        said["stages"] = stages
    if schema is not None:
        said["schema"] = read_schema(schema)

    async def main() -> None:
        async with open_session(join) as client:
            if prompted:
                await write(
                    client,
                    model,
                    text,
                    said,
                    Output(as_json=json),
                    system=system,
                    raw=raw,
                    as_it_comes=as_it_comes,
                )
                return
            prediction = await client.predict(
                model,
                inputs,
                dtype=dtype or None,
                output=output,
                ensemble=others or ensemble,
                aggregate=aggregate if together else "",
                peer=peer,
            )
            _show(Output(as_json=json), prediction)

    run(main)


def is_prompt(text: str) -> bool:
    """Neither a batch in JSON nor a file."""
    if text.lstrip()[:1] in ("[", "{", '"'):
        try:
            json_module.loads(text)
        except (ValueError, RecursionError):
            return not text.lstrip().startswith(("[[", '["', "{"))  # these were meant to be one
        return False
    try:
        return not Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or with a zero in it
        return True


def _show(output: Output, prediction: Prediction) -> None:
    rows, scores = prediction.lists(), prediction.output in ("raw", "probabilities")
    if output.as_json:
        output.document({**to_json(prediction), "outputs": rows})
        return
    if scores and len(prediction.outputs.shape) == 2 and prediction.labels:
        best = [max(range(len(row)), key=row.__getitem__) for row in rows]
        lines = [(n, prediction.labels[k], rows[n][k]) for n, k in enumerate(best)]
        output.table(("sample", "label", "score"), lines)
    else:
        for row in rows if isinstance(rows, list) else [rows]:
            print(json_module.dumps(_short(row) if sys.stdout.isatty() else row, ensure_ascii=False))
    if prediction.ensemble is None:
        say(f"{prediction.model} at {ending(prediction.peer)} in {prediction.elapsed_s * 1000:.0f} ms")
    else:
        _show_ensemble(prediction.ensemble, prediction.elapsed_s)


def _show_ensemble(told: Ensemble, elapsed_s: float) -> None:
    say(f"{told.aggregate} of {told.answered} answers of {told.asked} in {elapsed_s * 1000:.0f} ms")
    if (most := max(told.disagreement, default=0.0)) > 0.0:
        say(f"disagreement: {most:.3g} at most, {sum(told.disagreement) / len(told.disagreement):.3g} on average")
    for one in told.members:
        name = f"{one.model} at {ending(one.peer)}" if one.peer else one.model
        if one.failure:
            say(f"{name} did not answer: {one.failure}")
        elif one.dissent:
            say(f"{name} disagrees about {one.dissent} of {len(told.disagreement)} samples")


def _short(value: Any) -> Any:
    """For eyes: four digits of every number. Whoever wants all of them pipes, or says --json."""
    if isinstance(value, list):
        return [_short(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def read_batch(text: str) -> Any:
    """Nested lists, or an array of a .npy file (never a pickled one)."""
    if text.lstrip()[:1] in ("[", "{", '"'):
        return _parse(text)
    path = Path(text)
    try:
        if path.stat().st_size > MAX_INPUT_BYTES:
            raise LocalError(f"{path} is larger than {MAX_INPUT_BYTES} bytes")
        if path.suffix != ".npy":
            return _parse(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise LocalError(f"cannot read {path}: {error}") from None
    import numpy as np  # noqa: PLC0415

    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise LocalError(f"{path} is no .npy file of numbers: {error}") from None


def _parse(text: str) -> Any:
    try:
        return json_module.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidSpec("input", f"not JSON: {error}") from None


_app = typer.Typer(add_completion=False, rich_markup_mode=None)
_app.command(name="run")(run_model)
APPS = {"run": _app}
