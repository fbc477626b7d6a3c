"""Bars while something is fetched: what they say, and when there are none."""

from __future__ import annotations

import io

import pytest
import trio
from rich.console import Console

from celluler.client import AsyncClient
from celluler.errors import NotFound
from celluler.views import Transfer, TransferSource
from celluler_node.cli.progress import describe, draw_while, with_bars
from celluler_node.gateway.app import gateway_app
from celluler_node.gateway.in_process import open_in_process
from tests.support.jobs import ALICE, BOB, DATA_CID
from tests.support.operations import MemoryNode

MIB = 1 << 20


def transfer(**fields: object) -> Transfer:
    sources = (
        TransferSource(ALICE.peer_id, 8 * MIB, 2.0 * MIB, "bulk"),
        TransferSource(BOB.peer_id, 4 * MIB, 1.0 * MIB, "stream"),
    )
    values = {"name": "alice/d:1.0.0", "started_s": 1.0, "kept_bytes": 12 * MIB, "wanted_bytes": 48 * MIB}
    known = {"cid": DATA_CID, "rate_bytes_s": 3.0 * MIB, "eta_s": 12.0, "sources": sources}
    return Transfer(**{**values, **known, **fields})  # type: ignore[arg-type]


def test_a_bar_says_how_much_how_fast_from_how_many_and_how_long() -> None:
    assert describe(transfer()) == "12.0 MiB of 48.0 MiB, 3.0 MiB/s from 2 peers, 12 s left"
    assert describe(transfer(sources=(), eta_s=None)) == "12.0 MiB of 48.0 MiB, looking for peers"


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        (transfer(), "alice/d:1.0.0"),
        (transfer(name="", started_s=1e12), DATA_CID[-8:]),
        (transfer(name="[red]\x1b[2J[/x]", started_s=1e12), "[red]\ufffd[2J[/x]"),  # no markup, steers no terminal
    ],
)
async def test_bars_are_drawn_while_the_work_lasts(told: Transfer, shown: str) -> None:
    drawn = await draw(told)
    assert shown in drawn
    assert " 25 %" in drawn
    assert "3.0 MiB/s from 2 peers" in drawn


async def test_what_others_fetch_is_not_drawn() -> None:
    assert "MiB" not in await draw(transfer(name="bob/e:1.0.0"))


async def test_an_error_of_the_work_comes_out_of_the_bars() -> None:
    async def fail() -> None:
        raise NotFound("model alice/d")

    with pytest.raises(NotFound):
        await draw(transfer(), fail)


async def test_without_a_terminal_nobody_asks_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    node = MemoryNode()

    async def work() -> int:
        await trio.lowlevel.checkpoint()
        return 7

    monkeypatch.setattr(node, "transfers", None)
    async with (
        open_in_process(gateway_app(node, "t")) as transport,
        AsyncClient("http://localhost", "t", transport=transport) as client,
    ):
        assert await with_bars(client, "alice/d", work) == 7
    node.close()


async def draw(told: Transfer, work: object = None) -> str:
    """What is on the terminal of somebody who waits for alice/d until it was drawn twice."""
    node, screen = MemoryNode(), io.StringIO()
    node.moving, asked = (told,), 0
    drawn = trio.Event()

    async def transfers() -> tuple[Transfer, ...]:
        nonlocal asked
        asked += 1
        if asked == 2:
            drawn.set()
        return node.moving

    node.transfers = transfers  # type: ignore[method-assign]
    console = Console(file=screen, force_terminal=True, width=160)
    with trio.fail_after(5):
        async with (
            open_in_process(gateway_app(node, "t")) as transport,
            AsyncClient("http://localhost", "t", transport=transport) as client,
        ):
            await draw_while(client, "alice/d", work or drawn.wait, console)  # type: ignore[arg-type]
    node.close()
    return screen.getvalue()
