"""Models, datasets and their histories as a person sees them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from celluler import views
from celluler.content.digest import Codec, Digest, cid_of
from celluler.datasets.manifest import OpenedDataset
from celluler.errors import NotFound
from celluler.identity import PeerId, Signed
from celluler.models.calls import SAMPLE
from celluler.models.changes import FieldChange, TensorChange
from celluler.models.compare import ModelDiff
from celluler.models.index import VersionIndex
from celluler.models.manifest import OpenedManifest
from celluler.models.provenance import LogEntry
from celluler.views import Column, Dataset, LogLine, Model, ModelLog, ModelPorts, Port, Version, Versions
from celluler_node.repository import Held, HeldDataset
from celluler_protocols.gossip import ModelAnnouncement


def model_view(
    held: Held,
    *,
    providers: Sequence[PeerId] = (),
    with_spec: bool = False,
    index: VersionIndex | None = None,
    equivocation: str = "",
) -> Model:
    """A model whose manifest was verified. index: of its name, for what is said of the version there."""
    opened, record = held.opened, held.opened.record
    return Model(
        name=record.name,
        version=record.version,
        cid=manifest_cid(opened.digest),
        author=opened.signed.signer,
        nickname=record.nickname,
        task=record.task,
        parameters=opened.architecture.parameter_count,
        weights=manifest_cid(record.weights),
        weights_bytes=record.weights_bytes,
        local=held.local,
        created_s=float(record.created_s),
        labels=record.labels,
        metrics={metric.name: metric.value for metric in record.metrics},
        parents=tuple(map(manifest_cid, record.parents)),
        dataset=None if record.dataset is None else manifest_cid(record.dataset),
        job=None if record.job is None else cid_of(Digest(record.job)),
        transcripts=tuple(map(manifest_cid, record.transcripts)),
        providers=tuple(providers),
        body=record.body,
        spec=json.loads(record.spec) if with_spec else None,
        category=record.category,
        framework=record.framework,
        format=record.format,
        dtype=record.dtype,
        licence=record.licence,
        tags=record.tags,
        description=record.description,
        card=None if record.card is None else cid_of(Digest(record.card)),
        copies=record.copies,
        regions=record.regions,
        encrypted=record.encrypted,
        readers=record.readers,
        retracted=_retracted(index, opened),
        aliases=_aliases(index, record.version),
        have_bytes=0 if held.stat is None else held.stat.have_bytes,
        equivocation=equivocation,
        files={one.name: manifest_cid(one.root) for one in record.files},
        **(_interface_view(opened) if with_spec else {}),
    )


def _interface_view(opened: OpenedManifest) -> dict[str, Any]:
    interface, record = opened.interface, opened.record
    name = "input" if interface.preprocess is None else interface.preprocess.name
    return {
        "preprocess": json.loads(record.preprocess) if record.preprocess else None,
        "postprocess": json.loads(record.postprocess) if record.postprocess else None,
        "takes": Port(name, interface.takes.dtype, interface.takes.shape),
        "gives": tuple(Port(output, one.dtype, one.shape) for output, one in interface.outputs.items()),
    }


def ports_view(held: Held) -> ModelPorts:
    """The same of a model that somebody is about to ask."""
    view = _interface_view(held.opened)
    seeded = {port.name for port in view["gives"]} == {SAMPLE}
    cid = manifest_cid(held.opened.digest)
    return ModelPorts(held.name, held.opened.record.version, cid, None if seeded else view["takes"], view["gives"])


def announced_view(signed: Signed[ModelAnnouncement]) -> Model:
    """A model that its author announced and that we have not looked at: no more than the announcement says."""
    told = signed.record
    return Model(
        name=told.name,
        version=told.version,
        cid=manifest_cid(told.manifest),
        author=signed.signer,
        nickname=told.nickname,
        task="",
        parameters=told.total_bytes // 4,
        weights=manifest_cid(told.root),
        weights_bytes=told.total_bytes,
        local=False,
        created_s=float(told.issued_s),
        copies=told.copies,
        regions=told.regions,
    )


def dataset_view(
    held: HeldDataset,
    *,
    providers: Sequence[PeerId] = (),
    in_full: bool = False,
    index: VersionIndex | None = None,
) -> Dataset:
    """A dataset whose manifest was verified. in_full: with columns and balance."""
    opened, record = held.opened, held.opened.record
    return Dataset(
        name=record.name,
        version=record.version,
        cid=manifest_cid(opened.digest),
        author=opened.signed.signer,
        nickname=record.nickname,
        format=record.format,
        content=manifest_cid(record.content),
        content_bytes=record.content_bytes,
        rows=record.rows,
        local=held.local,
        created_s=float(record.created_s),
        columns=_columns(opened) if in_full else (),
        label=record.label,
        balance={one.label: one.rows for one in record.balance} if in_full else {},
        licence=record.licence,
        tags=record.tags,
        description=record.description,
        card=None if record.card is None else cid_of(Digest(record.card)),
        copies=record.copies,
        regions=record.regions,
        parents=tuple(map(manifest_cid, record.parents)),
        providers=tuple(providers),
        aliases=_aliases(index, record.version),
        retracted=_retracted(index, opened),
    )


def announced_dataset_view(signed: Signed[ModelAnnouncement]) -> Dataset:
    """A dataset of which only the announcement is known."""
    told = signed.record
    return Dataset(
        name=told.name,
        version=told.version,
        cid=manifest_cid(told.manifest),
        author=signed.signer,
        nickname=told.nickname,
        format="",
        content=manifest_cid(told.root),
        content_bytes=told.total_bytes,
        rows=0,
        local=False,
        created_s=float(told.issued_s),
        copies=told.copies,
        regions=told.regions,
    )


def versions_view(
    author: PeerId, nickname: str, index: VersionIndex, created_s: Mapping[Digest, float], equivocation: str
) -> Versions:
    """created_s: of the manifests that are here."""
    meant = _current(index)
    listed = (
        Version(
            version=entry.version,
            cid=manifest_cid(entry.manifest),
            aliases=_aliases(index, entry.version),
            current=entry.version == meant,
            retracted=entry.retracted,
            created_s=created_s.get(Digest(entry.manifest)),
        )
        for entry in reversed(index.entries)
    )
    return Versions(index.name, author, nickname, index.number, tuple(listed), equivocation)


def log_view(opened: OpenedManifest, entries: Sequence[LogEntry]) -> ModelLog:
    """entries: newest first, all of them."""
    lines = tuple(
        LogLine(
            number=entry.number,
            at_s=float(entry.at_s),
            action=entry.action,
            version=entry.version,
            subject=None if entry.subject is None else manifest_cid(entry.subject),
            note=entry.note,
        )
        for entry in entries
    )
    return ModelLog(opened.record.name, opened.signed.signer, opened.record.nickname, lines)


def diff_view(old: str, new: str, found: ModelDiff) -> views.ModelDiff:
    return views.ModelDiff(
        old=old,
        new=new,
        tensors=tuple(map(_tensor_view, found.tensors)),
        unchanged=found.unchanged,
        unknown=found.unknown,
        architecture=tuple(map(_field_view, found.architecture)),
        metadata=tuple(map(_field_view, found.metadata)),
        bytes_to_fetch=found.bytes_to_fetch,
        bump=found.bump,
    )


def manifest_cid(digest: bytes) -> str:
    return cid_of(Digest(digest), Codec.MANIFEST)


def _tensor_view(change: TensorChange) -> views.TensorChange:
    return views.TensorChange(change.name, change.old, change.new, change.norm, change.relative)


def _field_view(change: FieldChange) -> views.FieldChange:
    return views.FieldChange(change.path, change.old, change.new)


def _columns(opened: OpenedDataset) -> tuple[Column, ...]:
    quality = {one.name: one for one in opened.record.quality}
    columns = []
    for column in opened.record.schema:
        found = quality.get(column.name)
        columns.append(
            Column(column.name, column.dtype, column.shape)
            if found is None
            else Column(
                name=column.name,
                dtype=column.dtype,
                shape=column.shape,
                missing=found.missing,
                minimum=found.minimum,
                maximum=found.maximum,
                mean=found.mean,
                distinct=found.distinct,
            )
        )
    return tuple(columns)


def _current(index: VersionIndex) -> str:
    """What the bare name means; nothing when all versions are retracted."""
    try:
        return index.find().version
    except NotFound:
        return ""


def _aliases(index: VersionIndex | None, version: str) -> tuple[str, ...]:
    return () if index is None else tuple(one.alias for one in index.aliases if one.version == version)


def _retracted(index: VersionIndex | None, opened: OpenedManifest | OpenedDataset) -> str:
    entries = () if index is None else index.entries
    return next((entry.retracted for entry in entries if entry.manifest == opened.digest), "")
