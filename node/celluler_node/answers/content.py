"""Answers about contents: what is here, what moves, what may go."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path

import trio

from celluler.content.digest import Codec, Digest, cid_of, parse_cid
from celluler.content.manifest import Manifest
from celluler.content.store import ContentStat, Verified
from celluler.errors import BlockAbsent, CellulerError, NotFound, QuotaExceeded
from celluler.identity import PeerId
from celluler.models.names import ModelName, parse_reference
from celluler.quantities import format_bytes
from celluler.views import Blob, Collected, DamagedContent, StoreCheck, Transfer
from celluler_node.answers.services import Answers
from celluler_node.bounded import bounded
from celluler_node.network_views import blob_view, transfer_view
from celluler_node.repository import roots_of

RESTORE_S = 600.0
PROVIDERS_S = 5.0


class ContentAnswers(Answers):
    """The part of `Operations` about contents by CID."""

    async def add_blob(self, path: Path, kind: str, *, move: bool = False, announce: bool = True) -> Blob:
        root = await trio.to_thread.run_sync(partial(self._core.store.add, path, kind, move=move))
        if announce:
            self._announce(root)
        return await self._blob(root)

    async def read_blob(self, cid: str, *, at_most: int | None = None) -> Path:
        root = parse_cid(cid)
        if at_most is not None:
            await self._core.fetcher.content(root, select=partial(all_within, at_most))
        return await self._core.fetcher.content(root)

    async def blob_stat(self, cid: str) -> Blob:
        root = parse_cid(cid)
        try:
            stat = await trio.to_thread.run_sync(self._core.store.stat, root)
        except BlockAbsent:
            raise NotFound(f"content {cid}", hint=f"celluler blob get {cid}") from None
        providers: tuple[PeerId, ...] = ()
        try:
            with bounded(PROVIDERS_S, "asking who provides it"):
                providers = await self._core.directory.providers(root)
        except CellulerError:  # nobody to ask
            pass
        if stat.complete and self._of.membership is not None:
            providers = (self._core.identity.peer_id, *providers)
        return blob_view(stat, received=self._core.fetcher.moved(root), providers=providers)

    async def transfers(self) -> tuple[Transfer, ...]:
        return tuple(transfer_view(one) for one in self._core.fetcher.transfers())

    async def pin(self, ref: str) -> Blob:
        roots = await self._roots(ref)
        for root in roots:
            await trio.to_thread.run_sync(self._core.store.pin, root)
        return await self._blob(roots[0])

    async def unpin(self, ref: str) -> Blob:
        roots = await self._roots(ref)
        for root in roots:
            await trio.to_thread.run_sync(self._core.store.unpin, root)
        return await self._blob(roots[0])

    async def collect(self, *, target_bytes: int | None = None, dry_run: bool = False) -> Collected:
        store, target = self._core.store, target_bytes or 0
        gone = await trio.to_thread.run_sync(lambda: store.collect(target, dry_run=dry_run))
        if not dry_run:
            self._core.fetcher.withdraw(*(stat.root for stat in gone))
        return collected(gone, dry_run)

    async def check_store(self, *, repair: bool = False) -> StoreCheck:
        store, found = self._core.store, []
        for root in await trio.to_thread.run_sync(store.roots):
            try:
                found.append(await trio.to_thread.run_sync(partial(store.verify, root, repair=repair)))
            except NotFound:  # evicted meanwhile
                continue
        blocks = await trio.to_thread.run_sync(lambda: store.verify_blocks(repair=repair))
        damaged = [await self._damage(one, repair) for one in found if one.damaged]
        return StoreCheck(
            contents=len(found),
            checked_bytes=sum(one.checked_bytes for one in found) + blocks.checked_bytes,
            damaged=tuple(damaged),
            damaged_blocks=len(blocks.damaged),
            repaired=repair,
        )

    async def _damage(self, found: Verified, repair: bool) -> DamagedContent:
        """What is damaged in one content; with `repair`, fetched anew where somebody has it."""
        stat = await trio.to_thread.run_sync(self._core.store.stat, found.root)
        restored = False
        if repair:
            try:
                with bounded(RESTORE_S, f"fetching {cid_of(found.root, Codec.MANIFEST)} anew"):
                    await self._core.fetcher.content(found.root)
                restored = True
            except CellulerError:  # nobody has it now: what is left of it stays
                pass
        return DamagedContent(
            cid=cid_of(found.root, Codec.MANIFEST),
            kind=stat.kind,
            pieces=len(found.damaged),
            damaged_bytes=sum(piece.length for piece in found.damaged),
            restored=restored,
        )

    async def _blob(self, root: Digest) -> Blob:
        stat = await trio.to_thread.run_sync(self._core.store.stat, root)
        return blob_view(stat, received=self._core.fetcher.moved(root))

    async def _roots(self, ref: str) -> tuple[Digest, ...]:
        """The content that a CID, a model or a dataset means, if it was begun here, and behind it those of a model's
        files that were. Raises InvalidSpec, NotFound."""
        parsed = parse_reference(ref)
        if isinstance(parsed, ModelName):
            roots = roots_of(await self._core.repository.either(ref, hints=self._hints()))
        else:
            found = self._core.repository.shelf.either(parsed)
            roots = (parsed,) if found is None else roots_of(found)
        stats = [await trio.to_thread.run_sync(self._core.repository.shelf.stat, root) for root in roots]
        if stats[0] is None:
            raise NotFound(f"{ref} here", hint=f"celluler model pull {ref}")
        return tuple(stat.root for stat in stats if stat is not None)


def all_within(limit: int, manifest: Manifest) -> Collection[int]:
    """Every piece. Raises QuotaExceeded, before any of them is asked for, when they are more bytes than wanted."""
    lengths = tuple(manifest.lengths())
    if sum(lengths) > limit:
        size = format_bytes(sum(lengths))
        raise QuotaExceeded(f"a content of {size}, and no more than {format_bytes(limit)} were asked for")
    return range(len(lengths))


def collected(gone: tuple[ContentStat, ...], dry_run: bool) -> Collected:
    return Collected(sum(stat.wanted_bytes for stat in gone), tuple(blob_view(stat) for stat in gone), dry_run)
