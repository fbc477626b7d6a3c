"""Content by digest, from whoever has it.

Sources are, in this order: hints of the caller (whoever spoke of the content), providers that the directory names,
and, when those do not help, some members of the swarm. The directory is asked beside the transfer, and again while it
lasts. Whoever lied lately, by what we saw or by what others say, comes last and is not left out.

Callers that want the same content share one transfer: who wants more of it joins in, and it ends when nobody waits.
What we hold of it is provided to others while it is on its way. Knows nothing of what the content means.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import structlog
import trio

from celluler.content.digest import Digest, cid_of
from celluler.content.manifest import parse_manifest
from celluler.content.movers import Meter, OpenMover
from celluler.content.progress import Progress
from celluler.content.store import Store
from celluler.errors import (
    BlockAbsent,
    CellulerError,
    CorruptBlock,
    IntegrityError,
    LocalError,
    PeerViolation,
    Unavailable,
)
from celluler.identity import PeerId
from celluler_node.notes import Notes
from celluler_protocols.content import PROTOCOL_ID, Select, Transfer, fetch_block
from celluler_protocols.nursery import own_nursery

MAX_SOURCES = 8
"""Asked for one small block."""
MAX_LAST_RESORT = 16
"""Members asked for what no hint and no provider gave."""
LOOKUP_S = 5.0
LOOKUP_AGAIN_S = 30.0
PROVIDE_S = 10.0
PROVIDE_PART_BYTES = 8 << 20
"""Content of at least this is provided as soon as it is begun; what is smaller is complete soon."""
MAX_MOVED = 256

log = structlog.get_logger()

Tell = Callable[[PeerId, bytes, bytes, str], None]
"""(peer, root, digest, reason): this peer gave us something false."""


class Providers(Protocol):
    """What is needed of the directory."""

    async def provide(self, digest: bytes) -> None: ...

    def withdraw(self, digest: bytes) -> None: ...

    async def providers(self, digest: bytes) -> tuple[PeerId, ...]: ...


@dataclass(frozen=True, slots=True)
class TransferState:
    """One content on its way. name: what somebody called it. started_s: Unix time."""

    root: Digest
    name: str
    started_s: float
    progress: Progress


@dataclass(slots=True)
class _Shared:
    """A transfer with its callers."""

    root: Digest
    transfer: Transfer
    started_s: float
    name: str
    users: int = 0
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)


@dataclass(slots=True)
class _Turn:
    lock: trio.Lock = field(default_factory=trio.Lock)
    users: int = 0


class Fetcher:
    """Fetches into one store. `nursery` carries transfers, and the announcements of what arrived."""

    def __init__(
        self,
        own: PeerId,
        store: Store,
        directory: Providers,
        open_stream: Callable[[PeerId, str], Awaitable[trio.abc.Stream]],
        members: Callable[[], Iterable[PeerId]],
        nursery: trio.Nursery,
        *,
        penalise: Callable[[PeerId, Exception], None],
        provides: bool,
        open_mover: OpenMover | None = None,
        meter: Meter | None = None,
        note: Tell | None = None,
        doubts: Callable[[PeerId], int] = lambda peer: 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """provides: whether others may be told that we hold what arrived; a peer that listens on nothing may not.

        note: told of every lie we saw. doubts: how many other peers say that one lied. clock: Unix seconds.
        """
        self._own, self._store, self._directory, self._members = own, store, directory, members
        self._open_stream, self._nursery = open_stream, nursery
        self._penalise, self._provides = penalise, provides
        self._open_mover, self._meter, self._tell, self._doubts = open_mover, meter, note, doubts
        self._clock = clock
        self._shared: dict[Digest, _Shared] = {}
        self._turns: dict[bytes, _Turn] = {}
        self._moved: OrderedDict[Digest, Counter[PeerId]] = OrderedDict()
        self.notes = Notes(clock)

    async def content(
        self,
        root: Digest,
        *,
        hints: Sequence[PeerId] = (),
        select: Select | None = None,
        name: str = "",
    ) -> Path:
        """The complete file of `root`, fetched if it is not here; with `select` a file that has those pieces.

        name: how to call it to those who watch. Raises NotFound, another Unavailable, QuotaExceeded,
        ProtocolViolation, what `select` raises.
        """
        with suppress(BlockAbsent, IntegrityError):
            return await trio.to_thread.run_sync(self._file, root, select)
        await self._fetch(root, hints, select, name)
        return await trio.to_thread.run_sync(self._file, root, select)

    async def block(self, digest: Digest, *, hints: Sequence[PeerId] = ()) -> bytes:
        """One small block. Raises BlockAbsent when nobody asked holds it."""
        if not await trio.to_thread.run_sync(self._store.has, digest):
            async with self._turn(digest):
                await self._fetch_block(digest, hints)
        return await trio.to_thread.run_sync(self._store.get, digest)

    def announce(self, *digests: Digest) -> None:
        """Tell the directory, in the background, that we serve these. Failing is no error: it is told again later."""
        for digest in digests if self._provides else ():
            self._nursery.start_soon(self._provide, digest)

    async def providers(self, digest: Digest) -> tuple[PeerId, ...]:
        """Who is said to hold it; nobody when that cannot be found out in time."""
        return await self._look_up(digest)

    def withdraw(self, *digests: Digest) -> None:
        """We serve these no more: tell it no longer. Records that are out expire by themselves."""
        for digest in digests:
            self._directory.withdraw(digest)

    def transfers(self) -> tuple[TransferState, ...]:
        """What is on its way now, oldest first."""
        return tuple(
            TransferState(shared.root, shared.name, shared.started_s, shared.transfer.progress)
            for shared in self._shared.values()
        )

    def moved(self, root: bytes) -> Mapping[PeerId, int]:
        """Bytes of this content by the peer that gave them, since this process began; of the latest contents only."""
        received = Counter(self._moved.get(Digest(root)))
        if shared := self._shared.get(Digest(root)):
            received.update(shared.transfer.received)
        return MappingProxyType(received)

    # --- a content ---------------------------------------------------------------------------------------------

    def _file(self, root: Digest, select: Select | None) -> Path:
        """Runs in a thread. Raises BlockAbsent when a piece of it is not here."""
        if select is None:
            return self._store.path(root)
        return self._store.partial(root, select(parse_manifest(self._store.get(root))))

    async def _fetch(self, root: Digest, hints: Sequence[PeerId], select: Select | None, name: str) -> None:
        shared = self._shared.get(root)
        if shared is None or shared.transfer.over:
            shared = self._start(root, name)
        shared.name = shared.name or name
        shared.users += 1
        wish = shared.transfer.want(select)
        for source in self._order(hints):
            shared.transfer.offer(source)
        try:
            await wish.done.wait()
        finally:
            shared.users -= 1
            if not shared.users:
                self._close(shared)
        if not shared.users:
            await shared.ended.wait()  # until then it holds the content: nobody could remove what they just fetched
        if wish.failure is not None:
            raise wish.failure

    def _start(self, root: Digest, name: str) -> _Shared:
        transfer = Transfer(
            root,
            self._store,
            self._dial,
            open_mover=self._open_mover,
            meter=self._meter,
            on_begun=lambda progress: self._begun(root, progress),
            on_violation=lambda peer, error: self._caught(root, peer, error),
            last_resort=lambda: self._order(self._members())[:MAX_LAST_RESORT],
        )
        shared = self._shared[root] = _Shared(root, transfer, self._clock(), name)
        self._nursery.start_soon(self._run, shared)
        return shared

    def _close(self, shared: _Shared) -> None:
        """Whoever comes from now on begins anew."""
        if self._shared.get(shared.root) is shared:
            del self._shared[shared.root]
            self._remember(shared)
        if not shared.transfer.over:
            shared.scope.cancel()

    async def _run(self, shared: _Shared) -> None:
        """What goes wrong stands in the callers' wishes."""
        try:
            with shared.scope:
                async with own_nursery() as nursery:
                    nursery.start_soon(self._look_again, shared)
                    with suppress(CellulerError):
                        report = await shared.transfer.run(self._found(shared.root))
                        if report.received and self._small(shared):
                            self.announce(shared.root)
        finally:
            self._close(shared)
            shared.ended.set()

    def _begun(self, root: Digest, progress: Progress) -> None:
        if progress.wanted_bytes >= PROVIDE_PART_BYTES:
            self.announce(root)

    def _small(self, shared: _Shared) -> bool:
        return shared.transfer.progress.wanted_bytes < PROVIDE_PART_BYTES

    def _remember(self, shared: _Shared) -> None:
        if received := shared.transfer.received:
            self._moved.setdefault(shared.root, Counter()).update(received)
            self._moved.move_to_end(shared.root)
            if len(self._moved) > MAX_MOVED:
                self._moved.popitem(last=False)

    # --- a block -----------------------------------------------------------------------------------------------

    async def _fetch_block(self, digest: Digest, hints: Sequence[PeerId]) -> None:
        """Try the hints alone first: whoever spoke of the block usually has it, and a look-up costs time."""
        if told := self._order(hints)[:MAX_SOURCES]:
            try:
                return await self._ask_for_block(digest, told)
            except Unavailable as error:
                log.debug("hints_failed", digest=cid_of(digest), error=str(error))
        found = self._order([*await self._look_up(digest), *hints, *self._members()])[:MAX_SOURCES]
        if not found:
            raise BlockAbsent(digest)
        return await self._ask_for_block(digest, found)

    async def _ask_for_block(self, digest: Digest, sources: Sequence[PeerId]) -> None:
        await fetch_block(
            digest,
            self._store,
            sources,
            self._dial,
            on_violation=lambda peer, error: self._caught(digest, peer, error),
        )

    # --- sources -----------------------------------------------------------------------------------------------

    async def _found(self, root: Digest) -> AsyncIterator[PeerId]:
        for peer in self._order(await self._look_up(root)):
            yield peer

    async def _look_again(self, shared: _Shared) -> None:
        """Who began to hold it, or came back, while we fetch."""
        while True:
            await trio.sleep(LOOKUP_AGAIN_S)
            for peer in self._order(await self._look_up(shared.root)):
                shared.transfer.offer(peer)

    async def _look_up(self, digest: Digest) -> tuple[PeerId, ...]:
        try:
            with trio.fail_after(LOOKUP_S):
                return await self._directory.providers(digest)
        except (Unavailable, trio.TooSlowError):
            return ()

    def _order(self, peers: Iterable[PeerId]) -> list[PeerId]:
        """Distinct, without ourselves, the doubtful last."""
        others = [peer for peer in dict.fromkeys(peers) if peer != self._own]
        return sorted(others, key=lambda peer: (self.notes.suspect(peer), self._doubts(peer)))

    def _caught(self, root: Digest, peer: PeerId, error: PeerViolation) -> None:
        digest = Digest(error.digest) if isinstance(error, CorruptBlock) else root
        note = self.notes.add(peer, root, digest, type(error).__name__)
        log.info("corrupt_provider", peer=peer, root=cid_of(root), reason=note.reason)
        self._penalise(peer, error)
        if self._tell is not None:
            self._tell(peer, root, digest, note.reason)

    def _dial(self, peer: PeerId) -> Awaitable[trio.abc.Stream]:
        return self._open_stream(peer, PROTOCOL_ID)

    async def _provide(self, digest: Digest) -> None:
        try:
            with trio.fail_after(PROVIDE_S):
                await self._directory.provide(digest)
        except (Unavailable, LocalError, trio.TooSlowError) as error:
            log.debug("provide_failed", digest=cid_of(digest), error=str(error))

    @asynccontextmanager
    async def _turn(self, digest: bytes) -> AsyncIterator[None]:
        turn = self._turns.setdefault(digest, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[digest]
