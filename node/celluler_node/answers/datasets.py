"""Answers about datasets."""

from __future__ import annotations

import time

import trio

from celluler.content.digest import Digest, parse_cid
from celluler.datasets.manifest import OpenedDataset, describe_dataset
from celluler.views import Dataset, NewDataset
from celluler_node.answers.services import Answers
from celluler_node.model_views import announced_dataset_view, dataset_view
from celluler_node.repository import HeldDataset
from celluler_node.repository.resolver import DATASET


class DatasetAnswers(Answers):
    """The part of `Operations` about datasets."""

    async def add_dataset(self, dataset: NewDataset) -> Dataset:
        name = self._new_name(dataset.name)
        root = parse_cid(dataset.content)
        path = await self._core.fetcher.content(root, name=dataset.name)
        summary = await self._of.summarise(path, dataset.format, dataset.label)
        await trio.to_thread.run_sync(self._core.store.pin, root)  # what we publish, we keep
        described = describe_dataset(
            name.name,
            str(name.version),
            root,
            path.stat().st_size,
            summary,
            created_s=int(time.time()),
            nickname=self._core.nickname,
            licence=dataset.licence,
            tags=dataset.tags,
            description=dataset.description,
            card=await self._card(dataset.card),
            copies=dataset.copies,
            regions=dataset.regions,
            parents=tuple(parse_cid(parent) for parent in dataset.parents),
        )
        if self._of.membership is None:
            return await self._dataset_view(await self._core.repository.keep_dataset(described))
        return await self._dataset_view(await self._core.repository.publish_dataset(described, aliases=dataset.aliases))

    async def list_datasets(self) -> tuple[Dataset, ...]:
        return await trio.to_thread.run_sync(self._known_datasets)

    async def show_dataset(self, ref: str) -> Dataset:
        repository = self._core.repository
        opened = await repository.resolver.dataset(ref, hints=self._hints(), retracted=True)
        return await self._dataset_view(repository.held_dataset(opened))

    async def pull_dataset(self, ref: str) -> Dataset:
        held, _ = await self._core.repository.pull_dataset(ref, hints=self._hints())
        return await self._dataset_view(held)

    def _known_datasets(self) -> tuple[Dataset, ...]:
        """Kept and announced. Runs in a thread."""
        repository = self._core.repository
        held = {one.opened.digest: dataset_view(one) for one in repository.shelf.datasets()}
        for signed in repository.announced():
            digest = Digest(signed.record.manifest)
            if digest in held or signed.record.kind != DATASET:
                continue
            body = repository.catalogue.body(signed.record)
            known = repository.held_dataset(body) if isinstance(body, OpenedDataset) else None
            held[digest] = announced_dataset_view(signed) if known is None else dataset_view(known)
        return tuple(held.values())

    async def _dataset_view(self, held: HeldDataset) -> Dataset:
        """With columns, aliases and providers, as far as somebody can be asked."""
        providers, index = await self._told_of(held)
        return dataset_view(held, providers=providers, in_full=True, index=index)
