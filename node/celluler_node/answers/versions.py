"""Answers about what became of a name: versions, changes of them, differences, history, origin."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import trio

from celluler.content.digest import Codec, Digest, cid_of
from celluler.content.manifest import Layout, parse_leaf, parse_manifest
from celluler.errors import CellulerError, NotFound
from celluler.identity import PeerId
from celluler.models.compare import diff
from celluler.models.index import VersionIndex
from celluler.models.manifest import OpenedManifest
from celluler.views import Collected, Lineage, LineageNode, ModelDiff, ModelLog, Verification, Versions
from celluler_node.answers.content import collected
from celluler_node.answers.services import Answers
from celluler_node.bounded import bounded
from celluler_node.model_views import diff_view, log_view, versions_view
from celluler_node.repository.held import name_of

LAYOUT_S = 20.0
ANCESTOR_S = 10.0
MAX_ANCESTORS = 256


class VersionAnswers(Answers):
    """The part of `Operations` about the history of models."""

    # --- looking -----------------------------------------------------------------------------------------------

    async def versions(self, ref: str) -> Versions:
        index = await self._core.repository.index(ref, hints=self._hints())
        return self._versions(index.signer, index.record)

    async def verify_model(self, ref: str) -> Verification:
        opened = await self._core.repository.resolve(ref, hints=self._hints(), retracted=True)
        if self._core.repository.held(opened).stat is None:
            raise NotFound(f"{ref} here", hint=f"celluler model pull {ref}")
        checks = await self._core.repository.checks.of(opened)
        cid = cid_of(opened.digest, Codec.MANIFEST)
        return Verification(name_of(opened), cid, checks, all(check.ok or check.skipped for check in checks))

    async def model_log(self, ref: str) -> ModelLog:
        opened = await self._core.repository.resolve(ref, hints=self._hints(), retracted=True)
        entries = await self._core.repository.checks.log(opened)
        return log_view(opened, entries)

    async def diff_models(self, old: str, new: str) -> ModelDiff:
        repository = self._core.repository
        one = await repository.resolve(old, hints=self._hints(), retracted=True)
        other = await repository.resolve(new, hints=self._hints(), retracted=True)
        layouts = [await self._layout(opened) for opened in (one, other)]
        files = [await trio.to_thread.run_sync(self._file, opened) for opened in (one, other)]
        found = await trio.to_thread.run_sync(
            lambda: diff(
                one.record,
                other.record,
                content_old=layouts[0],
                content_new=layouts[1],
                file_old=files[0],
                file_new=files[1],
            )
        )
        return diff_view(name_of(one), name_of(other), found)

    async def lineage(self, ref: str) -> Lineage:
        opened = await self._core.repository.resolve(ref, hints=self._hints(), retracted=True)
        nodes: dict[str, LineageNode] = {}
        waiting: deque[OpenedManifest] = deque([opened])
        truncated = False
        while waiting and not truncated:
            one = waiting.popleft()
            for node in self._origin(one):
                nodes.setdefault(node.cid, node)
            for parent in one.record.parents:
                cid = cid_of(Digest(parent), Codec.MANIFEST)
                if cid in nodes and nodes[cid].reference:
                    continue
                known = await self._ancestor(cid)
                nodes[cid] = LineageNode(cid, "model") if known is None else self._origin(known)[0]
                waiting.extend([known] if known is not None else [])
            truncated = len(nodes) >= MAX_ANCESTORS
        return Lineage(cid_of(opened.digest, Codec.MANIFEST), tuple(nodes.values()), truncated)

    # --- changing ----------------------------------------------------------------------------------------------

    async def alias_model(self, ref: str, alias: str) -> Versions:
        name, version = await self._own(ref)
        await self._core.repository.publisher.alias(name, alias, version)
        return await self._own_versions(name)

    async def drop_alias(self, ref: str) -> Versions:
        parsed = self._own_name(ref)
        if parsed.alias is None:
            raise NotFound(f"{ref}: an alias is written author/name@alias")
        await self._core.repository.publisher.drop_alias(parsed.name, parsed.alias)
        return await self._own_versions(parsed.name)

    async def rollback_model(self, ref: str) -> Versions:
        name, version = await self._own(ref)
        await self._core.repository.publisher.roll_back(name, version)
        return await self._own_versions(name)

    async def retract_model(self, ref: str, reason: str) -> Versions:
        name, version = await self._own(ref)
        await self._core.repository.publisher.retract(name, version, reason)
        return await self._own_versions(name)

    async def remove_model(self, ref: str) -> Collected:
        opened = await self._core.repository.resolve(ref, hints=self._hints(), retracted=True)
        gone = await trio.to_thread.run_sync(self._core.repository.remove, opened)
        if gone:
            self._core.fetcher.withdraw(*(stat.root for stat in gone))
        return collected(gone, dry_run=False)

    # --- inside ------------------------------------------------------------------------------------------------

    async def _own(self, ref: str) -> tuple[str, str]:
        """Name and version of a model of ours, retracted or not."""
        name = self._own_name(ref)
        opened = await self._core.repository.resolve(ref, retracted=True)
        return name.name, opened.record.version

    async def _own_versions(self, name: str) -> Versions:
        """Of a name that was just changed."""
        if self._of.server is not None:
            self._of.server.following.look_soon()
        return await self.versions(f"{self._core.identity.peer_id}/{name}")

    def _versions(self, author: PeerId, index: VersionIndex) -> Versions:
        repository = self._core.repository
        known = [repository.shelf.model(Digest(entry.manifest)) for entry in index.entries]
        created_s = {one.digest: float(one.record.created_s) for one in known if one is not None}
        nickname = next((one.record.nickname for one in reversed(known) if one is not None), "")
        return versions_view(author, nickname, index, created_s, repository.equivocation(author, index.name))

    async def _layout(self, opened: OpenedManifest) -> Layout | None:
        """Which chunks its content has; None when nobody can be asked."""
        root, fetcher = Digest(opened.record.weights), self._core.fetcher
        hints = (*self._hints(), *self._core.repository.resolver.announcers(opened.digest))
        try:
            with bounded(LAYOUT_S, f"fetching the layout of {name_of(opened)}"):
                manifest = parse_manifest(await fetcher.block(root, hints=hints))
                leaves = [await fetcher.block(Digest(leaf), hints=hints) for leaf in manifest.leaves]
        except CellulerError:
            return None
        return Layout(manifest, [parse_leaf(leaf, manifest, at) for at, leaf in enumerate(leaves)])

    def _file(self, opened: OpenedManifest) -> Path | None:
        """Its weights as they can be read, if they are all here."""
        if not self._core.repository.held(opened).local:
            return None
        try:
            return self._core.repository.checks.weights(opened, self._core.store.path(opened.record.weights))
        except CellulerError:  # encrypted, and not for us
            return None

    async def _ancestor(self, cid: str) -> OpenedManifest | None:
        try:
            with bounded(ANCESTOR_S, f"fetching {cid}"):
                return await self._core.repository.resolve(cid, hints=self._hints())
        except CellulerError:
            return None

    def _origin(self, opened: OpenedManifest) -> list[LineageNode]:
        """A model, and beside it what it says it was trained on and by."""
        record = opened.record
        parents = [cid_of(Digest(parent), Codec.MANIFEST) for parent in record.parents]
        nodes = []
        if record.dataset is not None:
            known = self._core.repository.shelf.dataset_of(record.dataset)
            cid = cid_of(Digest(record.dataset), Codec.MANIFEST)
            nodes.append(LineageNode(cid, "dataset", "" if known is None else name_of(known)))
        if record.job is not None:
            nodes.append(LineageNode(cid_of(Digest(record.job)), "job"))
        own = cid_of(opened.digest, Codec.MANIFEST)
        return [LineageNode(own, "model", name_of(opened), (*parents, *(node.cid for node in nodes))), *nodes]
