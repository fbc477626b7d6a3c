"""/celluler/content/1: blocks and chunks by digest. Spec: docs/reference/protocols/content.md

The requester says which digests it wants, the provider answers each of them once, in any order: the bytes, or that it
has not got them. Either may open any number of streams; on one stream only its opener asks.

`serve_content` is the provider's half; `fetch` and `fetch_block` are the requester's, over several providers at once.
What to ask whom, and whom to believe, is `celluler.content.download`; this module moves bytes between it, the streams
and the store. Knows nothing of libp2p: a stream is any trio stream whose other end is known by a peer id.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated

import trio

from celluler.content.digest import Digest, digest_of
from celluler.content.download import Begin, Download, KeepBlock, KeepChunk, Reason, Step
from celluler.content.manifest import MAX_BLOCK_BYTES, MAX_TOTAL_BYTES, Piece
from celluler.content.store import Store
from celluler.errors import (
    BlockAbsent,
    CellulerError,
    CorruptBlock,
    IntegrityError,
    NoPeers,
    PeerViolation,
    ProtocolViolation,
    Unavailable,
)
from celluler.errors import Busy as BusyError
from celluler.identity import PeerId
from celluler.wire import Bytes32, Frames, Length

PROTOCOL_ID = "/celluler/content/1"
MAX_WANTED = 64
"""Digests in one Want."""
MAX_WANT_BYTES = 4096
"""Longest frame that a provider reads."""
MAX_OUTSTANDING = 256
"""Digests asked on one stream and not yet answered; asking for more is a violation."""
IDLE_S = 60.0
"""A provider closes a stream on which nothing is asked for so long."""
SEND_S = 30.0
"""A provider gives up on a requester that does not take a batch of answers in so long."""
OPEN_S = 10.0
BLOCK_S = 10.0
"""A requester of one block turns to the next provider after so long."""

_RECEIVE_BYTES = 1 << 18
_BATCH_BYTES = 1 << 18  # read, hashed and framed by one visit to a thread; a large chunk makes a batch by itself
_BATCH_STEPS = 16  # kept by one visit to a thread
_END_OF_STREAM = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)


@dataclass(frozen=True, slots=True)
class Want:
    """Send me these."""

    digests: Annotated[tuple[Bytes32, ...], Length(1, MAX_WANTED)]


@dataclass(frozen=True, slots=True)
class Found:
    """One of them. The requester hashes it."""

    digest: Bytes32
    data: Annotated[bytes, Length(0, MAX_BLOCK_BYTES)]


@dataclass(frozen=True, slots=True)
class Absent:
    """One of them is not here."""

    digest: Bytes32


@dataclass(frozen=True, slots=True)
class Busy:
    """No answer will come on this stream; ask elsewhere or later. The provider closes."""


def frames() -> Frames:
    return Frames(_WORDS, limit=MAX_BLOCK_BYTES + 64)


def _requests() -> Frames:
    """What a provider reads: the largest word that it may be sent is a full Want."""
    return Frames(_WORDS, limit=MAX_WANT_BYTES)


_WORDS = (Want, Found, Absent, Busy)  # wire tag = position


OpenStream = Callable[[PeerId], Awaitable[trio.abc.Stream]]
"""Opens a stream of `PROTOCOL_ID` to a peer. Raises Unavailable."""
OnProgress = Callable[[int, int], None]
"""Called with (bytes kept, bytes in all) whenever a chunk was kept."""
OnViolation = Callable[[PeerId, PeerViolation], None]
"""Called when a source is caught lying, at once, whatever becomes of the fetch."""


@dataclass(frozen=True, slots=True)
class FetchReport:
    """received: bytes kept, by the source that gave them; empty when all was here before. liars: to be penalised."""

    root: Digest
    received: Mapping[PeerId, int]
    liars: tuple[PeerId, ...]


# --- the provider ----------------------------------------------------------------------------------------------


async def serve_content(store: Store, stream: trio.abc.Stream) -> None:
    """Answer one requester until it ends the stream or falls silent; the stream is closed on return.

    How many are served at a time is the caller's to bound: see `turn_away`.
    Raises ProtocolViolation when the requester breaks the protocol.
    """
    async with stream:
        await _Provider(store, stream).run()


async def turn_away(stream: trio.abc.Stream) -> None:
    """Tell a requester that there is no room for it, and close the stream."""
    async with stream:
        with suppress(*_END_OF_STREAM), trio.move_on_after(SEND_S):
            await stream.send_all(frames().encode(Busy()))


class _Provider:
    """Three stages, so that reading the disk and writing the network overlap: requests, batches, bytes."""

    def __init__(self, store: Store, stream: trio.abc.Stream) -> None:
        self._store, self._stream = store, stream
        self._asked: deque[Digest] = deque()
        self._news = trio.Event()
        self._ended = False
        self._outstanding = 0
        self._violation: PeerViolation | None = None

    async def run(self) -> None:
        batches, sending = trio.open_memory_channel[tuple[bytes, int]](1)  # full: the disk waits for the network
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive, nursery.cancel_scope)
            nursery.start_soon(self._load, batches)
            await self._send(sending)
            nursery.cancel_scope.cancel()
        if self._violation is not None:
            raise self._violation

    async def _receive(self, scope: trio.CancelScope) -> None:
        incoming = _requests()
        try:
            while data := await self._stream.receive_some(_RECEIVE_BYTES):
                for message in incoming.feed(data):
                    self._take(message)
            if not incoming.idle:
                raise ProtocolViolation("stream ended inside a message")
        except PeerViolation as error:
            self._violation = error
            scope.cancel()
        except _END_OF_STREAM:
            pass
        self._ended = True
        self._news.set()

    def _take(self, message: object) -> None:
        if not isinstance(message, Want):
            raise ProtocolViolation(f"{type(message).__name__} from a requester")
        self._outstanding += len(message.digests)
        if self._outstanding > MAX_OUTSTANDING:
            raise ProtocolViolation(f"more than {MAX_OUTSTANDING} digests outstanding")
        self._asked.extend(Digest(digest) for digest in message.digests)
        self._news.set()

    async def _load(self, batches: trio.MemorySendChannel[tuple[bytes, int]]) -> None:
        async with batches:
            while await self._is_asked():
                await batches.send(await trio.to_thread.run_sync(self._batch))

    async def _is_asked(self) -> bool:
        with trio.move_on_after(IDLE_S):
            while not self._asked and not self._ended:
                self._news = trio.Event()
                await self._news.wait()
        return bool(self._asked)

    def _batch(self) -> tuple[bytes, int]:
        """Frames of some answers, and how many. Runs in a thread: a deque may be filled at its other end meanwhile."""
        outgoing, answers, size = frames(), [], 0
        while self._asked and size < _BATCH_BYTES:
            answers.append(outgoing.encode(self._answer(self._asked.popleft())))
            size += len(answers[-1])
        return b"".join(answers) if len(answers) > 1 else answers[0], len(answers)

    def _answer(self, digest: Digest) -> Found | Absent:
        try:
            return Found(digest, self._store.get(digest))
        except (BlockAbsent, IntegrityError):  # a damaged copy is no copy; the store has forgotten it
            return Absent(digest)

    async def _send(self, batches: trio.MemoryReceiveChannel[tuple[bytes, int]]) -> None:
        with suppress(*_END_OF_STREAM):
            async for data, answers in batches:
                self._outstanding -= answers  # before the send: a requester may ask again as soon as it has them
                with trio.move_on_after(SEND_S) as scope:
                    await self._stream.send_all(data)
                if scope.cancelled_caught:
                    return


# --- the requester: one block ----------------------------------------------------------------------------------


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
        except _END_OF_STREAM as error:
            raise NoPeers("the source went away", peer=source) from error
    raise Unavailable("the source did not answer in time", peer=source)


async def _one_block(digest: bytes, source: PeerId, stream: trio.abc.Stream) -> bytes:
    incoming = frames()
    while data := await stream.receive_some(_RECEIVE_BYTES):
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


# --- the requester: a whole content ----------------------------------------------------------------------------


async def fetch(
    root: bytes,
    store: Store,
    sources: Sequence[PeerId],
    open_stream: OpenStream,
    *,
    limit_bytes: int = MAX_TOTAL_BYTES,
    on_progress: OnProgress | None = None,
    on_violation: OnViolation | None = None,
) -> FetchReport:
    """Bring a content into the store, complete, from all sources at once. What the store has already is not asked for.

    limit_bytes: the largest content to accept. The deadline is the caller's; what was kept until then stays, and the
    next fetch goes on from there.

    Raises BlockAbsent when the sources lack something, Busy, TimedOut or NoPeers when they would not or could not
    answer; ProtocolViolation naming no peer when the manifest itself lies; QuotaExceeded.
    """
    fetching = _Fetch(
        root, store, open_stream, limit_bytes=limit_bytes, on_progress=on_progress, on_violation=on_violation
    )
    return await fetching.run(sources)


class _Fetch:
    """One task a source, and one that keeps what came: the readers never wait for the disk."""

    def __init__(
        self,
        root: bytes,
        store: Store,
        open_stream: OpenStream,
        *,
        limit_bytes: int,
        on_progress: OnProgress | None,
        on_violation: OnViolation | None,
    ) -> None:
        self._store, self._open_stream = store, open_stream
        self._on_progress, self._on_violation = on_progress, on_violation
        self._download = Download(root, limit_bytes=limit_bytes)
        self._frames = frames()
        self._failure: CellulerError | None = None
        self._accused: set[str] = set()
        self._scope = trio.CancelScope()
        self._bells: dict[PeerId, trio.Event] = {}
        # Unbounded on purpose: the windows bound what is asked, and what was not asked never gets here.
        self._arrived, self._to_keep = trio.open_memory_channel[Step](math.inf)

    async def run(self, sources: Sequence[PeerId]) -> FetchReport:
        await trio.to_thread.run_sync(self._take_stock)
        if not self._download.complete:
            await self._gather(dict.fromkeys(sources))
        if self._failure is not None:
            raise self._failure
        received = {PeerId(source): count for source, count in self._download.received.items()}
        liars = tuple(PeerId(source) for source in self._download.liars)
        return FetchReport(self._download.root, MappingProxyType(received), liars)

    def _take_stock(self) -> None:
        """Believe what the store holds: a fetch asks only for what an earlier one did not bring. Runs in a thread."""
        while here := [digest for digest in self._download.wanted if self._store.has(digest)]:
            for digest in here:
                with suppress(BlockAbsent, IntegrityError):
                    if Begin() in self._download.here(digest, self._store.get(digest)):
                        self._download.begun(self._begin())
                        return

    async def _gather(self, sources: Iterable[PeerId]) -> None:
        for source in sources:
            self._download.join(source, trio.current_time())
        with self._scope:
            self._settle()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep)
                for source in sources:
                    nursery.start_soon(self._visit, source)

    def _settle(self) -> None:
        """After every event: done, beyond hope, or perhaps something new to ask."""
        if not self._download.complete:
            self._failure = self._failure or self._download.failure()
        if self._failure is not None or self._download.complete:
            self._scope.cancel()
        for bell in self._bells.values():
            bell.set()

    def _accuse(self, source: str, error: PeerViolation) -> None:
        """Once a source: more of its lies may already be on their way to the store."""
        if self._on_violation is not None and source not in self._accused:
            self._on_violation(PeerId(source), error)
        self._accused.add(source)

    # --- the store ---------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        async for step in self._to_keep:
            steps = [step]
            with suppress(trio.WouldBlock):
                while len(steps) < _BATCH_STEPS:
                    steps.append(self._to_keep.receive_nowait())
            try:
                false, missing = await trio.to_thread.run_sync(self._perform, steps)
            except CellulerError as error:  # ours, or of a manifest that lies: no source can help
                self._failure = error
                self._scope.cancel()
                return
            if missing is not None:
                self._download.begun(missing)
            for chunk in (each for each in steps if isinstance(each, KeepChunk)):
                if chunk in false:
                    self._accuse(chunk.source, self._download.corrupt(chunk))
                else:
                    self._download.kept(chunk)
            if self._on_progress is not None:
                self._on_progress(*self._download.progress)
            self._settle()

    def _perform(self, steps: Sequence[Step]) -> tuple[list[KeepChunk], tuple[Piece, ...] | None]:
        """(chunks that are false, what is missing when the content was begun). Runs in a thread."""
        false: list[KeepChunk] = []
        missing = None
        for step in steps:
            match step:
                case KeepBlock(data):
                    self._store.put_block(data)
                case Begin():
                    missing = self._begin()
                case KeepChunk():
                    try:
                        for index in step.indices:
                            self._store.put_chunk(self._download.root, index, step.data)
                    except CorruptBlock:
                        false.append(step)
        return false, missing

    def _begin(self) -> tuple[Piece, ...]:
        self._store.begin(self._download.root)
        return self._store.missing(self._download.root)

    # --- one source --------------------------------------------------------------------------------------------

    async def _visit(self, source: PeerId) -> None:
        stream = None
        with suppress(CellulerError, *_END_OF_STREAM), trio.move_on_after(OPEN_S):
            stream = await self._open_stream(source)
        if stream is not None:
            async with stream:
                await self._converse(source, stream)
        self._download.leave(source)
        self._settle()

    async def _converse(self, source: PeerId, stream: trio.abc.Stream) -> None:
        """Until the source is left, by its fault or ours. Its deadline is the machine's."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ask, source, stream, nursery.cancel_scope)
            try:
                await self._listen(source, stream, nursery.cancel_scope)
            except PeerViolation as error:
                if error.peer is None:
                    self._failure = self._failure or error
                else:
                    self._accuse(source, error)
            except CellulerError as error:
                self._failure = self._failure or error
            except _END_OF_STREAM:
                pass
            nursery.cancel_scope.cancel()
        if nursery.cancel_scope.cancelled_caught:
            self._download.expire(trio.current_time())

    async def _ask(self, source: PeerId, stream: trio.abc.Stream, scope: trio.CancelScope) -> None:
        with suppress(*_END_OF_STREAM):
            while self._download.asks(source):
                self._bells[source] = trio.Event()
                digests = self._download.requests(source, trio.current_time())
                scope.deadline = self._deadline(source)
                for start in range(0, len(digests), MAX_WANTED):
                    await stream.send_all(self._frames.encode(Want(digests[start : start + MAX_WANTED])))
                if not digests:
                    await self._bells[source].wait()
        scope.cancel()

    async def _listen(self, source: PeerId, stream: trio.abc.Stream, scope: trio.CancelScope) -> None:
        incoming = frames()
        while data := await stream.receive_some(_RECEIVE_BYTES):
            for message in self._parse(source, incoming, data):
                if isinstance(message, Busy):
                    self._download.leave(source, Reason.BUSY)
                    return
                self._hear(source, message)
            scope.deadline = self._deadline(source)

    def _parse(self, source: PeerId, incoming: Frames, data: bytes) -> list[object]:
        try:
            return incoming.feed(data)
        except ProtocolViolation as error:
            error.peer = source
            raise self._download.violated(source, error) from None

    def _hear(self, source: PeerId, message: object) -> None:
        now = trio.current_time()
        match message:
            case Found(digest, data):
                for step in self._download.found(source, digest, data, now):
                    self._arrived.send_nowait(step)
            case Absent(digest):
                self._download.absent(source, digest, now)
                self._settle()
            case _:
                error = ProtocolViolation(f"{type(message).__name__} from a provider", peer=source)
                raise self._download.violated(source, error)

    def _deadline(self, source: PeerId) -> float:
        deadline = self._download.deadline(source)
        return math.inf if deadline is None else deadline
