"""What a model writes, piece by piece. `AsyncPieces` has the same shape."""

from __future__ import annotations

import time
from types import TracebackType

from celluler import views
from celluler.client.calls_text import Reading
from celluler.client.transport import Stream


class Pieces:
    """Iterate over it. Leaving its `with` block, or `close`, ends an answer that is not over yet."""

    def __init__(self, stream: Stream, reading: Reading) -> None:
        self._stream, self._reading = stream, reading
        self._pieces: list[views.Piece] = []

    @property
    def generation(self) -> views.Generation:
        """What has come so far; figures of tokens are there at the end."""
        return self._reading.generation(time.monotonic())

    def __iter__(self) -> Pieces:
        return self

    def __next__(self) -> views.Piece:
        """Raises what the node raised."""
        while not self._pieces:
            if self._reading.done:
                self.close()
                raise StopIteration
            self._advance()
        return self._pieces.pop(0)

    def _advance(self) -> None:
        try:
            chunk = self._stream.read()
            if not chunk:
                self._reading.end()
            self._pieces += self._reading.feed(chunk, time.monotonic())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> Pieces:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
