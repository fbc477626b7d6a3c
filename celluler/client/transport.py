"""The connection of a client, in both shapes: sends calls, streams files, and gives httpx's failures in our terms.

Knows neither what a call means nor which there are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import anyio
import httpx

from celluler.client.calls import CONNECT_S, MOVE_S, Call, Target, read_answer, read_json
from celluler.errors import LocalError, NodeNotRunning, TimedOut, Unavailable

T = TypeVar("T")

CHUNK_BYTES = 1 << 20


class Link:
    """One node, over HTTP."""

    def __init__(self, target: Target, transport: httpx.BaseTransport | None) -> None:
        self._target = target
        self._http = httpx.Client(transport=transport, **_settings(target))

    def send(self, call: Call[T]) -> T:
        """The result. Raises what the node raised."""
        body = None if call.upload is None else _chunks(call.upload)
        with _failures(self._target, call):
            answer = self._http.request(content=body, **_arguments(call))
        return read_answer(call, answer.status_code, answer.content)

    def ask(self, call: Call[Any], failed: Callable[[int, bytes], Exception]) -> Any:
        """The JSON of an answer that is none of our own documents. failed: as `open` has it."""
        with _failures(self._target, call):
            answer = self._http.request(**_arguments(call))
        if answer.status_code != 200:
            raise failed(answer.status_code, answer.content)
        return read_json(call, answer.content)

    def download(self, path: str, target: Path) -> int:
        """The bytes of an answer as a file, which is there once it is whole; returns how many."""
        call: Call[None] = Call("GET", path, lambda _document: None)
        stream = self._http.stream("GET", path, timeout=_timeouts(MOVE_S))
        with _failures(self._target, call), stream as answer:
            if answer.status_code != 200:
                read_answer(call, answer.status_code, answer.read())
            with _whole(target) as part, part.open("wb") as file:
                for chunk in answer.iter_bytes(CHUNK_BYTES):
                    file.write(chunk)
                return file.tell()

    def open(self, call: Call[Any], failed: Callable[[int, bytes], Exception]) -> Stream:
        """An answer as it comes. failed: makes an error of another status than 200, with its body."""
        with _failures(self._target, call):
            answer = self._http.send(self._http.build_request(**_arguments(call)), stream=True)
            if answer.status_code != 200:
                raise failed(answer.status_code, answer.read())
        return Stream(self._target, call, answer)

    def close(self) -> None:
        self._http.close()


class Stream:
    """The bytes of an answer. To be closed."""

    def __init__(self, target: Target, call: Call[Any], answer: httpx.Response) -> None:
        self._target, self._call, self._answer, self._chunks = target, call, answer, answer.iter_bytes()

    def read(self) -> bytes:
        """What comes next, empty at the end."""
        with _failures(self._target, self._call):
            return next(self._chunks, b"")

    def close(self) -> None:
        self._answer.close()


class AsyncLink:
    """`Link`, on trio and on asyncio."""

    def __init__(self, target: Target, transport: httpx.AsyncBaseTransport | None) -> None:
        self._target = target
        self._http = httpx.AsyncClient(transport=transport, **_settings(target))

    async def send(self, call: Call[T]) -> T:
        """The result. Raises what the node raised."""
        body = None if call.upload is None else _async_chunks(call.upload)
        with _failures(self._target, call):
            answer = await self._http.request(content=body, **_arguments(call))
        return read_answer(call, answer.status_code, answer.content)

    async def ask(self, call: Call[Any], failed: Callable[[int, bytes], Exception]) -> Any:
        """The JSON of an answer that is none of our own documents. failed: as `open` has it."""
        with _failures(self._target, call):
            answer = await self._http.request(**_arguments(call))
        if answer.status_code != 200:
            raise failed(answer.status_code, answer.content)
        return read_json(call, answer.content)

    async def download(self, path: str, target: Path) -> int:
        """The bytes of an answer as a file, which is there once it is whole; returns how many."""
        call: Call[None] = Call("GET", path, lambda _document: None)
        stream = self._http.stream("GET", path, timeout=_timeouts(MOVE_S))
        with _failures(self._target, call):
            async with stream as answer:
                if answer.status_code != 200:
                    read_answer(call, answer.status_code, await answer.aread())
                with _whole(target) as part:
                    async with await anyio.open_file(part, "wb") as file:
                        async for chunk in answer.aiter_bytes(CHUNK_BYTES):
                            await file.write(chunk)
                        return await file.tell()

    async def open(self, call: Call[Any], failed: Callable[[int, bytes], Exception]) -> AsyncStream:
        """An answer as it comes. failed: makes an error of another status than 200, with its body."""
        with _failures(self._target, call):
            answer = await self._http.send(self._http.build_request(**_arguments(call)), stream=True)
            if answer.status_code != 200:
                raise failed(answer.status_code, await answer.aread())
        return AsyncStream(self._target, call, answer)

    async def aclose(self) -> None:
        await self._http.aclose()


class AsyncStream:
    """`Stream`, on trio and on asyncio."""

    def __init__(self, target: Target, call: Call[Any], answer: httpx.Response) -> None:
        self._target, self._call, self._answer, self._chunks = target, call, answer, answer.aiter_bytes()

    async def read(self) -> bytes:
        """What comes next, empty at the end."""
        with _failures(self._target, self._call):
            return await anext(self._chunks, b"")

    async def aclose(self) -> None:
        await self._answer.aclose()


def _settings(target: Target) -> dict[str, Any]:
    """Keyword arguments of an httpx client. Proxies of the environment are not for a loopback address."""
    return {
        "base_url": target.url,
        "headers": {
            "Authorization": f"Bearer {target.token}",
            **({"X-Celluler-Session": quote(target.session)} if target.session else {}),
        },
        "timeout": CONNECT_S,
        "trust_env": False,
    }


def _arguments(call: Call[Any]) -> dict[str, Any]:
    return {
        "method": call.method,
        "url": call.path,
        "params": dict(call.params),
        "json": call.json,
        "timeout": _timeouts(call.timeout_s),
    }


def _timeouts(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=CONNECT_S)


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """Where to write a file that bears its name once it is whole. A pipe or a device is written to as it is."""
    if target.exists() and not target.is_file():
        yield target
        return
    part = target.with_name(f"{target.name}.part")
    try:
        yield part
        part.replace(target)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def _failures(target: Target, call: Call[Any]) -> Iterator[None]:
    """Raises NodeNotRunning, TimedOut or Unavailable for what httpx raises, LocalError for what our own files do."""
    try:
        yield
    except httpx.ConnectError as error:
        raise NodeNotRunning(f"no node answers at {target.url}", hint="celluler up") from error
    except httpx.TimeoutException as error:
        raise TimedOut(f"{call.method} {call.path} was not answered in time", hint="celluler status") from error
    except httpx.TransportError as error:
        raise Unavailable(f"the node broke off: {error or type(error).__name__}", hint="celluler status") from error
    except OSError as error:
        raise LocalError(f"cannot use {error.filename or 'the file'}: {error.strerror}") from error


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


async def _async_chunks(path: Path) -> AsyncIterator[bytes]:
    async with await anyio.open_file(path, "rb") as file:
        while chunk := await file.read(CHUNK_BYTES):
            yield chunk
