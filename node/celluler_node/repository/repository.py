"""One node's models and datasets: what it publishes, resolves, pulls and keeps.

Putting the parts of this package together; each of them says what it guarantees.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import trio

from celluler.content.digest import Digest, digest_of
from celluler.content.manifest import Manifest
from celluler.content.store import ContentStat, Store
from celluler.datasets.manifest import DatasetManifest, OpenedDataset
from celluler.errors import CellulerError, IntegrityError, InvalidSpec, NotFound, ProtocolViolation
from celluler.identity import Identity, PeerId, Signed, short
from celluler.models.access import plain_bytes
from celluler.models.beside import FileBeside, check_size
from celluler.models.index import VersionIndex
from celluler.models.manifest import ModelManifest, OpenedManifest
from celluler.models.names import ModelName, parse_reference
from celluler.models.provenance import open_entry
from celluler.models.select import pieces_of, tensors_of_layers
from celluler_node.fetching import Fetcher
from celluler_node.repository.catalogue import Catalogue
from celluler_node.repository.checks import MAX_LOG_ENTRIES, Checks
from celluler_node.repository.held import Held, HeldDataset, name_of
from celluler_node.repository.publisher import Publisher
from celluler_node.repository.resolver import Resolver
from celluler_node.repository.shelf import Opened, Shelf
from celluler_node.repository.vault import Vault
from celluler_node.state import NodeState
from celluler_protocols.directory import Directory
from celluler_protocols.gossip import Gossip, ModelAnnouncement


class Repository:
    """The parts of the package over one node's services."""

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
        vault_folder: Path,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """remember: writes `state` down. clock: Unix seconds."""
        self._own, self.nickname, self._store, self._fetcher = identity.peer_id, nickname, store, fetcher
        self._directory = directory
        self.refused: set[Digest] = set()
        """Contents that our user removed: not to be kept for the swarm either, until the node starts anew."""
        self.shelf = Shelf(store, state, remember)
        self.vault = Vault(identity, vault_folder)
        self.resolver = Resolver(identity.peer_id, nickname, self.shelf, fetcher, directory, gossip)
        self.catalogue = Catalogue(store, self.shelf, self.resolver, fetcher, state)
        self.checks = Checks(store, self.resolver, fetcher, self.vault)
        self.publisher = Publisher(
            identity,
            nickname,
            store,
            self.shelf,
            self.resolver,
            fetcher,
            directory,
            gossip,
            state,
            remember,
            clock,
        )

    # --- publishing --------------------------------------------------------------------------------------------

    async def publish(self, manifest: ModelManifest, *, aliases: tuple[str, ...] = (), public: bool = False) -> Held:
        """Sign a model of ours and make it resolvable. Its weights are in the store already.

        Raises InvalidSpec, LocalError for a version that is taken, Unavailable when the DHT took no head.
        """
        return self.held(await self.publisher.model(manifest, aliases=aliases, public=public))

    async def keep(self, manifest: ModelManifest) -> Held:
        """Sign a model of ours and tell nobody: it can be named by its CID, and fetched from us while we are there."""
        return self.held(await self.publisher.keep(manifest))

    async def publish_dataset(self, manifest: DatasetManifest, *, aliases: tuple[str, ...] = ()) -> HeldDataset:
        """As `publish`."""
        return self.held_dataset(await self.publisher.dataset(manifest, aliases=aliases))

    async def keep_dataset(self, manifest: DatasetManifest) -> HeldDataset:
        """As `keep`."""
        return self.held_dataset(await self.publisher.keep_dataset(manifest))

    # --- resolving ---------------------------------------------------------------------------------------------

    async def resolve(self, reference: str, *, hints: Sequence[PeerId] = (), retracted: bool = False) -> OpenedManifest:
        """The signed manifest that a name or CID means. Raises InvalidSpec, NotFound, PeerViolation.

        retracted: also a version that its author took back, when it is named exactly.
        """
        return await self.resolver.model(reference, hints=hints, retracted=retracted)

    async def either(self, reference: str, *, hints: Sequence[PeerId] = ()) -> Opened:
        """The model or the dataset that a name means, retracted or not. Raises InvalidSpec, NotFound, PeerViolation."""
        try:
            return await self.resolver.model(reference, hints=hints, retracted=True)
        except NotFound:
            return await self.resolver.dataset(reference, hints=hints, retracted=True)

    async def index(self, reference: str, *, hints: Sequence[PeerId] = ()) -> Signed[VersionIndex]:
        """All versions under the name that a reference bears. Raises InvalidSpec, NotFound, PeerViolation."""
        parsed = parse_reference(reference)
        if isinstance(parsed, ModelName):
            return (await self.resolver.index(self.resolver.author(parsed), parsed.name, hints=hints))[0]
        opened = await self.resolver.model(reference, hints=hints)
        return (await self.resolver.index(opened.signed.signer, opened.record.name, hints=hints))[0]

    def equivocation(self, author: PeerId, name: str) -> str:
        """What is wrong with a name whose author signed two heads of one number; empty when nothing is known."""
        for proof in self._directory.equivocations:
            if (proof.author, proof.name) == (author, name):
                return f"{short(author)} signed two lists of versions as number {proof.number}"
        return ""

    def uses(self, root: bytes) -> bool:
        """Whether a model or dataset that is kept here has this content. Reads the disk."""
        return any(root in roots_of(one.opened) for one in self._kept())

    def announced(self) -> tuple[Signed[ModelAnnouncement], ...]:
        """What the swarm has told of models and datasets, the newest of each author and name."""
        return self.resolver.announced()

    # --- fetching ----------------------------------------------------------------------------------------------

    async def pull(self, reference: str, *, hints: Sequence[PeerId] = ()) -> tuple[Held, Path]:
        """Resolve, fetch the weights, provide them to others. Returns the file of weights too, decrypted if need be.

        Raises as `resolve`, and Denied when the model is encrypted and we are no reader of it, QuotaExceeded,
        ProtocolViolation when the weights are not those of the author's own architecture.
        """
        opened = await self.resolve(reference, hints=hints)
        path = await self._weights(opened, hints)
        await self._files(opened, hints)
        self._take(opened)
        return self.held(opened), path

    async def pull_layers(self, reference: str, layers: str, *, hints: Sequence[PeerId] = ()) -> tuple[Held, Path]:
        """The same for some layers alone (`0:6`): a sparse file in which the tensors of those layers are.

        Raises InvalidSpec for layers the architecture has not got, and for an encrypted model.
        """
        opened = await self.resolve(reference, hints=hints)
        if opened.record.sealed:
            raise InvalidSpec("layers", "an encrypted model is fetched whole: its layers cannot be told apart")
        names = tensors_of_layers(opened.architecture, layers)

        def select(manifest: Manifest) -> tuple[int, ...]:
            return pieces_of(manifest, names)

        path = await self._fetcher.content(
            Digest(opened.record.weights), hints=self._hints(opened, hints), select=select, name=name_of(opened)
        )
        self._take(opened)
        return self.held(opened), path

    async def pull_dataset(self, reference: str, *, hints: Sequence[PeerId] = ()) -> tuple[HeldDataset, Path]:
        """Resolve and fetch a dataset. What its author claims of it is not looked into here."""
        opened = await self.resolver.dataset(reference, hints=hints)
        path = await self._fetcher.content(
            Digest(opened.record.content), hints=self._hints(opened, hints), name=name_of(opened)
        )
        self._take(opened)
        return self.held_dataset(opened), path

    async def sound(
        self,
        opened: OpenedManifest,
        *,
        hints: Sequence[PeerId] = (),
        on_fetched: Callable[[], None] = lambda: None,
    ) -> Path:
        """The weights for loading, kept from then on: every byte hashed again, and what was damaged fetched again.

        on_fetched: they are here, and are about to be hashed. Raises as `pull`, and IntegrityError when the disk
        damages them once more.
        """
        for _ in range(2):
            path = await self._weights(opened, hints)
            on_fetched()
            checked = await trio.to_thread.run_sync(lambda: self._store.verify(opened.record.weights, repair=True))
            if not checked.damaged:
                await self._files(opened, hints)
                self._take(opened)
                return path
        raise IntegrityError(f"{name_of(opened)}: this disk damages its weights as fast as they are fetched")

    async def sound_part(self, opened: OpenedManifest, names: Collection[str], *, hints: Sequence[PeerId] = ()) -> Path:
        """As `sound`, of some tensors alone: a file of full length in which those lie, and the rest may be holes.

        Raises InvalidSpec for an encrypted model, and for a content that is not cut at its tensors.
        """
        if opened.record.sealed:
            raise InvalidSpec("layers", "an encrypted model is fetched whole: its layers cannot be told apart")
        root, found = Digest(opened.record.weights), self._hints(opened, hints)

        def select(manifest: Manifest) -> tuple[int, ...]:
            return pieces_of(manifest, names)

        for _ in range(2):
            path = await self._fetcher.content(root, hints=found, select=select, name=name_of(opened))
            checked = await trio.to_thread.run_sync(lambda: self._store.verify(root, repair=True))
            if not checked.damaged:
                self._take(opened)
                return path
        raise IntegrityError(f"{name_of(opened)}: this disk damages its weights as fast as they are fetched")

    async def file(self, opened: OpenedManifest, name: str, *, hints: Sequence[PeerId] = ()) -> Path | None:
        """A file beside the weights for reading, decrypted if need be, every byte hashed again as `sound` does.

        None when the model has none of that name. Raises as `sound`.
        """
        one = opened.record.file(name)
        if one is None:
            return None
        for _ in range(2):
            content = await self._file(opened, one, hints)
            checked = await trio.to_thread.run_sync(lambda: self._store.verify(one.root, repair=True))
            if not checked.damaged:
                return await trio.to_thread.run_sync(self.checks.file, opened, one, content)
        raise IntegrityError(f"{name_of(opened)}: this disk damages its {name} as fast as it is fetched")

    @contextmanager
    def hold(self, opened: Opened) -> Iterator[None]:
        """Its contents are in use: neither evicted nor removed."""
        with ExitStack() as stack:
            for root in roots_of(opened):
                stack.enter_context(self._store.hold(root))
            yield

    def fetched(self, opened: Opened) -> tuple[int, int] | None:
        """(bytes here, bytes wanted) of a content on its way here; None when it is on no way, or nothing is known."""
        root = root_of(opened)
        told = next((one.progress for one in self._fetcher.transfers() if one.root == root), None)
        return None if told is None or not told.wanted_bytes else (told.kept_bytes, told.wanted_bytes)

    def announced_as(self, opened: OpenedManifest) -> Digest | None:
        """The newest manifest that its author told of under its name; None when nothing was told."""
        for signed in self.announced():
            if (signed.signer, signed.record.name) == (opened.signed.signer, opened.record.name):
                return Digest(signed.record.manifest)
        return None

    async def replicate(self, announcement: Signed[ModelAnnouncement]) -> None:
        """Keep a copy for the swarm: content, manifest and the author's index, none of them opened by us."""
        told, author = announcement.record, announcement.signer
        await self._fetcher.block(Digest(told.manifest), hints=[author])
        await self._fetcher.content(Digest(told.root), hints=[author], name=f"{told.nickname or author}/{told.name}")
        opened = await trio.to_thread.run_sync(self.shelf.model, Digest(told.manifest))
        if opened is not None:
            for one in opened.record.files:
                await self._file(opened, one, [author])
        await self.uphold(announcement)

    async def uphold(self, announcement: Signed[ModelAnnouncement]) -> None:
        """Keep the name of a copy resolvable: its manifest and index here to be fetched, its head in the DHT."""
        author, name = announcement.signer, announcement.record.name
        self._fetcher.announce(Digest(announcement.record.manifest))
        with suppress(CellulerError):
            index, _ = await self.resolver.index(author, name)
            self._fetcher.announce(digest_of(index.raw))
            self._directory.keep_head(author, name)
            await self._keep_papers(announcement, index.record)

    async def _keep_papers(self, announcement: Signed[ModelAnnouncement], index: VersionIndex) -> None:
        """The card and the log, so that they outlive their author too."""
        author = announcement.signer
        opened = await trio.to_thread.run_sync(self.shelf.either, Digest(announcement.record.manifest))
        hints = [author, *await self._fetcher.providers(Digest(announcement.record.root))]
        if opened is not None and opened.record.card is not None:
            await self._fetcher.block(Digest(opened.record.card), hints=hints)
        at, kept = index.log, 0
        while at is not None and kept < MAX_LOG_ENTRIES:
            at = open_entry(await self._fetcher.block(Digest(at), hints=hints), signer=author).record.previous
            kept += 1

    async def providers(self, opened: Opened) -> tuple[PeerId, ...]:
        """Who serves the content, ourselves included."""
        root = root_of(opened)
        found = await self._directory.providers(root)
        stat = self.shelf.stat(root)
        own = (self._own,) if stat is not None and stat.complete else ()
        return tuple(dict.fromkeys((*own, *found)))

    # --- what is kept ------------------------------------------------------------------------------------------

    def local(self) -> tuple[Held, ...]:
        """Models whose manifests we keep, in the order they came."""
        return self.shelf.models()

    def held(self, opened: OpenedManifest) -> Held:
        """Whether its weights are here."""
        return Held(opened, self.shelf.stat(opened.record.weights))

    def held_dataset(self, opened: OpenedDataset) -> HeldDataset:
        return HeldDataset(opened, self.shelf.stat(opened.record.content))

    def remove(self, opened: Opened) -> tuple[ContentStat, ...]:
        """Forget it here: manifest, plaintext, and the contents that nothing else here has. Synchronous.

        Returns the contents that went. Raises NotFound when it is not kept here, LocalError while it is in use. Others
        keep theirs.
        """
        if not self.shelf.keeps(opened):
            raise NotFound(f"{name_of(opened)} here", hint="celluler model ls --local")
        shared = {root for one in self._kept() if one.opened.digest != opened.digest for root in roots_of(one.opened)}
        stats = (self.shelf.stat(root) for root in dict.fromkeys(roots_of(opened)) if root not in shared)
        gone = tuple(stat for stat in stats if stat is not None)
        for stat in gone:
            self._store.remove(stat.root)
            self.refused.add(stat.root)
        self.vault.forget(opened.digest)
        self.shelf.forget(opened)
        return gone

    # --- inside ------------------------------------------------------------------------------------------------

    def _kept(self) -> tuple[Held | HeldDataset, ...]:
        return (*self.shelf.models(), *self.shelf.datasets())

    async def _weights(self, opened: OpenedManifest, hints: Sequence[PeerId]) -> Path:
        root = Digest(opened.record.weights)
        if opened.record.sealed:
            self.vault.check_reader(opened)  # before anything is fetched
        content = await self._fetcher.content(root, hints=self._hints(opened, hints), name=name_of(opened))
        try:
            return await trio.to_thread.run_sync(self.checks.weights, opened, content)
        except InvalidSpec as error:
            raise ProtocolViolation(f"model {opened.record.name}: {error}", peer=opened.signed.signer) from error

    async def _files(self, opened: OpenedManifest, hints: Sequence[PeerId]) -> None:
        """What belongs to a model beside its weights, as its author signed it."""
        for one in opened.record.files:
            content = await self._file(opened, one, hints)
            await trio.to_thread.run_sync(self.checks.file, opened, one, content)

    async def _file(self, opened: OpenedManifest, one: FileBeside, hints: Sequence[PeerId]) -> Path:
        """The content of a file as it is stored. Raises ProtocolViolation for one that is larger than it may be."""

        told, root = f"{name_of(opened)} ({one.name})", Digest(one.root)
        fitting = partial(small_enough, one.name, sealed=one.plain is not None)
        try:
            await self._fetcher.content(root, hints=self._hints(opened, hints), select=fitting, name=told)
        except InvalidSpec as error:
            raise ProtocolViolation(f"model {opened.record.name}: {error}", peer=opened.signed.signer) from error
        return await self._fetcher.content(root, hints=self._hints(opened, hints), name=told)

    def _take(self, opened: Opened) -> None:
        self.shelf.keep(opened)
        self._fetcher.announce(opened.digest)

    def _hints(self, opened: Opened, hints: Sequence[PeerId]) -> list[PeerId]:
        return [*hints, *self.resolver.announcers(opened.digest)]


def root_of(opened: Opened) -> Digest:
    """The content of a model or dataset."""
    record = opened.record
    return Digest(record.weights if isinstance(record, ModelManifest) else record.content)


def small_enough(name: str, manifest: Manifest, *, sealed: bool = False) -> Collection[int]:
    """Every piece of a file beside weights. Raises InvalidSpec, before any is asked for, when it is too large."""
    check_size(name, plain_bytes(manifest.total_len) if sealed else manifest.total_len)
    return range(sum(1 for _ in manifest.lengths()))


def roots_of(opened: Opened) -> tuple[Digest, ...]:
    """Every content that belongs to a model or dataset, the first as `root_of`."""
    record = opened.record
    beside = record.files if isinstance(record, ModelManifest) else ()
    return (root_of(opened), *(Digest(one.root) for one in beside))
