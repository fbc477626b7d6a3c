"""Peers with a real bulk process each, over real TLS on loopback; the libp2p streams between them are in memory."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import trio
import trio.testing

from celluler.content.digest import Digest
from celluler.content.disk import DiskStore
from celluler.content.manifest import describe
from celluler.content.movers import Chunk, Lacking, Mover, Placed
from celluler.content.store import read_layout
from celluler.identity import Identity, PeerId
from celluler_node.bulk.service import Bulk, OpenStream, open_bulk
from celluler_node.bulk.words import Patience
from celluler_protocols import content
from celluler_protocols.bulk import PROTOCOL_ID, Grant, ask_grant, frames
from celluler_protocols.nursery import own_nursery

QUOTA_BYTES = 1 << 30
PATIENT = Patience(connect_s=20.0)


class Peer:
    """A store and a bulk service. hosts: where others look for it. grants: what it says instead of the truth."""

    def __init__(self, number: int, folder: Path) -> None:
        self.id = Identity(number.to_bytes(32, "big")).peer_id
        self.folder = folder
        self.store = DiskStore(folder / "store", QUOTA_BYTES)
        self.hosts: tuple[str, ...] = ("127.0.0.1",)
        self.held: list[bytes] = []
        self.grants: Grant | None = None
        self.bulk: Bulk
        self.open_stream: OpenStream

    def add(self, data: bytes, *, chunk_bytes: int = 1 << 20) -> Digest:
        """A content of these bytes, complete."""
        file = self.folder / "added"
        file.write_bytes(data)
        if chunk_bytes == 1 << 20:
            return self.store.add(file, "blob")
        described = describe(file, "blob", chunk_size=chunk_bytes)
        for block in (described.manifest_bytes, *described.leaves):
            self.store.put_block(block)
        self.store.begin(described.root)
        for piece in self.store.missing(described.root):
            self.store.put_chunk(described.root, piece.index, data[piece.offset : piece.offset + piece.length])
        return described.root

    def begin(self, root: bytes, other: Peer) -> Path:
        """Begin what another has, by its manifest and leaves; the file to write into."""
        manifest = other.store.get(root)
        self.store.put_block(manifest)
        for leaf in read_layout(other.store, root).manifest.leaves:
            self.store.put_block(other.store.get(leaf))
        self.store.begin(root)
        return self.store.part(root)

    async def grant(self, to: Peer, root: bytes) -> Grant:
        """What it says when another peer asks."""
        return await ask_grant(await to.open_stream(self.id, PROTOCOL_ID), root, peer=self.id)

    @contextmanager
    def hold(self, root: bytes) -> Iterator[None]:
        self.held.append(root)
        with self.store.hold(root):
            try:
                yield
            finally:
                self.held.remove(root)


def chunks_of(peer: Peer, root: bytes) -> list[Chunk]:
    """Every distinct chunk of a content, with all its places."""
    places: dict[tuple[Digest, int], list[int]] = {}
    for piece in read_layout(peer.store, root):
        places.setdefault((piece.digest, piece.length), []).append(piece.offset)
    return [Chunk(digest, length, tuple(where)) for (digest, length), where in places.items()]


async def bring(mover: Mover, chunks: Collection[Chunk]) -> tuple[set[Digest], set[Digest]]:
    """Ask for all, and receive until each is answered: (placed, lacking)."""
    placed, lacking = set[Digest](), set[Digest]()
    await mover.ask(list(chunks))
    while len(placed) + len(lacking) < len(chunks):
        moved = await mover.receive()
        assert moved, "the source went away"
        placed |= {one.digest for one in moved if isinstance(one, Placed)}
        lacking |= {one.digest for one in moved if isinstance(one, Lacking)}
    return placed, lacking


@asynccontextmanager
async def peers(count: int, folder: Path, *, patience: Patience = PATIENT, **options: Any) -> AsyncIterator[list[Peer]]:
    """Peers that all know each other. No process runs until something is fetched."""
    everybody = [Peer(number + 1, _made(folder / f"peer{number}")) for number in range(count)]
    by_id = {peer.id: peer for peer in everybody}
    async with own_nursery() as nursery, AsyncExitStack() as stack:
        for peer in everybody:
            peer.bulk = await stack.enter_async_context(_bulk(peer, by_id, nursery, patience, options))
        yield everybody
    for peer in everybody:
        assert not peer.held, "what was held is let go"
        peer.store.close()


def _bulk(
    peer: Peer, by_id: dict[PeerId, Peer], nursery: trio.Nursery, patience: Patience, options: dict[str, Any]
) -> Any:
    async def open_stream(other: PeerId, protocol: str) -> trio.abc.Stream:
        ours, theirs = trio.testing.memory_stream_pair()
        if protocol == content.PROTOCOL_ID:
            nursery.start_soon(_serve, by_id[other], theirs)
        else:
            nursery.start_soon(_answer, by_id[other], peer.id, theirs)
        return ours

    peer.open_stream = open_stream

    return open_bulk(
        store_folder=peer.folder / "store",
        listen_hosts=("127.0.0.1",),
        port=0,
        up_bytes_s=options.get("up_bytes_s", 0),
        down_bytes_s=options.get("down_bytes_s", 0),
        scratch=lambda purpose: _scratch(peer.folder, purpose),
        serves=lambda _root: True,
        hold=peer.hold,
        hosts_of=lambda other: by_id[other].hosts,
        open_stream=open_stream,
        patience=patience,
    )


async def _serve(peer: Peer, stream: trio.abc.Stream) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await content.serve_content(peer.store, stream)


async def _answer(peer: Peer, asker: PeerId, stream: trio.abc.Stream) -> None:
    """As the host would, or as a peer that lies in its grants."""
    if peer.grants is None:
        await peer.bulk.answer(asker, stream)
        return
    await stream.receive_some()
    await stream.send_all(frames().encode(peer.grants))
    await stream.aclose()


@asynccontextmanager
async def _scratch(folder: Path, purpose: str) -> AsyncIterator[Path]:
    yield _made(folder / f"{purpose}-{next(_numbers)}")


def _made(folder: Path) -> Path:
    os.makedirs(folder)
    return folder


_numbers = itertools.count()
