"""From what a person typed to a manifest whose every step was verified.

A nickname stands for a key only while the swarm knows exactly one key that bears it. What cannot be asked of the swarm
is answered from what is known here: the newest head ever seen and the blocks that are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from celluler.content.digest import Digest
from celluler.datasets.manifest import OpenedDataset, open_dataset
from celluler.errors import InvalidSpec, NotFound, ProtocolViolation
from celluler.identity import PeerId, Signed, short
from celluler.models.index import VersionIndex, check_succeeds, open_index
from celluler.models.manifest import OpenedManifest, open_manifest
from celluler.models.names import ModelName, parse_reference
from celluler.models.version import parse_version
from celluler_node.fetching import Fetcher
from celluler_node.repository.shelf import Shelf
from celluler_protocols.directory import Directory
from celluler_protocols.gossip import Gossip, ModelAnnouncement

MODEL, DATASET = "model", "dataset"
MAX_SEEN = 256


class Resolver:
    """One node's way from names to manifests."""

    def __init__(
        self, own: PeerId, nickname: str, shelf: Shelf, fetcher: Fetcher, directory: Directory, gossip: Gossip
    ) -> None:
        self._own, self._nickname, self._shelf = own, nickname, shelf
        self._fetcher, self._directory, self._gossip = fetcher, directory, gossip
        self._seen: OrderedDict[tuple[PeerId, str], Signed[VersionIndex]] = OrderedDict()

    async def model(self, reference: str, *, hints: Sequence[PeerId] = (), retracted: bool = False) -> OpenedManifest:
        """Raises InvalidSpec, NotFound, PeerViolation.

        A version that its author took back is Retracted, unless `retracted` asks for it or it is named by CID.
        """
        author, name, digest, hints = await self._place(reference, MODEL, hints, retracted)
        opened = open_manifest(await self._fetcher.block(digest, hints=hints), signer=author)
        _check(opened, name, author)
        return opened

    async def dataset(self, reference: str, *, hints: Sequence[PeerId] = (), retracted: bool = False) -> OpenedDataset:
        """As `model`."""
        author, name, digest, hints = await self._place(reference, DATASET, hints, retracted)
        opened = open_dataset(await self._fetcher.block(digest, hints=hints), signer=author)
        _check(opened, name, author)
        return opened

    async def index(
        self, author: PeerId, name: str, *, hints: Sequence[PeerId] = ()
    ) -> tuple[Signed[VersionIndex], tuple[PeerId, ...]]:
        """The author's newest index of a name, and who may hold what it lists. Raises NotFound, PeerViolation."""
        try:
            head = await self._directory.resolve_head(author, name)
        except NotFound:
            raise NotFound(f"{name} by {short(author)}", hint="celluler model search") from None
        holders = tuple({signed.signer for signed in self.announced() if signed.record.name == name})
        index = await self.open_index(Digest(head.record.index), author, hints=[*hints, author, *holders])
        if index.record.name != name or index.record.number != head.record.number:
            raise ProtocolViolation(f"the head of {name} points at another index", peer=author)
        return self._succeeds(author, index), holders

    def _succeeds(self, author: PeerId, index: Signed[VersionIndex]) -> Signed[VersionIndex]:
        """What this author once published stays published. Raises ProtocolViolation when it does not.

        Of two that contradict each other under one number the first one we saw goes on being the one that counts here:
        whether an author equivocates is told, and changes nothing that was published.
        """
        key = (author, index.record.name)
        before = self._seen.get(key)
        if before is not None and before.record.number == index.record.number:
            index = before
        elif before is not None:
            check_succeeds(before.record, index.record)
        self._seen[key] = index
        self._seen.move_to_end(key)
        if len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)
        return index

    def seen(self, author: PeerId, name: str) -> VersionIndex | None:
        """The newest index of a name that was looked at since the start; None when none was, or long ago."""
        signed = self._seen.get((author, name))
        return None if signed is None else signed.record

    async def open_index(self, digest: Digest, author: PeerId, *, hints: Sequence[PeerId] = ()) -> Signed[VersionIndex]:
        return open_index(await self._fetcher.block(digest, hints=hints), signer=author)

    def announced(self) -> tuple[Signed[ModelAnnouncement], ...]:
        """What the swarm has told of models and datasets, the newest of each author and name."""
        return tuple(
            Signed(signed.signer, signed.record, signed.raw)
            for signed in self._gossip.catalogue()
            if isinstance(signed.record, ModelAnnouncement)
        )

    def known(self, name: ModelName) -> OpenedManifest | None:
        """The model that a name means by the manifests that are here, the latest version of several: for when its index
        cannot be had. Whether it was taken back since, and what an alias means, is not known then."""
        if name.alias is not None:
            return None
        author = self.author(name)
        told = (self._shelf.model(Digest(signed.record.manifest)) for signed in self.announced())
        here = [*(held.opened for held in self._shelf.models()), *(opened for opened in told if opened is not None)]
        meant = [
            opened
            for opened in here
            if (opened.signed.signer, opened.record.name) == (author, name.name)
            and (name.version is None or opened.record.version == str(name.version))
        ]
        return max(meant, key=lambda opened: parse_version(opened.record.version), default=None)

    def author(self, name: ModelName) -> PeerId:
        """The key that a name's author means. Raises InvalidSpec when several may be meant, NotFound when none."""
        if name.author_is_peer:
            return PeerId(name.author)
        if name.author == self._nickname:
            return self._own
        known = [(signed.signer, signed.record.nickname) for signed in self.announced()]
        known += [(held.opened.signed.signer, held.opened.record.nickname) for held in self._shelf.models()]
        known += [(held.opened.signed.signer, held.opened.record.nickname) for held in self._shelf.datasets()]
        keys = sorted({signer for signer, nickname in known if nickname == name.author})
        if len(keys) > 1:
            raise InvalidSpec(
                "model", f"{len(keys)} peers call themselves {name.author!r}", hint=f"say which: {keys[0]}/{name.name}"
            )
        if not keys:
            raise NotFound(f"{name}: nobody called {name.author!r} has announced anything", hint="celluler model ls")
        return keys[0]

    def announcers(self, manifest: Digest) -> tuple[PeerId, ...]:
        return tuple(signed.signer for signed in self.announced() if signed.record.manifest == manifest)

    async def _place(
        self, reference: str, kind: str, hints: Sequence[PeerId], retracted: bool
    ) -> tuple[PeerId | None, tuple[str, str] | None, Digest, Sequence[PeerId]]:
        """(author, (name, version), manifest, whom to ask); author and name are None for a CID, which says it all."""
        parsed = parse_reference(reference)
        if not isinstance(parsed, ModelName):
            return None, None, parsed, [*hints, *self.announcers(parsed)]
        author = self.author(parsed)
        index, holders = await self.index(author, parsed.name, hints=hints)
        if index.record.kind != kind:
            raise NotFound(f"{kind} {reference}: it is a {index.record.kind}", hint=_other(kind, reference))
        version = None if parsed.version is None else str(parsed.version)
        if retracted and version is not None:
            entry = index.record.entry(version)
        else:
            entry = index.record.find(version, parsed.alias)
        return author, (parsed.name, entry.version), Digest(entry.manifest), [*hints, author, *holders]


def _check(opened: OpenedManifest | OpenedDataset, name: tuple[str, str] | None, author: PeerId | None) -> None:
    if name is not None and (opened.record.name, opened.record.version) != name:
        raise ProtocolViolation(f"the index of {name[0]} lists a manifest of something else", peer=author)


def _other(kind: str, reference: str) -> str:
    return f"celluler {'data' if kind == MODEL else 'model'} show {reference}"
