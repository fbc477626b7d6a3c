"""What a training needs besides its members: the model to start from and the data, here and verified."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from celluler.content.digest import Digest
from celluler.identity import PeerId
from celluler.models.manifest import OpenedManifest, open_manifest
from celluler.models.weights import need_float32
from celluler_node.training.record import JobRecord
from celluler_node.training.site import Site


@dataclass(frozen=True, slots=True)
class Material:
    """Paths lead into the store."""

    base: OpenedManifest
    weights: Path
    data: Path


async def fetch_material(site: Site, record: JobRecord, *, hints: tuple[PeerId, ...]) -> Material:
    """The model's manifest and weights, and the dataset, by digest.

    Raises Unavailable, PeerViolation, LocalError; for a model that is not trained, before its weights are fetched.
    """
    base = open_manifest(await site.fetcher.block(Digest(record.order.signed.record.model), hints=hints))
    need_float32(base.architecture, "trained")
    weights = await site.fetcher.content(Digest(base.record.weights), hints=hints)
    data = await site.fetcher.content(record.order.spec.data.content, hints=hints)
    return Material(base, weights, data)
