"""One source of a fetch: its stream, and the mover it is handed to when it grants one.

    stream ──content begun, enough wanted, mover opened──▶ mover ──mover ended──▶ stream ──ended──▶ left

Manifest and leaves always come over the stream. While a mover carries the chunks, the stream is closed as soon as
nothing is owed on it: it is a place at the provider that somebody else can use.

Moves bytes and decides nothing: what to ask, and what to believe, is the machine's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from celluler.content.digest import Digest
from celluler.content.download import Download
from celluler.content.movers import Chunk, Falsified, Lacking, Meter, Moved, Mover, OpenMover, Placed
from celluler.content.progress import Transport
from celluler.content.steps import Reason, Step
from celluler.errors import CellulerError, LocalError, PeerViolation, ProtocolViolation, Unavailable
from celluler.identity import PeerId
from celluler.wire import Frames
from celluler_protocols.content.messages import (
    END_OF_STREAM,
    MAX_WANTED,
    RECEIVE_BYTES,
    Absent,
    Busy,
    Found,
    Want,
    frames,
)

OPEN_S = 10.0
"""A source whose stream does not open in so long is left."""
UPGRADE_BYTES = 2 << 20
"""A mover is opened for no less than this."""
UPGRADE_AGAIN_S = 30.0
"""A source whose mover could not be opened, or ended, is tried again after so long."""
TRICKLE_BYTES = 1 << 14
"""So much of a long answer shows that its source is alive."""

OpenStream = Callable[[PeerId], Awaitable[trio.abc.Stream]]
"""Opens a stream of `PROTOCOL_ID` to a peer. Raises Unavailable."""
OnViolation = Callable[[PeerId, PeerViolation], None]
"""Called when a source is caught lying, at once, whatever becomes of the fetch."""


@dataclass(frozen=True, slots=True)
class Ways:
    """How bytes can come. part: the file that movers write into; LocalError when there is none any more."""

    open_stream: OpenStream
    open_mover: OpenMover | None
    part: Callable[[], Path]
    meter: Meter | None


class Fetch(Protocol):
    """The fetch that a talk belongs to."""

    download: Download

    def take(self, steps: Iterable[Step]) -> None:
        """To be kept."""
        ...

    def settle(self) -> None:
        """Something changed that others may wait for."""
        ...

    def accuse(self, source: PeerId, error: PeerViolation) -> None: ...

    def fail(self, error: CellulerError) -> None:
        """The fetch cannot go on."""
        ...


class Talk:
    """Runs until the source is left, by its fault or ours, or cannot be reached."""

    def __init__(self, source: PeerId, fetch: Fetch, ways: Ways) -> None:
        self._source, self._fetch, self._ways = source, fetch, ways
        self._download = fetch.download
        self._frames = frames()
        self._scope = trio.CancelScope()
        self._bell = trio.Event()  # perhaps something new to ask
        self._stream: trio.abc.Stream | None = None
        self._listening = trio.CancelScope()
        self._owed: set[Digest] = set()  # on the stream
        self._mover: Mover | None = None
        self._receiving = trio.CancelScope()
        self._moving: dict[Digest, Chunk] = {}  # owed by the mover
        self.metered = False
        """Whether it is our own limit that we wait for."""

    async def run(self) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ask)
                if self._ways.open_mover is not None:
                    nursery.start_soon(self._upgrade, self._ways.open_mover)
                await self._stay()
                nursery.cancel_scope.cancel()

    def ring(self) -> None:
        self._bell.set()

    def close(self) -> None:
        self._scope.cancel()

    async def _stay(self) -> None:
        """Over the stream, whenever no mover is there, until it ends by the source's will."""
        while self._download.asks(self._source):
            await self._over_stream()
            if self._mover is None:  # the source ended it
                return
            while self._mover is not None:
                await self._news()

    async def _news(self) -> None:
        if self._bell.is_set():
            self._bell = trio.Event()
        await self._bell.wait()

    # --- asking ------------------------------------------------------------------------------------------------

    async def _ask(self) -> None:
        while self._download.asks(self._source):
            ready = self._stream is not None or self._mover is not None
            digests = self._download.requests(self._source, trio.current_time()) if ready else ()
            if not digests:
                await self._news()
            elif self._mover is not None:
                await self._ask_mover(self._mover, digests)
            elif self._stream is not None:
                await self._ask_stream(self._stream, digests)
        self.close()

    async def _ask_stream(self, stream: trio.abc.Stream, digests: tuple[Digest, ...]) -> None:
        self._owed.update(digests)
        try:
            for start in range(0, len(digests), MAX_WANTED):
                await stream.send_all(self._frames.encode(Want(digests[start : start + MAX_WANTED])))
        except END_OF_STREAM:
            self._listening.cancel()

    async def _ask_mover(self, mover: Mover, digests: tuple[Digest, ...]) -> None:
        chunks = {digest: self._download.chunk(digest) for digest in digests}
        self._moving |= chunks
        with self._judged():
            await mover.ask(tuple(chunks.values()))
            return
        self._receiving.cancel()

    # --- the stream --------------------------------------------------------------------------------------------

    async def _over_stream(self) -> None:
        """Until it ends, or until a mover came and nothing is owed here."""
        with suppress(CellulerError, *END_OF_STREAM), trio.move_on_after(OPEN_S):
            self._stream = await self._ways.open_stream(self._source)
        if self._stream is None:
            return
        try:
            async with self._stream as stream:
                self.ring()
                with trio.CancelScope() as self._listening, suppress(*END_OF_STREAM), self._judged():
                    await self._listen(stream)
        finally:
            self._stream = None
            self._download.forgo(self._source, self._owed)
            self._owed.clear()

    async def _listen(self, stream: trio.abc.Stream) -> None:
        incoming, trickle = frames(), 0
        while data := await stream.receive_some(RECEIVE_BYTES):
            await self._pay(len(data))
            messages = self._parse(incoming, data)
            for message in messages:
                if isinstance(message, Busy):
                    self._download.leave(self._source, Reason.BUSY)
                    return
                self._hear(message)
            trickle = 0 if messages else trickle + len(data)
            if trickle >= TRICKLE_BYTES:
                self._download.alive(self._source, trio.current_time())
                trickle = 0
            if self._mover is not None and not self._owed:
                return

    async def _pay(self, count: int) -> None:
        if self._ways.meter is not None:
            self.metered = True
            await self._ways.meter.receive(count)
            self.metered = False

    def _parse(self, incoming: Frames, data: bytes) -> list[object]:
        try:
            return incoming.feed(data)
        except ProtocolViolation as error:
            error.peer = self._source
            raise self._download.violated(self._source, error) from None

    def _hear(self, message: object) -> None:
        now = trio.current_time()
        match message:
            case Found(digest, data):
                self._owed.discard(Digest(digest))
                self._fetch.take(self._download.found(self._source, digest, data, now))
                self.ring()  # nothing to keep may also mean room to ask
            case Absent(digest):
                self._owed.discard(Digest(digest))
                self._download.absent(self._source, digest, now)
                self._fetch.settle()
            case _:
                error = ProtocolViolation(f"{type(message).__name__} from a provider", peer=self._source)
                raise self._download.violated(self._source, error)

    # --- the mover ---------------------------------------------------------------------------------------------

    async def _upgrade(self, open_mover: OpenMover) -> None:
        while True:
            while self._download.chunk_bytes_wanted < UPGRADE_BYTES:
                await self._news()
            try:
                path = await trio.to_thread.run_sync(self._ways.part)
            except LocalError:  # complete; or a disk that the next chunk will tell of
                return
            with self._judged():
                async with open_mover(self._source, self._download.root, path) as mover:
                    await self._over_mover(mover)
            await trio.sleep(UPGRADE_AGAIN_S)

    async def _over_mover(self, mover: Mover) -> None:
        """Until it ends. What it raises is judged here, so that it never leaves the mover's own block."""
        self._mover = mover
        self._download.switch(self._source, Transport.BULK)
        if not self._owed:
            self._listening.cancel()
        self.ring()
        try:
            with trio.CancelScope() as self._receiving, self._judged():
                while moved := await mover.receive():
                    for each in moved:
                        self._moved(each)
                    self.ring()
        finally:
            self._mover = None
            self._download.switch(self._source, Transport.STREAM)
            self._download.forgo(self._source, self._moving)
            self._moving.clear()
            self.ring()

    def _moved(self, moved: Moved) -> None:
        chunk = self._moving.pop(moved.digest, None)
        if chunk is None:  # asked of a mover that ended
            return
        match moved:
            case Placed():
                self._fetch.take(self._download.placed(self._source, chunk, trio.current_time()))
            case Lacking():
                self._download.absent(self._source, chunk.digest, trio.current_time())
                self._fetch.settle()
            case Falsified():
                raise self._download.falsified(self._source, chunk.digest)

    # --- what went wrong ---------------------------------------------------------------------------------------

    @contextmanager
    def _judged(self) -> Iterator[None]:
        try:
            yield
        except CellulerError as error:
            self._judge(error)

    def _judge(self, error: CellulerError) -> None:
        """A source's lie ends this talk, a manifest's lie or trouble of our own the fetch; the rest is bad luck."""
        match error:
            case PeerViolation(peer=None):
                self._fetch.fail(error)
            case PeerViolation():
                self._fetch.accuse(self._source, self._download.violated(self._source, error))
                self.close()
            case Unavailable():
                pass
            case _:
                self._fetch.fail(error)
