"""The requester's half of /celluler/content/1 for one small block: the first source that has it is enough."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import trio

from celluler.content.digest import digest_of
from celluler.content.store import Store
from celluler.errors import (
    BlockAbsent,
    CorruptBlock,
    IntegrityError,
    NoPeers,
    PeerViolation,
    ProtocolViolation,
    Unavailable,
)
from celluler.errors import Busy as BusyError
from celluler.identity import PeerId
from celluler_protocols.content.messages import END_OF_STREAM, RECEIVE_BYTES, Absent, Busy, Found, Want, frames
from celluler_protocols.content.talk import OnViolation, OpenStream

BLOCK_S = 10.0
"""A requester of one block turns to the next provider after so long."""


async def fetch_block(
    digest: bytes,
    store: Store,
    sources: Sequence[PeerId],
    open_stream: OpenStream,
    *,
    on_violation: OnViolation | None = None,
) -> bytes:
    """One small block, from the store or else from the first source that has it; kept in the store.

    Raises BlockAbsent when those asked have not got it, another Unavailable when nobody could be asked, QuotaExceeded.
    """
    with suppress(BlockAbsent, IntegrityError):
        return await trio.to_thread.run_sync(store.get, digest)
    trouble: Unavailable = NoPeers(f"no source for block {digest.hex()[:16]}…")
    for source in sources:
        try:
            data = await _ask_for_block(digest, source, open_stream)
        except Unavailable as error:
            trouble = trouble if isinstance(trouble, BlockAbsent) else error
        except PeerViolation as error:
            if on_violation is not None:
                on_violation(source, error)
        else:
            await trio.to_thread.run_sync(store.put_block, data)
            return data
    raise trouble


async def _ask_for_block(digest: bytes, source: PeerId, open_stream: OpenStream) -> bytes:
    with trio.move_on_after(BLOCK_S):
        try:
            stream = await open_stream(source)
            async with stream:
                await stream.send_all(frames().encode(Want((digest,))))
                return await _one_block(digest, source, stream)
        except END_OF_STREAM as error:
            raise NoPeers("the source went away", peer=source) from error
    raise Unavailable("the source did not answer in time", peer=source)


async def _one_block(digest: bytes, source: PeerId, stream: trio.abc.Stream) -> bytes:
    incoming = frames()
    while data := await stream.receive_some(RECEIVE_BYTES):
        match incoming.feed(data):
            case []:
                continue
            case [Found(found, block)] if found == digest:
                if digest_of(block) != digest:
                    raise CorruptBlock(digest, peer=source)
                return block
            case [Absent(absent)] if absent == digest:
                raise BlockAbsent(digest, peer=source)
            case [Busy()]:
                raise BusyError(peer=source)
            case _:
                raise ProtocolViolation("not an answer to the block asked for", peer=source)
    raise NoPeers("the stream ended before the answer", peer=source)
