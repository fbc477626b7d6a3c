"""The endpoint called in this process: bodies stream, and an answer that breaks off is seen to."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
import trio
import trio.testing
from starlette.types import Receive, Scope, Send

from celluler_node.gateway.in_process import open_in_process

MIB = 1 << 20


async def endless(_scope: Scope, _receive: Receive, send: Send) -> None:
    """Answers with a mebibyte a time, for ever. `sent`: how many."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": bytes(MIB), "more_body": True})
        endless.sent += 1  # type: ignore[attr-defined]


async def test_an_answer_is_made_as_fast_as_it_is_read() -> None:
    endless.sent = 0  # type: ignore[attr-defined]
    with trio.fail_after(5):
        async with (
            open_in_process(endless) as transport,
            httpx.AsyncClient(transport=transport) as http,
            http.stream("GET", "http://localhost/") as answer,
        ):
            chunks = answer.aiter_raw()
            for read in range(1, 4):
                assert len(await anext(chunks)) == MIB
                await trio.testing.wait_all_tasks_blocked()
                assert endless.sent <= read + 1  # type: ignore[attr-defined]


async def test_a_body_is_read_as_it_is_asked_for() -> None:
    made = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal made
        for _ in range(5):
            made += 1
            yield bytes(MIB)

    async def counting(_scope: Scope, receive: Receive, send: Send) -> None:
        total = 0
        while (message := await receive())["more_body"]:
            total += len(message["body"])
            assert made * MIB == total
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(total).encode()})
        assert (await receive())["type"] == "http.disconnect"

    with trio.fail_after(5):
        async with open_in_process(counting) as transport, httpx.AsyncClient(transport=transport) as http:
            assert (await http.post("http://localhost/", content=body())).text == str(5 * MIB)


@pytest.mark.parametrize("begins", [True, False])
async def test_an_answer_that_breaks_off_is_not_taken_for_whole(begins: bool) -> None:
    async def broken(_scope: Scope, _receive: Receive, send: Send) -> None:
        if begins:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ZeroDivisionError

    with trio.fail_after(5):
        async with open_in_process(broken) as transport, httpx.AsyncClient(transport=transport) as http:
            with pytest.raises(httpx.ReadError):
                await http.get("http://localhost/")
