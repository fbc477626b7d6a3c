"""The swarm's catalogue with its bodies: gossip tells digests, this fetches the manifests behind them.

A body is kept as a block for as long as the swarm announces it, so that listing and searching work without asking
anybody, also after a restart and offline. What does not verify, or is not what was announced, is passed over.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import structlog
import trio

from celluler.content.digest import Digest
from celluler.content.store import Store
from celluler.errors import CellulerError, LocalError
from celluler.identity import Signed, short
from celluler_node.fetching import Fetcher
from celluler_node.repository.resolver import Resolver
from celluler_node.repository.shelf import Opened, Shelf
from celluler_node.state import NodeState
from celluler_protocols.gossip import ModelAnnouncement

EVERY_S = 2.0
BODY_S = 20.0
AGAIN_S = 300.0
MAX_BODIES = 4096
MAX_A_SWEEP = 32

log = structlog.get_logger()


class Catalogue:
    """Bodies of what is announced."""

    def __init__(
        self,
        store: Store,
        shelf: Shelf,
        resolver: Resolver,
        fetcher: Fetcher,
        state: NodeState,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._store, self._shelf, self._resolver, self._fetcher = store, shelf, resolver, fetcher
        self._state, self._clock = state, clock
        self._tried_s: dict[bytes, float] = {}

    def body(self, announcement: ModelAnnouncement) -> Opened | None:
        """The manifest behind an announcement, if it is here. Reads the disk the first time."""
        return self._shelf.either(Digest(announcement.manifest))

    async def watch(self) -> None:
        """Bring bodies in as they are announced, let go of the others; runs as long as the node."""
        while True:
            try:
                await self.sweep()
            except CellulerError as error:  # our store: what is wrong with an announcement is passed over below
                log.warning("catalogue_not_kept", error=str(error))
            await trio.sleep(EVERY_S)

    async def sweep(self) -> None:
        """Once."""
        told = self._resolver.announced()[-MAX_BODIES:]
        await self._let_go({signed.record.manifest for signed in told})
        missing = [signed for signed in told if self._due(signed.record.manifest)]
        for signed in missing[:MAX_A_SWEEP]:
            self._tried_s[signed.record.manifest] = self._clock()
            if not await trio.to_thread.run_sync(self._store.has, signed.record.manifest):
                await self._bring(signed)

    def _due(self, manifest: bytes) -> bool:
        if manifest.hex() in self._state.catalogue or manifest.hex() in (*self._state.models, *self._state.datasets):
            return False
        return self._clock() - self._tried_s.get(manifest, float("-inf")) >= AGAIN_S

    async def _bring(self, signed: Signed[ModelAnnouncement]) -> None:
        told = signed.record
        try:
            with trio.fail_after(BODY_S):
                await self._fetcher.block(Digest(told.manifest), hints=[signed.signer])
        except (CellulerError, trio.TooSlowError) as error:
            log.debug("body_not_fetched", name=told.name, peer=short(signed.signer), error=str(error))
            return
        opened = await trio.to_thread.run_sync(self.body, told)
        if opened is None or not _is(opened, signed):
            log.info("announcement_false", peer=short(signed.signer), name=told.name)
            await trio.to_thread.run_sync(self._drop, told.manifest)
            return
        self._state.catalogue.append(told.manifest.hex())

    async def _let_go(self, announced: set[bytes]) -> None:
        kept = {*self._state.models, *self._state.datasets}
        gone = [text for text in self._state.catalogue if bytes.fromhex(text) not in announced]
        for text in gone:
            self._state.catalogue.remove(text)
            if text not in kept:
                await trio.to_thread.run_sync(self._drop, bytes.fromhex(text))
        for manifest in self._tried_s.keys() - announced:
            del self._tried_s[manifest]

    def _drop(self, digest: bytes) -> None:
        """Let go of a lone block. What an announcement names may have become part of a content here: that stays."""
        if self._shelf.stat(digest) is None:
            with suppress(LocalError):  # a leaf of one
                self._store.remove(digest)


def _is(opened: Opened, signed: Signed[ModelAnnouncement]) -> bool:
    told = signed.record
    return (opened.signed.signer, opened.record.name, opened.record.version) == (
        signed.signer,
        told.name,
        told.version,
    )
