"""Models and datasets, asked for asynchronously."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Unpack

from celluler import views
from celluler.client import calls, calls_models, calls_serving
from celluler.client.calls_models import DatasetFields, ModelFields
from celluler.client.transport import AsyncLink


class AsyncModels:
    """Models by `author/name:version`, `author/name@alias`, `author/name` or CID."""

    def __init__(self, link: AsyncLink) -> None:
        self._link = link

    async def add(
        self,
        name: str,
        spec: Mapping[str, Any] | str | os.PathLike[str],
        *,
        weights: str | os.PathLike[str] | None = None,
        **said: Unpack[ModelFields],
    ) -> views.Model:
        """Publish. spec: a mapping, JSON text or its file; or a folder that `celluler.publish` or `celluler
        model convert` wrote, with all that it holds.
        weights: a CID, a Path of a safetensors file, or None for the initial ones of `seed`. said: `licence="MIT"`,
        `aliases=["stable"]` and so on, see `ModelFields`."""
        said, files = calls_models.beside(spec, said)
        spec, weights = calls_models.model_files(spec, weights)
        announce = not said.get("readers")
        if isinstance(weights, os.PathLike):
            weights = (await self._link.send(calls.add_blob(weights, "model", announce=announce))).cid
        for one, file in files.items():
            if isinstance(file, os.PathLike):
                files[one] = (await self._link.send(calls.add_blob(file, "blob", announce=announce))).cid
        said = {**said, "files": files}
        return await self._link.send(calls_models.add_model(name, spec, weights, said))

    async def ls(self, query: views.ModelQuery | str | None = None) -> tuple[views.Model, ...]:
        """Models this node knows of; with a query, or words to look for, those that match."""
        return await self._link.send(calls_models.list_models(query))

    async def search(self, query: views.ModelQuery | str) -> tuple[views.Model, ...]:
        """As `ls`, over all that the swarm announced, and asking for records that say more."""
        return await self._link.send(calls_models.search_models(query))

    async def show(self, ref: str) -> views.Model:
        return await self._link.send(calls_models.show_model(ref))

    async def card(self, ref: str) -> str:
        """What its author wrote about it, in Markdown. Raises NotFound when that is nothing."""
        return await self._link.send(calls_models.model_card(ref))

    async def pull(self, ref: str, *, layers: str | None = None) -> views.Model:
        """Fetch and verify. layers: `0:6`, `3` or `2:`, for only the tensors of these layers."""
        return await self._link.send(calls_models.pull_model(ref, layers))

    async def verify(self, ref: str) -> views.Verification:
        """Check every signature and every byte that is here."""
        return await self._link.send(calls_models.verify_model(ref))

    async def rm(self, ref: str) -> views.Collected:
        """Forget a version here; others keep theirs."""
        return await self._link.send(calls_models.remove_model(ref))

    async def load(self, ref: str) -> views.LoadedModel:
        """Have it ready in a worker of the node, before anybody asks for it."""
        return await self._link.send(calls_serving.load_model(ref))

    async def unload(self, ref: str) -> views.Serving:
        """Have it end what it was asked, and free its memory."""
        return await self._link.send(calls_serving.unload_model(ref))

    async def versions(self, ref: str) -> views.Versions:
        """All versions under the name, newest first."""
        return await self._link.send(calls_models.versions(ref))

    async def diff(self, old: str, new: str) -> views.ModelDiff:
        return await self._link.send(calls_models.diff_models(old, new))

    async def alias(self, ref: str, alias: str) -> views.Versions:
        """Let `author/name@alias` mean this version."""
        return await self._link.send(calls_models.alias_model(ref, alias))

    async def drop_alias(self, ref: str) -> views.Versions:
        """ref: `author/name@alias`."""
        return await self._link.send(calls_models.drop_alias(ref))

    async def rollback(self, ref: str) -> views.Versions:
        """Let the name alone mean this version."""
        return await self._link.send(calls_models.rollback_model(ref))

    async def retract(self, ref: str, reason: str) -> views.Versions:
        """Sign that a version should not be used. It cannot be undone."""
        return await self._link.send(calls_models.retract_model(ref, reason))

    async def log(self, ref: str) -> views.ModelLog:
        """What its author did to the name, newest first."""
        return await self._link.send(calls_models.model_log(ref))

    async def lineage(self, ref: str) -> views.Lineage:
        """What it was made from."""
        return await self._link.send(calls_models.lineage(ref))


class AsyncDatasets:
    """Datasets, named as models are."""

    def __init__(self, link: AsyncLink) -> None:
        self._link = link

    async def add(self, name: str, content: str | os.PathLike[str], **said: Unpack[DatasetFields]) -> views.Dataset:
        """Publish. content: a CID, or the Path of a safetensors, Parquet or Arrow file. said: `label="digit"` and so
        on, see `DatasetFields`."""
        if isinstance(content, os.PathLike):
            content = (await self._link.send(calls.add_blob(content, "dataset"))).cid
        return await self._link.send(calls_models.add_dataset(name, content, said))

    async def ls(self) -> tuple[views.Dataset, ...]:
        return await self._link.send(calls_models.list_datasets())

    async def show(self, ref: str) -> views.Dataset:
        return await self._link.send(calls_models.show_dataset(ref))

    async def pull(self, ref: str) -> views.Dataset:
        """Fetch and verify."""
        return await self._link.send(calls_models.pull_dataset(ref))
