"""How a command reaches a node: the one of this machine, or a light peer that joins, does the work and leaves."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, TypeVar, cast

import trio
import typer

from celluler.client import AsyncClient
from celluler.errors import CellulerError, LocalError
from celluler.home import places

T = TypeVar("T")

Join = Annotated[
    list[str],
    typer.Option(metavar="ADDR", help="Join this peer for the command, without a running node. May be repeated."),
]
NOBODY: list[str] = []
"""The default of `--join`: use the running node."""
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@asynccontextmanager
async def open_session(join: Sequence[str] = ()) -> AsyncIterator[AsyncClient]:
    """A client of the local node, or with addresses to join, of a light peer in this process."""
    if not join:
        async with AsyncClient(home=places(os.environ).home) as client:
            yield client
        return
    from celluler_node.config import load_config  # noqa: PLC0415
    from celluler_node.gateway.app import gateway_app  # noqa: PLC0415
    from celluler_node.gateway.in_process import open_in_process  # noqa: PLC0415
    from celluler_node.light import open_light  # noqa: PLC0415  # libp2p: only when asked for

    config = load_config(os.environ, {"network.join": list(join)})
    log_to(None, "text", "warning")  # never on stdout, which is for the result
    token = secrets.token_hex(16)
    async with open_light(config, config.join) as operations:
        spool = config.scratch_folder / "uploads"
        spool.mkdir(parents=True, exist_ok=True)
        async with (
            open_in_process(gateway_app(operations, token, spool=spool)) as transport,
            AsyncClient("http://localhost", token, transport=transport) as client,
        ):
            yield client


def log_to(file: Path | None, form: str, level: str) -> None:
    """Send the log of this process to a file, or to stderr."""
    from celluler_node.logs import Level, LogConfig, set_up  # noqa: PLC0415

    try:
        set_up(LogConfig(cast(Level, level), "json" if form == "json" else "console", file))
    except OSError as error:
        raise LocalError(f"cannot log to {file}: {error.strerror}") from None


def run(main: Callable[[], Awaitable[T]]) -> T:
    """Run under trio. An error that nurseries wrapped comes out as itself."""
    try:
        return trio.run(main)
    except BaseExceptionGroup as group:
        raise _cause(group) from group


def _cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What to tell the person: the only error in the group, or the first of ours when everything in it is ours."""
    leaves: list[BaseException] = []
    stack: list[BaseException] = [group]
    while stack:
        error = stack.pop()
        if isinstance(error, BaseExceptionGroup):
            stack += reversed(error.exceptions)
        elif not isinstance(error, trio.Cancelled):
            leaves.append(error)
    if any(isinstance(error, KeyboardInterrupt) for error in leaves):
        return KeyboardInterrupt()
    if len(leaves) == 1 or (leaves and all(isinstance(error, CellulerError) for error in leaves)):
        return leaves[0]
    return group
