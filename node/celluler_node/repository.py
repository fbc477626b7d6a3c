"""Models by name: publish, resolve, pull.

The way of a name: `author/name:version` → the author's key → the signed head in the DHT → the signed index of
versions → the signed manifest → the weights, each step verified by signature or digest before the next is taken.
A nickname stands for a key only while the swarm knows exactly one key that bears it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from celluler.content.digest import Digest, cid_of
from celluler.content.store import Store
from celluler.errors import CellulerError, InvalidSpec, NotFound, ProtocolViolation, Unavailable
from celluler.identity import Identity, PeerId, Signed
from celluler.models.index import VersionIndex, extend_index, open_index, seal_index
from celluler.models.manifest import ModelManifest, OpenedManifest, open_manifest, seal_manifest
from celluler.models.names import ModelName, parse_reference
from celluler.models.weights import check_weights
from celluler_node.fetching import Fetcher
from celluler_node.state import NodeState
from celluler_protocols.directory import Directory
from celluler_protocols.gossip import Gossip, ModelAnnouncement

ANNOUNCEMENT_LIFE_S = 24 * 3600
HEAD_S = 20.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Held:
    """A model whose manifest was verified. local: its weights are complete in our store."""

    opened: OpenedManifest
    local: bool

    @property
    def name(self) -> str:
        """`author/name:version`, by nickname where the author gave one."""
        record = self.opened.record
        return f"{record.nickname or self.opened.signed.signer}/{record.name}:{record.version}"


class Repository:
    """One node's view of the swarm's models."""

    def __init__(
        self,
        identity: Identity,
        nickname: str,
        store: Store,
        fetcher: Fetcher,
        directory: Directory,
        gossip: Gossip,
        state: NodeState,
        remember: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """remember: writes `state` down. clock: Unix seconds."""
        self._identity, self.nickname, self._store, self._fetcher = identity, nickname, store, fetcher
        self._directory, self._gossip, self._state, self._remember = directory, gossip, state, remember
        self._clock = clock
        self._publishing = trio.Lock()

    # --- publishing --------------------------------------------------------------------------------------------

    async def publish(self, manifest: ModelManifest) -> Held:
        """Sign a model of ours and make it resolvable. Its weights are in the store already.

        Raises InvalidSpec, LocalError for a version that is taken, Unavailable when the DHT took no head.
        """
        async with self._publishing:
            envelope = seal_manifest(self._identity, manifest)
            digest = await trio.to_thread.run_sync(self._store.put_block, envelope)
            index = extend_index(await self._own_index(manifest.name), manifest, digest)
            index_digest = await trio.to_thread.run_sync(self._store.put_block, seal_index(self._identity, index))
            self._state.heads[manifest.name] = index_digest.hex()
            held = self._hold(open_manifest(envelope))
            self._fetcher.announce(Digest(manifest.weights), digest, index_digest)
            with trio.fail_after(HEAD_S):
                await self._directory.publish_head(manifest.name, index.number, index_digest)
            await self._gossip.announce(self._announcement(manifest, digest))
        log.info("model_published", name=held.name, cid=cid_of(digest))
        return held

    async def keep(self, manifest: ModelManifest) -> Held:
        """Sign a model of ours and tell nobody: it can be named by its CID, and fetched from us while we are there."""
        envelope = seal_manifest(self._identity, manifest)
        await trio.to_thread.run_sync(self._store.put_block, envelope)
        return self._hold(open_manifest(envelope))

    def held(self, opened: OpenedManifest) -> Held:
        """Whether its weights are here."""
        return Held(opened, self._is_local(opened))

    async def republish(self) -> None:
        """After a restart: what we serve is told again, since records in the DHT expire."""
        for held in self.local():
            self._fetcher.announce(Digest(held.opened.record.weights), held.opened.digest)
        for name, text in self._state.heads.items():
            index_digest = Digest(bytes.fromhex(text))
            try:
                index = await self._open_index(index_digest, self._identity.peer_id)
                self._fetcher.announce(index_digest)
                with trio.fail_after(HEAD_S):
                    await self._directory.publish_head(name, index.record.number, index_digest)
            except (CellulerError, trio.TooSlowError) as error:
                log.warning("head_not_republished", name=name, error=str(error))

    async def _own_index(self, name: str) -> VersionIndex | None:
        """The newest index we signed: here, or (after a lost state file) in the DHT."""
        if text := self._state.heads.get(name):
            return (await self._open_index(Digest(bytes.fromhex(text)), self._identity.peer_id)).record
        try:
            return (await self._index(self._identity.peer_id, name))[0].record
        except (NotFound, Unavailable):
            return None

    def _announcement(self, manifest: ModelManifest, digest: Digest) -> ModelAnnouncement:
        return ModelAnnouncement(
            name=manifest.name,
            version=manifest.version,
            manifest=digest,
            root=manifest.weights,
            total_bytes=manifest.weights_bytes,
            nickname=self.nickname,
            **self._gossip.stamp(ANNOUNCEMENT_LIFE_S),
        )

    # --- resolving ---------------------------------------------------------------------------------------------

    async def resolve(self, reference: str, *, hints: Sequence[PeerId] = ()) -> OpenedManifest:
        """The signed manifest that a name or CID means. Raises InvalidSpec, NotFound, PeerViolation."""
        parsed = parse_reference(reference)
        if not isinstance(parsed, ModelName):
            return open_manifest(await self._fetcher.block(parsed, hints=hints))
        author = self._author(parsed)
        index, holder = await self._index(author, parsed.name)
        version = None if parsed.version is None else str(parsed.version)
        entry = index.record.find(version, parsed.alias)
        raw = await self._fetcher.block(Digest(entry.manifest), hints=[*hints, *holder])
        opened = open_manifest(raw, signer=author)
        if (opened.record.name, opened.record.version) != (parsed.name, entry.version):
            raise ProtocolViolation(f"the index of {parsed.name} lists a manifest of another model", peer=author)
        return opened

    async def pull(self, reference: str, *, hints: Sequence[PeerId] = ()) -> tuple[Held, Path]:
        """Resolve, fetch the weights, provide them to others. Returns the file of weights too."""
        opened = await self.resolve(reference, hints=hints)
        announced = self._announcers(opened.digest)
        path = await self._fetcher.content(Digest(opened.record.weights), hints=[*hints, *announced])
        await trio.to_thread.run_sync(self._check_weights, opened, path)
        held = self._hold(opened)
        self._fetcher.announce(opened.digest)
        return held, path

    async def providers(self, opened: OpenedManifest) -> tuple[PeerId, ...]:
        """Who serves the weights, ourselves included."""
        found = await self._directory.providers(opened.record.weights)
        own = (self._identity.peer_id,) if self._is_local(opened) else ()
        return tuple(dict.fromkeys((*own, *found)))

    def local(self) -> tuple[Held, ...]:
        """Models whose manifests we keep, in the order they came."""
        held = []
        for text in self._state.models:
            try:
                opened = open_manifest(self._store.get(bytes.fromhex(text)))
            except (CellulerError, ValueError) as error:
                log.warning("manifest_lost", digest=text[:16], error=str(error))
                continue
            held.append(Held(opened, self._is_local(opened)))
        return tuple(held)

    def announced(self) -> tuple[Signed[ModelAnnouncement], ...]:
        """What the swarm has told of models, the newest of each author and name."""
        return tuple(
            Signed(signed.signer, signed.record, signed.raw)
            for signed in self._gossip.catalogue()
            if isinstance(signed.record, ModelAnnouncement)
        )

    def _author(self, name: ModelName) -> PeerId:
        if name.author_is_peer:
            return PeerId(name.author)
        if name.author == self.nickname:
            return self._identity.peer_id
        known = [(signed.signer, signed.record.nickname) for signed in self.announced()]
        known += [(held.opened.signed.signer, held.opened.record.nickname) for held in self.local()]
        keys = sorted({signer for signer, nickname in known if nickname == name.author})
        if len(keys) > 1:
            raise InvalidSpec(
                "model", f"{len(keys)} peers call themselves {name.author!r}", hint=f"say which: {keys[0]}/{name.name}"
            )
        if not keys:
            raise NotFound(f"{name}: nobody called {name.author!r} has announced a model", hint="celluler model ls")
        return keys[0]

    def _check_weights(self, opened: OpenedManifest, path: Path) -> None:
        """Raises ProtocolViolation when the content that the author signed does not fit the author's own spec."""
        try:
            check_weights(opened.architecture, path)
        except InvalidSpec as error:
            raise ProtocolViolation(f"model {opened.record.name}: {error}", peer=opened.signed.signer) from error

    async def _index(self, author: PeerId, name: str) -> tuple[Signed[VersionIndex], tuple[PeerId, ...]]:
        head = await self._directory.resolve_head(author, name)
        holders = tuple({signed.signer for signed in self.announced() if signed.record.name == name})
        index = await self._open_index(Digest(head.record.index), author, hints=[author, *holders])
        if index.record.name != name or index.record.number != head.record.number:
            raise ProtocolViolation(f"the head of {name} points at another index", peer=author)
        self._fetcher.announce(Digest(head.record.index))
        return index, holders

    async def _open_index(self, digest: Digest, author: PeerId, hints: Sequence[PeerId] = ()) -> Signed[VersionIndex]:
        return open_index(await self._fetcher.block(digest, hints=hints), signer=author)

    def _announcers(self, manifest: Digest) -> list[PeerId]:
        return [signed.signer for signed in self.announced() if signed.record.manifest == manifest]

    def _hold(self, opened: OpenedManifest) -> Held:
        text = opened.digest.hex()
        if text not in self._state.models:
            self._state.models.append(text)
        self._remember()
        return Held(opened, self._is_local(opened))

    def _is_local(self, opened: OpenedManifest) -> bool:
        try:
            return self._store.stat(opened.record.weights).complete
        except NotFound:
            return False
