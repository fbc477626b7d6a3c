"""Real hosts on loopback, in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio

from celluler.identity import Identity
from celluler_protocols.host import Host, open_host

LISTEN = ("/ip4/127.0.0.1/tcp/0",)


def identity(number: int) -> Identity:
    return Identity(number.to_bytes(32, "big"))


@asynccontextmanager
async def hosts(count: int, **options: Any) -> AsyncIterator[list[Host]]:
    """`count` listening hosts that do not know each other."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(open_host(identity(number + 1), listen=LISTEN, **options))
            for number in range(count)
        ]


async def join(one: Host, other: Host) -> None:
    await one.connect(other.addresses[0])


async def echo(_peer: str, stream: trio.abc.Stream) -> None:
    async for data in stream:
        await stream.send_all(data)


async def ask(host: Host, peer: Any, protocol: str, data: bytes) -> bytes:
    """Send, say that is all, and read all of the answer, both at once."""
    answer = bytearray()
    with trio.fail_after(10):
        async with await host.open_stream(peer, protocol) as stream:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_send, stream, data)
                    while chunk := await stream.receive_some():
                        answer += chunk
            except* trio.BrokenResourceError as broken:
                raise trio.BrokenResourceError("reset") from broken
    return bytes(answer)


async def _send(stream: trio.abc.HalfCloseableStream, data: bytes) -> None:
    await stream.send_all(data)
    await stream.send_eof()


async def until(holds: Any, *, within_s: float = 10) -> None:
    """Wait until a condition on another task's state holds."""
    with trio.fail_after(within_s):
        while not holds():  # noqa: ASYNC110 - the condition is not an event of ours
            await trio.sleep(0.01)
