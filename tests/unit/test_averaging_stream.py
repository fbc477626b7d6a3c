from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from celluler.errors import ProtocolViolation
from celluler_protocols.averaging_messages import Have, Ready, Taken
from celluler_protocols.averaging_stream import Stream

BODY = bytes(range(256)) * 4096
Side = Callable[[Stream], Awaitable[None]]


def talk(folder: Path, serve: Side, ask: Side) -> None:
    """Both sides of one stream over a Unix socket, as p2pd gives them to us."""

    async def both() -> None:
        served: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            stream = Stream(reader, writer)
            try:
                await serve(stream)
                served.set_result(None)
            except Exception as error:
                served.set_exception(error)
            finally:
                stream.close()

        server = await asyncio.start_unix_server(handle, path=folder / "socket")
        async with server, asyncio.timeout(10):
            stream = Stream(*await asyncio.open_unix_connection(folder / "socket"))
            try:
                await ask(stream)
            finally:
                stream.close()
            await served

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(both())


def test_bytes_and_frames_take_turns_and_none_is_lost(tmp_path: Path) -> None:
    async def serve(stream: Stream) -> None:
        for _ in range(3):
            assert await stream.hear() == Ready()
            stream._writer.write(stream._frames.encode(Have(len(BODY))) + BODY[:1000])  # together, as it may happen
            await stream.send_bytes(BODY[1000:])
            await stream.say(Taken())

    async def ask(stream: Stream) -> None:
        for _ in range(3):
            await stream.say(Ready())
            assert await stream.hear() == Have(len(BODY))
            halves = bytearray(len(BODY))
            await stream.receive_into(memoryview(halves)[:70_000])
            await stream.receive_into(memoryview(halves)[70_000:])
            assert halves == BODY
            assert await stream.hear() == Taken()

    talk(tmp_path, serve, ask)


def test_a_stream_that_ends_within_the_bytes_is_told(tmp_path: Path) -> None:
    async def serve(stream: Stream) -> None:
        await stream.hear()
        await stream.send_bytes(BODY[:100_001])

    async def ask(stream: Stream) -> None:
        await stream.say(Ready())
        with pytest.raises((EOFError, OSError)):
            await stream.receive_into(memoryview(bytearray(len(BODY))))

    talk(tmp_path, serve, ask)


def test_bytes_for_which_the_stream_has_ended_already_are_not_awaited(tmp_path: Path) -> None:
    async def serve(stream: Stream) -> None:
        await stream.say(Have(5))

    async def ask(stream: Stream) -> None:
        assert await stream.hear() == Have(5)
        assert await stream._reader.read() == b""
        with pytest.raises(EOFError):
            await stream.receive_into(memoryview(bytearray(5)))

    talk(tmp_path, serve, ask)


def test_who_gives_up_waiting_leaves_the_stream_usable(tmp_path: Path) -> None:
    async def serve(stream: Stream) -> None:
        assert await stream.hear() == Ready()
        await stream.say(Taken())

    async def ask(stream: Stream) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await stream.receive_into(memoryview(bytearray(5)))
        await stream.say(Ready())
        assert await stream.hear() == Taken()

    talk(tmp_path, serve, ask)


def test_a_frame_too_large_is_refused_by_its_length(tmp_path: Path) -> None:
    async def serve(stream: Stream) -> None:
        stream._writer.write(b"\0\1\0\0" + bytes(10))

    async def ask(stream: Stream) -> None:
        with pytest.raises(ProtocolViolation, match="limit"):
            await stream.hear()

    talk(tmp_path, serve, ask)
