"""This node's part in keeping the swarm's contents: the replicator with the node's catalogue, store and repository.

What is kept here for the swarm alone is counted against an allowance of its own, is never pinned, and may be given up
when enough others have it. What the node's user added or pulled is not ours to give up.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from celluler.content.digest import Digest
from celluler.content.replication import Policy, Replicated
from celluler.content.replication_watch import Wanted
from celluler.content.store import ContentStat
from celluler.errors import LocalError, NotFound
from celluler.identity import PeerId, Signed
from celluler_node.core import Core
from celluler_node.replicator import Replicator, answers_for, candidates, open_replicator
from celluler_node.repository import roots_of
from celluler_protocols import content
from celluler_protocols.gossip import ModelAnnouncement
from celluler_protocols.membership import Membership


@asynccontextmanager
async def open_replicas(
    core: Core, membership: Membership, *, interval_s: float, policy: Policy
) -> AsyncIterator[Replicator]:
    """Replicate for the length of the block, if this node's roles and limits say so; watch in any case."""
    replicas = _Replicas(core)
    async with open_replicator(
        catalogue=replicas.catalogue,
        members=lambda: candidates(membership.members()),
        providers=core.directory.providers,
        pull=replicas.pull,
        room=replicas.room,
        own=core.identity.peer_id,
        region=core.config.region,
        stores=replicas.stores,
        interval_s=interval_s,
        policy=policy,
        confirm=replicas.confirm,
        release=replicas.release,
    ) as replicator:
        core.nursery.start_soon(replicas.uphold)
        yield replicator


class _Replicas:
    def __init__(self, core: Core) -> None:
        self._core, self._store = core, core.store
        self._kept = core.state.replicas
        self.stores = "store" in core.config.roles and core.config.replica_bytes > 0

    def catalogue(self) -> Sequence[Wanted]:
        """Everything announced, as we stand to it. A content that two announce is wanted as its first one says."""
        here = set(self._store.roots())
        wanted: dict[bytes, Wanted] = {}
        for signed in self._core.repository.announced():
            root = signed.record.root
            if root not in wanted and root not in self._core.repository.refused:
                wanted[root] = self._wanted(signed, self._stat(root) if root in here else None)
        return tuple(wanted.values())

    def room(self) -> int:
        """Bytes that replicas may still take: of their allowance, and of the quota as it is."""
        stats = (self._stat(bytes.fromhex(root)) for root in self._kept)
        used = sum(stat.wanted_bytes for stat in stats if stat is not None)
        config = self._core.config
        return min(config.replica_bytes - used, config.store_quota_bytes - self._store.used_bytes())

    async def pull(self, root: bytes, manifest: bytes) -> None:
        """Fetch a copy, and remember that it is here for others."""
        told = (one for one in self._core.repository.announced() if one.record.manifest == manifest)
        signed = next(told, None)
        if signed is None:
            raise NotFound("no longer announced")
        fresh = self._stat(root) is None
        try:
            await self._core.repository.replicate(signed)
        except BaseException:
            self._core.fetcher.withdraw(Digest(root))  # it was told when it was begun
            raise
        beside = self._beside(root)
        for one in (*([root] if fresh else []), *(one for one in beside if not self._core.repository.uses(one))):
            if one.hex() not in self._kept:
                self._kept.append(one.hex())
        self._core.save()

    async def uphold(self) -> None:
        """After a start: the names of the copies kept here are told again."""
        for signed in self._core.repository.announced():
            if signed.record.root.hex() in self._kept:
                await self._core.repository.uphold(signed)

    async def release(self, root: bytes) -> None:
        """Give up a copy, unless its user has come to use it."""
        if not self._spare(root, await trio.to_thread.run_sync(self._stat, root)):
            raise LocalError("is used here")
        beside = self._beside(root)
        await trio.to_thread.run_sync(self._store.remove, root)
        self._core.fetcher.withdraw(Digest(root))
        self._forget(root)
        needed = {one for kept in self._kept for one in self._beside(bytes.fromhex(kept))}
        for one in beside:
            if one not in needed and self._spare(one, await trio.to_thread.run_sync(self._stat, one)):
                await trio.to_thread.run_sync(self._store.remove, one)
                self._core.fetcher.withdraw(one)
                self._forget(one)

    async def confirm(self, peer: PeerId, root: bytes) -> bool:
        return await answers_for(await self._core.host.open_stream(peer, content.PROTOCOL_ID), peer, root)

    def _wanted(self, signed: Signed[ModelAnnouncement], stat: ContentStat | None) -> Wanted:
        told = signed.record
        held = stat is not None and stat.complete
        return Wanted(
            Replicated(told.root, told.total_bytes, told.copies, told.regions),
            told.manifest,
            held=held or any(one.root == told.root for one in self._core.fetcher.transfers()),
            spare=held and self._spare(told.root, stat),
        )

    def _spare(self, root: bytes, stat: ContentStat | None) -> bool:
        if root.hex() not in self._kept:
            return False
        if stat is None:  # evicted, or removed by hand
            self._forget(root)
            return False
        return not stat.pinned and not stat.in_use and not self._core.repository.uses(root)

    def _beside(self, root: bytes) -> tuple[Digest, ...]:
        """Contents that are kept with this one, by the manifests that the swarm announces it with. Reads the disk the
        first time."""
        repository = self._core.repository
        told = (
            repository.shelf.either(Digest(one.record.manifest))
            for one in repository.announced()
            if one.record.root == root
        )
        return tuple({one for opened in told if opened is not None for one in roots_of(opened)[1:]})

    def _forget(self, root: bytes) -> None:
        if root.hex() in self._kept:
            self._kept.remove(root.hex())
            self._core.save()

    def _stat(self, root: bytes) -> ContentStat | None:
        try:
            return self._store.stat(root)
        except NotFound:
            return None
