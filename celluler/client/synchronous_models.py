"""Models and datasets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Unpack

from celluler import views
from celluler.client import calls, calls_models, calls_serving
from celluler.client.calls_models import DatasetFields, ModelFields
from celluler.client.transport import Link


class Models:
    """Models by `author/name:version`, `author/name@alias`, `author/name` or CID."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def add(
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
            weights = self._link.send(calls.add_blob(weights, "model", announce=announce)).cid
        for one, file in files.items():
            if isinstance(file, os.PathLike):
                files[one] = self._link.send(calls.add_blob(file, "blob", announce=announce)).cid
        said = {**said, "files": files}
        return self._link.send(calls_models.add_model(name, spec, weights, said))

    def ls(self, query: views.ModelQuery | str | None = None) -> tuple[views.Model, ...]:
        """Models this node knows of; with a query, or words to look for, those that match."""
        return self._link.send(calls_models.list_models(query))

    def search(self, query: views.ModelQuery | str) -> tuple[views.Model, ...]:
        """As `ls`, over all that the swarm announced, and asking for records that say more."""
        return self._link.send(calls_models.search_models(query))

    def show(self, ref: str) -> views.Model:
        return self._link.send(calls_models.show_model(ref))

    def card(self, ref: str) -> str:
        """What its author wrote about it, in Markdown. Raises NotFound when that is nothing."""
        return self._link.send(calls_models.model_card(ref))

    def pull(self, ref: str, *, layers: str | None = None) -> views.Model:
        """Fetch and verify. layers: `0:6`, `3` or `2:`, for only the tensors of these layers."""
        return self._link.send(calls_models.pull_model(ref, layers))

    def verify(self, ref: str) -> views.Verification:
        """Check every signature and every byte that is here."""
        return self._link.send(calls_models.verify_model(ref))

    def rm(self, ref: str) -> views.Collected:
        """Forget a version here; others keep theirs."""
        return self._link.send(calls_models.remove_model(ref))

    def load(self, ref: str) -> views.LoadedModel:
        """Have it ready in a worker of the node, before anybody asks for it."""
        return self._link.send(calls_serving.load_model(ref))

    def unload(self, ref: str) -> views.Serving:
        """Have it end what it was asked, and free its memory."""
        return self._link.send(calls_serving.unload_model(ref))

    def versions(self, ref: str) -> views.Versions:
        """All versions under the name, newest first."""
        return self._link.send(calls_models.versions(ref))

    def diff(self, old: str, new: str) -> views.ModelDiff:
        return self._link.send(calls_models.diff_models(old, new))

    def alias(self, ref: str, alias: str) -> views.Versions:
        """Let `author/name@alias` mean this version."""
        return self._link.send(calls_models.alias_model(ref, alias))

    def drop_alias(self, ref: str) -> views.Versions:
        """ref: `author/name@alias`."""
        return self._link.send(calls_models.drop_alias(ref))

    def rollback(self, ref: str) -> views.Versions:
        """Let the name alone mean this version."""
        return self._link.send(calls_models.rollback_model(ref))

    def retract(self, ref: str, reason: str) -> views.Versions:
        """Sign that a version should not be used. It cannot be undone."""
        return self._link.send(calls_models.retract_model(ref, reason))

    def log(self, ref: str) -> views.ModelLog:
        """What its author did to the name, newest first."""
        return self._link.send(calls_models.model_log(ref))

    def lineage(self, ref: str) -> views.Lineage:
        """What it was made from."""
        return self._link.send(calls_models.lineage(ref))


class Datasets:
    """Datasets, named as models are."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def add(self, name: str, content: str | os.PathLike[str], **said: Unpack[DatasetFields]) -> views.Dataset:
        """Publish. content: a CID, or the Path of a safetensors, Parquet or Arrow file. said: `label="digit"` and so
        on, see `DatasetFields`."""
        if isinstance(content, os.PathLike):
            content = self._link.send(calls.add_blob(content, "dataset")).cid
        return self._link.send(calls_models.add_dataset(name, content, said))

    def ls(self) -> tuple[views.Dataset, ...]:
        return self._link.send(calls_models.list_datasets())

    def show(self, ref: str) -> views.Dataset:
        return self._link.send(calls_models.show_dataset(ref))

    def pull(self, ref: str) -> views.Dataset:
        """Fetch and verify."""
        return self._link.send(calls_models.pull_dataset(ref))
