"""Providers of content in memory: honest, lying, or answering as a test wants; and movers over a provider's store."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio
import trio.testing

from celluler.content.digest import Digest
from celluler.content.manifest import Description, describe
from celluler.content.memory import MemoryStore
from celluler.content.movers import Chunk, Falsified, Lacking, Moved, Placed
from celluler.content.store import Store
from celluler.errors import BlockAbsent, PeerViolation, Unavailable
from celluler.identity import PeerId
from celluler_protocols.content import Found, frames, serve_content

QUOTA_BYTES = 1 << 22
ALICE, BOB, CAROL = PeerId("alice"), PeerId("bob"), PeerId("carol")
Handler = Callable[[trio.abc.Stream], Awaitable[object]]


class Swarm:
    """Providers by name. A stream opened to one is answered by its handler in the nursery."""

    def __init__(self, nursery: trio.Nursery, handlers: dict[PeerId, Handler]) -> None:
        self.nursery, self._handlers = nursery, handlers
        self.accused: list[tuple[PeerId, str]] = []
        self.caught = trio.Event()
        self.opened: list[PeerId] = []

    async def open(self, peer: PeerId) -> trio.abc.Stream:
        self.opened.append(peer)
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self._answer, self._handlers[peer], theirs)
        return ours

    async def _answer(self, handler: Handler, stream: trio.abc.Stream) -> None:
        async with stream:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # the requester is done with us
                await handler(stream)

    def accuse(self, peer: PeerId, error: PeerViolation) -> None:
        assert error.peer == peer
        self.accused.append((peer, type(error).__name__))
        self.caught.set()


MakeSwarm = Callable[..., Swarm]


@asynccontextmanager
async def open_swarm(within_s: float = 10.0) -> AsyncIterator[MakeSwarm]:
    with trio.fail_after(within_s):
        async with trio.open_nursery() as nursery:
            yield lambda **handlers: Swarm(nursery, {PeerId(name): handler for name, handler in handlers.items()})
            nursery.cancel_scope.cancel()


def content_of(folder: Path, chunks: int, *, seed: int = 2) -> tuple[Description, bytes]:
    """Chunks of 1 KiB, and a shorter one."""
    data = random.Random(seed).randbytes((chunks - 1) * 1024 + 9)
    (folder / "file").write_bytes(data)
    return describe(folder / "file", "model", chunk_size=1024), data


def filled(described: Description, data: bytes, *, without: Sequence[int] = ()) -> Store:
    """A store that holds all of it but some pieces."""
    store = MemoryStore(QUOTA_BYTES)
    for block in (described.manifest_bytes, *described.leaves):
        store.put_block(block)
    store.begin(described.root)
    for piece in store.missing(described.root):
        if piece.index not in without:
            store.put_chunk(described.root, piece.index, data[piece.offset : piece.offset + piece.length])
    return store


def honest(store: Store) -> Handler:
    return lambda stream: serve_content(store, stream)


def answering(answer: Callable[[Digest, int], list[object] | None]) -> Handler:
    """A provider that answers digest number n of the stream with what `answer` says; None ends the stream."""

    async def handler(stream: trio.abc.Stream) -> None:
        incoming, count = frames(), 0
        while data := await stream.receive_some():
            for want in incoming.feed(data):
                for digest in want.digests:
                    messages = answer(Digest(digest), count)
                    if messages is None:
                        return
                    count += 1
                    for message in messages:
                        await stream.send_all(frames().encode(message))

    return handler


def holding_chunks_back(store: Store, described: Description, gate: trio.Event) -> Handler:
    """A provider that gives manifest and leaves at once, and a chunk only after the gate was opened."""
    blocks = {described.root, *described.manifest.leaves}

    async def handler(stream: trio.abc.Stream) -> None:
        incoming = frames()
        while data := await stream.receive_some():
            for want in incoming.feed(data):
                for digest in want.digests:
                    if digest not in blocks:
                        await gate.wait()
                    await stream.send_all(frames().encode(Found(digest, store.get(digest))))

    return handler


class StoreMover:
    """A mover whose source is a store of this process. `turn` sees each chunk before it is moved, and may raise."""

    def __init__(self, source: Store, path: Path, turn: Callable[[int], Moved | None]) -> None:
        self._source, self._path, self._turn = source, path, turn
        self._send, self._receive = trio.open_memory_channel[Chunk](1 << 16)
        self.moved = 0

    async def ask(self, chunks: Sequence[Chunk]) -> None:
        await trio.lowlevel.checkpoint()
        try:
            for chunk in chunks:
                self._send.send_nowait(chunk)
        except trio.BrokenResourceError:
            raise Unavailable("the mover has ended") from None

    async def receive(self) -> Sequence[Moved]:
        try:
            chunk = await self._receive.receive()
            verdict = self._turn(self.moved)
        except (Unavailable, PeerViolation):
            self._receive.close()
            raise
        self.moved += 1
        return [type(verdict)(chunk.digest) if verdict is not None else await self._move(chunk)]

    async def _move(self, chunk: Chunk) -> Moved:
        try:
            data = self._source.get(chunk.digest)
        except BlockAbsent:
            return Lacking(chunk.digest)
        if len(data) != chunk.length:
            return Falsified(chunk.digest)
        await trio.to_thread.run_sync(self._write, data, chunk.places)
        return Placed(chunk.digest)

    def _write(self, data: bytes, places: Sequence[int]) -> None:
        with self._path.open("r+b") as file:
            for place in places:
                os.pwrite(file.fileno(), data, place)


class Movers:
    """Opens movers by the peer's name, and remembers them."""

    def __init__(self, sources: dict[PeerId, Store], turn: Callable[[int], Moved | None] = lambda _: None) -> None:
        self._sources, self._turn = sources, turn
        self.opened: list[StoreMover] = []
        self.closed = 0
        self.there = trio.Event()
        """The first was opened."""

    @asynccontextmanager
    async def open(self, peer: str, root: bytes, path: Path) -> AsyncIterator[StoreMover]:
        await trio.lowlevel.checkpoint()
        if PeerId(peer) not in self._sources:
            raise Unavailable("no grant", peer=peer)
        mover = StoreMover(self._sources[PeerId(peer)], path, self._turn)
        self.opened.append(mover)
        self.there.set()
        try:
            yield mover
        finally:
            self.closed += 1
