"""How a model is to write, said on the command line, and what it writes, shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from celluler.client import AsyncClient
from celluler.client.calls import read_text
from celluler.client.calls_text import Prompt, SamplingFields
from celluler.errors import InvalidSpec
from celluler.views import Generation, Model, Piece
from celluler_node.cli.output import ending, printable, say

MaxTokens = Annotated[
    int | None, typer.Option(min=1, help="Tokens of an answer; by default as many as the model can look at.")
]
Temperature = Annotated[
    float | None, typer.Option(min=0.0, max=2.0, help="0 takes the likeliest token; by default 1, as it says.")
]
TopP = Annotated[float | None, typer.Option(help="Draw from the fewest likeliest that hold this share.")]
TopK = Annotated[int | None, typer.Option(min=0, help="Draw from so many likeliest; 0 for all.")]
Seed = Annotated[int | None, typer.Option(help="Draw as with this seed before; by default a new one.")]
Stop = Annotated[list[str], typer.Option(help="A text at which the answer ends. May be repeated.")]
Timeout = Annotated[float, typer.Option(min=0.1, max=3600.0, help="Seconds until the last token.")]
Peer = Annotated[str, typer.Option(help="Who alone is to answer, by peer id or nickname; by default who does it best.")]
NO_STOPS: list[str] = []
USUAL_S = 300.0
NEXT_TOKEN, CHAT_TEMPLATE = "next_token", "chat-template"
MAX_SCHEMA_BYTES = 64 << 10
"""These three as others have them; those modules are not imported for a command to start."""


def sampling(
    max_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    seed: int | None,
    stop: Sequence[str],
    timeout: float = USUAL_S,
    peer: str = "",
) -> SamplingFields:
    """What was said; nothing of what was not."""
    said: SamplingFields = {"max_tokens": max_tokens, "seed": seed, "stop": list(stop), "timeout_s": timeout}
    if peer:
        said["peer"] = peer
    if temperature is not None:
        said["temperature"] = temperature
    if top_p is not None:
        said["top_p"] = top_p
    if top_k is not None:
        said["top_k"] = top_k
    return said


def read_schema(path: Path) -> dict[str, Any]:
    """Raises LocalError, InvalidSpec for what is no object in JSON. Whether it is a schema, the node says."""
    try:
        told = json.loads(read_text(path, MAX_SCHEMA_BYTES))
    except (ValueError, RecursionError) as error:
        raise InvalidSpec("--schema", f"is not JSON: {error}") from None
    if not isinstance(told, dict):
        raise InvalidSpec("--schema", "is no object")
    return told


def writes(model: Model) -> bool:
    """It tells the next token of a text."""
    return model.takes is not None and model.takes.dtype == "text" and NEXT_TOKEN in {port.name for port in model.gives}


def converses(model: Model) -> bool:
    """It has a template that makes prompts of conversations."""
    return CHAT_TEMPLATE in model.files


def show_piece(piece: Piece) -> None:
    """As it comes, with nothing in it that would steer a terminal."""
    print(printable(piece.text, keep="\n\t"), end="", flush=True)


async def stream(client: AsyncClient, model: str, prompt: Prompt, said: SamplingFields) -> Generation:
    """Shown as it comes."""
    async with await client.generate(model, prompt, stream=True, **said) as pieces:
        try:
            async for piece in pieces:
                show_piece(piece)
        finally:
            if sys.stdout.isatty() or pieces.generation.answers:
                print(flush=True)
        return pieces.generation


def say_figures(told: Generation) -> None:
    rate = f", {told.generated_tokens / told.elapsed_s:.1f} tokens/s" if told.elapsed_s > 0 else ""
    cut = "; more would follow (--max-tokens)" if told.answers and told.answers[0].reason == "length" else ""
    say(
        f"{told.model} at {ending(told.peer)}: {told.generated_tokens} tokens in {told.elapsed_s:.2f} s{rate}, "
        f"seed {told.seed}{cut}"
    )
