"""Content by digest, from whoever has it.

Sources are, in this order: hints of the caller (whoever spoke of the content), providers that the directory names,
then some members of the swarm. Two callers that want the same content share one transfer. What arrived is provided
to others from then on. Knows nothing of what the content means.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import structlog
import trio

from celluler.content.digest import Digest, cid_of
from celluler.content.store import Store
from celluler.errors import BlockAbsent, LocalError, Unavailable
from celluler.identity import PeerId
from celluler_protocols import content

MAX_SOURCES = 8
LOOKUP_S = 5.0
PROVIDE_S = 10.0

log = structlog.get_logger()

T = TypeVar("T")


class Providers(Protocol):
    """What is needed of the directory."""

    async def provide(self, digest: bytes) -> None: ...

    async def providers(self, digest: bytes) -> tuple[PeerId, ...]: ...


@dataclass(slots=True)
class _Shared:
    lock: trio.Lock = field(default_factory=trio.Lock)
    users: int = 0


class Fetcher:
    """Fetches into one store. `nursery` carries the announcements of what arrived."""

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
    ) -> None:
        """provides: whether others may be told that we hold what arrived; a peer that listens on nothing may not."""
        self._own, self._store, self._directory, self._members = own, store, directory, members
        self._open_stream, self._nursery = open_stream, nursery
        self._penalise, self._provides = penalise, provides
        self._shared: dict[bytes, _Shared] = {}

    async def content(self, root: Digest, *, hints: Sequence[PeerId] = ()) -> Path:
        """The complete file of `root`, fetched if it is not here. Raises NotFound, QuotaExceeded, ProtocolViolation."""
        async with self._turn(root):
            if not await self._complete(root):
                await self._fetch(root, hints)
                self.announce(root)
        return await trio.to_thread.run_sync(self._store.path, root)

    async def block(self, digest: Digest, *, hints: Sequence[PeerId] = ()) -> bytes:
        """One small block. Raises BlockAbsent when nobody asked holds it."""
        if not await trio.to_thread.run_sync(self._store.has, digest):
            async with self._turn(digest):
                await self._from_sources(
                    digest,
                    hints,
                    lambda sources: content.fetch_block(
                        digest, self._store, sources, self._dial, on_violation=self._penalise
                    ),
                )
        return await trio.to_thread.run_sync(self._store.get, digest)

    def announce(self, *digests: Digest) -> None:
        """Tell the directory, in the background, that we serve these. Failing is no error: it is told again later."""
        for digest in digests if self._provides else ():
            self._nursery.start_soon(self._provide, digest)

    async def _complete(self, root: Digest) -> bool:
        try:
            return (await trio.to_thread.run_sync(self._store.stat, root)).complete
        except BlockAbsent:
            return False

    async def _fetch(self, root: Digest, hints: Sequence[PeerId]) -> None:
        report = await self._from_sources(
            root,
            hints,
            lambda sources: content.fetch(root, self._store, sources, self._dial, on_violation=self._penalise),
        )
        for liar in report.liars:
            log.info("corrupt_provider", peer=liar, root=cid_of(root))

    async def _from_sources(
        self, digest: Digest, hints: Sequence[PeerId], attempt: Callable[[Sequence[PeerId]], Awaitable[T]]
    ) -> T:
        """Try the hints alone first: whoever spoke of the content usually has it, and a look-up costs time."""
        if told := self._others(hints):
            try:
                return await attempt(told)
            except Unavailable as error:
                log.debug("hints_failed", digest=cid_of(digest), error=str(error))
        found = self._others([*await self._look_up(digest), *hints, *self._members()])
        if not found:
            raise BlockAbsent(digest)
        return await attempt(found)

    async def _look_up(self, digest: Digest) -> tuple[PeerId, ...]:
        try:
            with trio.fail_after(LOOKUP_S):
                return await self._directory.providers(digest)
        except (Unavailable, trio.TooSlowError):
            return ()

    def _others(self, peers: Iterable[PeerId]) -> list[PeerId]:
        """Distinct, without ourselves, bounded."""
        return [peer for peer in dict.fromkeys(peers) if peer != self._own][:MAX_SOURCES]

    def _dial(self, peer: PeerId) -> Awaitable[trio.abc.Stream]:
        return self._open_stream(peer, content.PROTOCOL_ID)

    async def _provide(self, digest: Digest) -> None:
        try:
            with trio.fail_after(PROVIDE_S):
                await self._directory.provide(digest)
        except (Unavailable, LocalError, trio.TooSlowError) as error:
            log.debug("provide_failed", digest=cid_of(digest), error=str(error))

    @asynccontextmanager
    async def _turn(self, digest: bytes) -> AsyncIterator[None]:
        shared = self._shared.setdefault(digest, _Shared())
        shared.users += 1
        try:
            async with shared.lock:
                yield
        finally:
            shared.users -= 1
            if not shared.users:
                del self._shared[digest]
