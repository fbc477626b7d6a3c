"""Bars for what is on its way here, on stderr, while a command waits for it. None without a terminal.

The node is asked how far it is; nothing is guessed. A bar goes away when its transfer does.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import trio

from celluler.client import AsyncClient
from celluler.errors import Unavailable
from celluler.quantities import format_bytes, format_duration
from celluler.views import Transfer
from celluler_node.cli.output import ending, printable
from celluler_protocols.nursery import own_nursery

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

T = TypeVar("T")

POLL_S = 0.25
_SLACK_S = 1.0


async def with_bars(client: AsyncClient, wanted: str, work: Callable[[], Awaitable[T]], *, quiet: bool = False) -> T:
    """Do the work, and show meanwhile what is fetched for it. wanted: name or CID. quiet: as without a terminal."""
    if quiet or not sys.stderr.isatty():
        return await work()
    from rich.console import Console  # noqa: PLC0415

    return await draw_while(client, wanted, work, Console(stderr=True))


async def draw_while(client: AsyncClient, wanted: str, work: Callable[[], Awaitable[T]], console: Console) -> T:
    async with own_nursery() as nursery:
        nursery.start_soon(_follow, client, wanted, console)
        return await work()


async def _follow(client: AsyncClient, wanted: str, console: Console) -> None:
    began_s = time.time() - _SLACK_S
    with TransferBars(console) as bars:
        while True:
            try:
                told = await client.transfers()
            except Unavailable:  # the work itself will say so
                told = ()
            bars.show([one for one in told if _is_of(one, wanted) or one.started_s >= began_s])
            await trio.sleep(POLL_S)


def _is_of(transfer: Transfer, wanted: str) -> bool:
    """Whether it may be what was asked for, begun by somebody else: which version a name means is not known here."""
    return transfer.cid == wanted or transfer.name.partition(":")[0] == re.split("[:@]", wanted, maxsplit=1)[0]


class TransferBars:
    """One bar a transfer. Draws when told to, with no thread of its own."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[told]}", markup=False),
        )
        self._progress = Progress(*columns, console=console, auto_refresh=False, transient=True)
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> TransferBars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, transfers: Sequence[Transfer]) -> None:
        for cid in self._bars.keys() - {one.cid for one in transfers}:
            self._progress.remove_task(self._bars.pop(cid))
        for one in transfers:
            if one.cid not in self._bars:
                self._bars[one.cid] = self._progress.add_task(printable(one.name or ending(one.cid)), told="")
            self._progress.update(
                self._bars[one.cid], completed=one.kept_bytes, total=one.wanted_bytes or None, told=describe(one)
            )
        self._progress.refresh()


def describe(transfer: Transfer) -> str:
    """`12.0 MiB of 40.0 MiB, 3.1 MiB/s from 2 peers, 9.0 s left`"""
    parts = [f"{format_bytes(transfer.kept_bytes)} of {format_bytes(transfer.wanted_bytes)}"]
    busy = sum(1 for source in transfer.sources if source.rate_bytes_s > 0) or len(transfer.sources)
    peers = f"{busy} peer{'' if busy == 1 else 's'}"
    parts.append(f"{format_bytes(transfer.rate_bytes_s)}/s from {peers}" if busy else "looking for peers")
    if transfer.eta_s is not None:
        parts.append(f"{format_duration(transfer.eta_s)} left")
    return ", ".join(parts)
