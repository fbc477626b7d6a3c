"""What a model writes, piece by piece, on trio and on asyncio."""

from __future__ import annotations

import time
from types import TracebackType

from celluler import views
from celluler.client.calls_text import Reading
from celluler.client.transport import AsyncStream


class AsyncPieces:
    """Iterate over it. Leaving its `async with` block, or `aclose`, ends an answer that is not over yet."""

    def __init__(self, stream: AsyncStream, reading: Reading) -> None:
        self._stream, self._reading = stream, reading
        self._pieces: list[views.Piece] = []

    @property
    def generation(self) -> views.Generation:
        """What has come so far; figures of tokens are there at the end."""
        return self._reading.generation(time.monotonic())

    def __aiter__(self) -> AsyncPieces:
        return self

    async def __anext__(self) -> views.Piece:
        """Raises what the node raised."""
        while not self._pieces:
            if self._reading.done:
                await self.aclose()
                raise StopAsyncIteration
            await self._advance()
        return self._pieces.pop(0)

    async def _advance(self) -> None:
        try:
            chunk = await self._stream.read()
            if not chunk:
                self._reading.end()
            self._pieces += self._reading.feed(chunk, time.monotonic())
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def __aenter__(self) -> AsyncPieces:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
