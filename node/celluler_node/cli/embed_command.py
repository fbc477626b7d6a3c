"""`celluler embed MODEL TEXT…`."""

from __future__ import annotations

import json as json_module
import sys
from typing import Annotated

import typer

from celluler.errors import InvalidSpec
from celluler.views import to_json
from celluler_node.cli.output import Output, ending, say
from celluler_node.cli.session import NOBODY, Join, Json, open_session, run

MAX_INPUT_BYTES = 16 << 20


def embed(
    model: Annotated[str, typer.Argument(help="author/name:1.0.0, author/name or a CID.")],
    text: Annotated[list[str], typer.Argument(help="Texts to embed; - alone for one a line on stdin.")],
    join: Join = NOBODY,
    json: Json = False,
) -> None:
    """Turn texts into vectors, one a line, by a model that takes texts."""
    texts = _lines() if text == ["-"] else text

    async def main() -> None:
        async with open_session(join) as client:
            prediction = await client.embed(model, texts)
            if json:
                Output(as_json=True).document({**to_json(prediction), "outputs": prediction.lists()})
                return
            for vector in prediction.lists():
                print(json_module.dumps(vector))
            say(f"{prediction.model} at {ending(prediction.peer)} in {prediction.elapsed_s * 1000:.0f} ms")

    run(main)


def _lines() -> list[str]:
    found = sys.stdin.read(MAX_INPUT_BYTES + 1)
    if len(found) > MAX_INPUT_BYTES:
        raise InvalidSpec("text", f"stdin has more than {MAX_INPUT_BYTES} characters")
    if not (lines := found.splitlines()):
        raise InvalidSpec("text", "stdin is empty")
    return lines


_app = typer.Typer(add_completion=False, rich_markup_mode=None)
_app.command(name="embed")(embed)
APPS = {"embed": _app}
