"""`celluler chat MODEL`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from celluler_node.cli.chat_session import Chat, open_lines
from celluler_node.cli.chat_talk import Talk
from celluler_node.cli.session import NOBODY, Join, open_session, run
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
    sampling,
)


def chat(
    model: Annotated[str, typer.Argument(help="author/name:1.0.0, author/name or a CID, with a chat template.")],
    system: Annotated[str, typer.Option(help="What the model is told first.")] = "",
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    stop: Stop = NO_STOPS,
    timeout: Timeout = USUAL_S,
    peer: Peer = "",
    join: Join = NOBODY,
) -> None:
    """Talk with a model that writes. /help says what can be done there; without a terminal, a turn is a line."""
    talk = Talk(model, system, said=sampling(max_tokens, temperature, top_p, top_k, seed, stop, timeout, peer))

    async def main() -> None:
        async with open_session(join) as client, open_lines() as read:
            await Chat(client, talk, read, attended=sys.stdin.isatty()).run()

    run(main)


_app = typer.Typer(add_completion=False, rich_markup_mode=None)
_app.command(name="chat")(chat)
APPS = {"chat": _app}
