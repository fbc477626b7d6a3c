"""The names that are ours: every change is one more number of a signed index, and one more line of a signed log.

A change is made in this order: blocks kept, head signed and stored in the DHT, the swarm told. What fails half way is
taken up again by the next change or by `republish`: the newest index we signed is remembered here before it is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog
import trio

from celluler.content.digest import Digest, cid_of
from celluler.content.store import Store
from celluler.datasets import manifest as datasets
from celluler.datasets.manifest import DatasetManifest, OpenedDataset, open_dataset, seal_dataset
from celluler.errors import CellulerError, InvalidSpec, NotFound, Unavailable
from celluler.identity import Identity
from celluler.models.compare import check_bump
from celluler.models.index import (
    VersionIndex,
    drop_alias,
    extend_index,
    retract,
    roll_back,
    seal_index,
    set_alias,
    with_log,
)
from celluler.models.manifest import ModelManifest, OpenedManifest, open_manifest, seal_manifest
from celluler.models.provenance import append_entry, open_entry
from celluler.models.version import predecessor
from celluler_node.fetching import Fetcher
from celluler_node.repository.resolver import DATASET, MODEL, Resolver
from celluler_node.repository.shelf import Opened, Shelf
from celluler_node.state import NodeState
from celluler_protocols.directory import Directory
from celluler_protocols.gossip import MAX_LIFETIME_S, Gossip, ModelAnnouncement

ANNOUNCE_EVERY_S = 24 * 3600
"""What is ours is announced again so often; an announcement lives as long as gossip lets it."""
MAX_ANNOUNCED = 48
"""Versions of ours that are announced, the newest: gossip keeps no more of one peer, and older ones can be resolved."""
HEAD_S = 20.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Change:
    """One line of the log to come. subject: the manifest it is about, when it is about one."""

    action: str
    version: str
    subject: Digest | None = None
    note: str = ""


class Publisher:
    """Signs for one identity. One change at a time."""

    def __init__(
        self,
        identity: Identity,
        nickname: str,
        store: Store,
        shelf: Shelf,
        resolver: Resolver,
        fetcher: Fetcher,
        directory: Directory,
        gossip: Gossip,
        state: NodeState,
        remember: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """remember: writes `state` down. clock: Unix seconds."""
        self._identity, self.nickname, self._store, self._shelf = identity, nickname, store, shelf
        self._resolver, self._fetcher, self._directory, self._gossip = resolver, fetcher, directory, gossip
        self._state, self._remember, self._clock = state, remember, clock
        self._changing = trio.Lock()

    async def model(
        self, manifest: ModelManifest, *, aliases: tuple[str, ...] = (), note: str = "", public: bool = False
    ) -> OpenedManifest:
        """Sign a version of a model and make it resolvable. Its weights are in the store already.

        public: it may be, though the version before was encrypted.
        Raises InvalidSpec for a version that says less than changed, LocalError for one that is taken,
        Unavailable when the DHT took no head.
        """
        async with self._changing:
            index = await self._own_index(manifest.name, MODEL)
            before = await self._version_before(index, manifest.version)
            if before is not None:
                earlier = (await self._resolver.model(cid_of(before))).record
                check_bump(earlier, manifest)
                _check_public(earlier, manifest, public)
            envelope = seal_manifest(self._identity, manifest)
            opened = open_manifest(envelope)
            await trio.to_thread.run_sync(self._store.put_block, envelope)
            await self._publish(index, opened, aliases, note)
        return opened

    async def dataset(
        self, manifest: DatasetManifest, *, aliases: tuple[str, ...] = (), note: str = ""
    ) -> OpenedDataset:
        """The same for a dataset."""
        async with self._changing:
            index = await self._own_index(manifest.name, DATASET)
            before = await self._version_before(index, manifest.version)
            if before is not None:
                datasets.check_bump((await self._resolver.dataset(cid_of(before))).record, manifest)
            envelope = seal_dataset(self._identity, manifest)
            opened = open_dataset(envelope)
            await trio.to_thread.run_sync(self._store.put_block, envelope)
            await self._publish(index, opened, aliases, note)
        return opened

    async def keep(self, manifest: ModelManifest) -> OpenedManifest:
        """Sign a model and tell nobody: it can be named by its CID, and fetched from us while we are there."""
        envelope = seal_manifest(self._identity, manifest)
        await trio.to_thread.run_sync(self._store.put_block, envelope)
        opened = open_manifest(envelope)
        self._shelf.keep(opened)
        return opened

    async def keep_dataset(self, manifest: DatasetManifest) -> OpenedDataset:
        """The same for a dataset."""
        envelope = seal_dataset(self._identity, manifest)
        await trio.to_thread.run_sync(self._store.put_block, envelope)
        opened = open_dataset(envelope)
        self._shelf.keep(opened)
        return opened

    async def alias(self, name: str, alias: str, version: str) -> None:
        """Let `name@alias` mean this version. Raises NotFound for a version that is not there."""
        async with self._changing:
            index = set_alias(await self._existing(name), alias, version)
            await self._commit(index, _Change("aliased", version, note=alias))

    async def drop_alias(self, name: str, alias: str) -> None:
        """Let `name@alias` mean nothing. Raises NotFound."""
        async with self._changing:
            before = await self._existing(name)
            version = next((one.version for one in before.aliases if one.alias == alias), "")
            await self._commit(drop_alias(before, alias), _Change("unaliased", version, note=alias))

    async def roll_back(self, name: str, version: str) -> None:
        """Let the bare name mean this version, until a newer one is published."""
        async with self._changing:
            index = roll_back(await self._existing(name), version)
            await self._commit(index, _Change("rolled-back", version))

    async def retract(self, name: str, version: str, reason: str) -> None:
        """Take a version back: its name resolves no more, and whoever asks is told why. Copies cannot be recalled."""
        async with self._changing:
            index = retract(await self._existing(name), version, reason)
            subject = Digest(index.entry(version).manifest)
            await self._commit(index, _Change("retracted", version, subject, reason))
            opened = self._shelf.either(subject)
            if opened is not None:
                await self._gossip.announce(self._announcement(opened, life_s=1.0))

    async def republish(self) -> None:
        """After a restart: what we hold and what our names mean is told again, since records in the DHT expire."""
        for root in await trio.to_thread.run_sync(self._store.roots):
            self._fetcher.announce(root)
        self._fetcher.announce(*(held.opened.digest for held in self._shelf.models()))
        self._fetcher.announce(*(held.opened.digest for held in self._shelf.datasets()))
        for name, text in tuple(self._state.heads.items()):
            index_digest = Digest(bytes.fromhex(text))
            try:
                index = await self._resolver.open_index(index_digest, self._identity.peer_id)
                await self._tell_head(name, index.record.number, index_digest)
            except (CellulerError, trio.TooSlowError) as error:
                log.warning("head_not_republished", name=name, error=str(error))

    async def keep_told(self) -> None:
        """After a start and then daily, tell the swarm what is ours and stands; runs as long as the node."""
        await self.republish()
        while True:
            for opened in await self._standing():
                with suppress(CellulerError):  # refused, because the swarm knows a newer one
                    await self._gossip.announce(self._announcement(opened))
            await trio.sleep(ANNOUNCE_EVERY_S)

    # --- inside ------------------------------------------------------------------------------------------------

    async def _standing(self) -> list[Opened]:
        """What we published, kept, and did not take back; the newest last."""
        standing: list[Opened] = []
        for name in tuple(self._state.heads):
            for kind in (MODEL, DATASET):
                with suppress(CellulerError):
                    index = await self._own_index(name, kind)
                    kept = [Digest(entry.manifest) for entry in index.entries if not entry.retracted] if index else []
                    found = map(self._shelf.either, kept)
                    standing += [opened for opened in found if opened is not None and self._shelf.keeps(opened)]
        return sorted(standing, key=lambda opened: opened.record.created_s)[-MAX_ANNOUNCED:]

    async def _publish(self, index: VersionIndex | None, opened: Opened, aliases: tuple[str, ...], note: str) -> None:
        record = opened.record
        kind = MODEL if isinstance(record, ModelManifest) else DATASET
        before, index = index, extend_index(index, record, opened.digest, kind=kind)
        changes = [] if index is before else [_Change("published", record.version, opened.digest, note)]
        if changes and isinstance(record, ModelManifest) and record.encrypted:
            changes.append(_Change("readers", record.version, opened.digest, f"{len(record.sealed)} peers can read it"))
        for alias in aliases:
            index = set_alias(index, alias, record.version)
            changes.append(_Change("aliased", record.version, note=alias))
        self._shelf.keep(opened)
        root = record.weights if isinstance(record, ModelManifest) else record.content
        beside = record.files if isinstance(record, ModelManifest) else ()
        self._fetcher.announce(Digest(root), opened.digest, *(Digest(one.root) for one in beside))
        await self._commit(index, *changes)
        await self._gossip.announce(self._announcement(opened))
        log.info("published", kind=kind, name=record.name, version=record.version, cid=cid_of(opened.digest))

    async def _commit(self, index: VersionIndex, *changes: _Change) -> None:
        """Log, index, head; remembered before it is told."""
        for change in changes:
            index = with_log(index, await self._logged(index, change))
        digest = await trio.to_thread.run_sync(self._store.put_block, seal_index(self._identity, index))
        self._state.heads[index.name] = digest.hex()
        self._remember()
        await self._tell_head(index.name, index.number, digest)

    async def _tell_head(self, name: str, number: int, index: Digest) -> None:
        self._fetcher.announce(index)
        try:
            with trio.fail_after(HEAD_S):
                await self._directory.publish_head(name, number, index)
        except trio.TooSlowError:
            raise Unavailable(f"the head of {name} was not stored within {HEAD_S:g} s") from None

    async def _logged(self, index: VersionIndex, change: _Change) -> Digest:
        """The log with one entry more; its digest."""
        newest = None
        if index.log is not None:
            newest = open_entry(await self._fetcher.block(Digest(index.log)), signer=self._identity.peer_id)
        entry = append_entry(
            self._identity,
            newest,
            name=index.name,
            at_s=int(self._clock()),
            action=change.action,
            version=change.version,
            subject=change.subject,
            note=change.note,
        )
        return await trio.to_thread.run_sync(self._store.put_block, entry)

    async def _own_index(self, name: str, kind: str) -> VersionIndex | None:
        """The newest index we signed: here, or (after a lost state file) in the DHT."""
        index = None
        if text := self._state.heads.get(name):
            index = (await self._resolver.open_index(Digest(bytes.fromhex(text)), self._identity.peer_id)).record
        else:
            try:
                index = (await self._resolver.index(self._identity.peer_id, name))[0].record
            except (NotFound, Unavailable):
                return None
        if index.kind != kind:
            raise InvalidSpec("name", f"{name!r} is a {index.kind} of yours already", hint="choose another name")
        return index

    async def _existing(self, name: str) -> VersionIndex:
        for kind in (MODEL, DATASET):
            try:
                index = await self._own_index(name, kind)
            except InvalidSpec:
                continue
            if index is not None:
                return index
        raise NotFound(f"{name}: nothing of that name was published by this peer", hint="celluler model ls")

    async def _version_before(self, index: VersionIndex | None, version: str) -> Digest | None:
        """The manifest of the newest version below this one."""
        if index is None:
            return None
        before = predecessor(version, [entry.version for entry in index.entries])
        return None if before is None else Digest(index.entry(before).manifest)

    def _announcement(self, opened: Opened, life_s: float = MAX_LIFETIME_S) -> ModelAnnouncement:
        record = opened.record
        model = isinstance(record, ModelManifest)
        return ModelAnnouncement(
            name=record.name,
            version=record.version,
            manifest=opened.digest,
            root=record.weights if isinstance(record, ModelManifest) else record.content,
            total_bytes=record.weights_bytes if isinstance(record, ModelManifest) else record.content_bytes,
            nickname=self.nickname,
            kind=MODEL if model else DATASET,
            copies=record.copies,
            regions=record.regions,
            **self._gossip.stamp(life_s),
        )


def _check_public(earlier: ModelManifest, manifest: ModelManifest, public: bool) -> None:
    """What was for a few is not given to all by leaving something out."""
    if earlier.encrypted and not manifest.encrypted and not public:
        raise InvalidSpec(
            "readers",
            f"{earlier.version} is encrypted, and {manifest.version} would be for everybody",
            hint="name its readers (--reader PEER), or say --public",
        )
