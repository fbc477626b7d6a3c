"""What its author signs about a model: one manifest a version, and the list of versions under a name.

A manifest is parsed strictly and checked against itself: the architecture must parse within the budget, and sizes,
schemas, task and labels must be those that follow from it. The weights are content of their own, named by root
digest; nothing here reads them. Resolving names and moving bytes happen elsewhere.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, ClassVar

from semver import Version

from celluler.content.digest import Digest, digest_of
from celluler.errors import InvalidSpec, LocalError, NotFound, ProtocolViolation
from celluler.identity import Identity, Signed, open_envelope, seal
from celluler.models.names import check_word
from celluler.models.spec import MAX_SPEC_BYTES, Architecture, Classification, parse_spec
from celluler.models.version import MAX_VERSION_BYTES, newest, parse_version
from celluler.wire import U64, Bytes32, Length, Range

MAX_MANIFEST_BYTES = 1 << 19
MAX_INDEX_BYTES = 1 << 19
MAX_VERSIONS = 4096
MAX_WEIGHTS_BYTES = 1 << 40

Word = Annotated[str, Length(1, 64)]
VersionText = Annotated[str, Length(5, MAX_VERSION_BYTES)]
Label = Annotated[str, Length(1, 128)]


@dataclass(frozen=True, slots=True)
class TensorSchema:
    """One array, without its batch axis. dtype: `float32` or `int64`."""

    dtype: Annotated[str, Length(1, 16)]
    shape: Annotated[tuple[Annotated[int, Range(1, 1 << 40)], ...], Length(1, 8)]


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure that the author claims (`accuracy`, 0.95); nobody has checked it."""

    name: Word
    value: float


@dataclass(frozen=True, slots=True)
class ModelManifest:
    """One version of a model. The digest of its envelope is the model's identity.

    nickname: of the author, or empty. spec: the architecture's JSON. weights: root of the weights' content;
    weights_bytes: of the tensors in it. labels: name of each class, or none. parents: manifests of the models it was
    made from. dataset, job: what it was trained on and by, when that is known. created_s: seconds since 1970.
    """

    KIND: ClassVar[str] = "model-manifest"

    name: Word
    version: VersionText
    nickname: Annotated[str, Length(0, 64)]
    spec: Annotated[bytes, Length(2, MAX_SPEC_BYTES)]
    weights: Bytes32
    weights_bytes: Annotated[int, Range(0, MAX_WEIGHTS_BYTES)]
    task: Word
    input: TensorSchema
    output: TensorSchema
    labels: Annotated[tuple[Label, ...], Length(0, 2048)]
    metrics: Annotated[tuple[Metric, ...], Length(0, 64)]
    parents: Annotated[tuple[Bytes32, ...], Length(0, 16)]
    dataset: Bytes32 | None
    job: Bytes32 | None
    created_s: U64


@dataclass(frozen=True, slots=True)
class OpenedManifest:
    """A manifest whose signature and contents were checked. digest: of the envelope, the model's identity."""

    signed: Signed[ModelManifest]
    architecture: Architecture
    digest: Digest

    @property
    def record(self) -> ModelManifest:
        return self.signed.record


def describe_model(
    name: str,
    version: str,
    spec: bytes,
    weights: bytes,
    *,
    created_s: int,
    nickname: str = "",
    labels: tuple[str, ...] = (),
    metrics: tuple[Metric, ...] = (),
    parents: tuple[bytes, ...] = (),
    dataset: bytes | None = None,
    job: bytes | None = None,
) -> ModelManifest:
    """A manifest with everything filled in that follows from the spec. Raises InvalidSpec."""
    architecture = parse_spec(spec)
    manifest = ModelManifest(
        name=name,
        version=version,
        nickname=nickname,
        spec=spec,
        weights=weights,
        weights_bytes=architecture.parameter_bytes,
        task=architecture.objective.KIND,
        input=TensorSchema(architecture.input.dtype, architecture.input.shape),
        output=TensorSchema("float32", architecture.output),
        labels=labels,
        metrics=metrics,
        parents=parents,
        dataset=dataset,
        job=job,
        created_s=created_s,
    )
    check_manifest(manifest)
    return manifest


def check_manifest(manifest: ModelManifest) -> Architecture:
    """Everything a manifest says about itself is so. Raises InvalidSpec with the field that is wrong."""
    check_word(manifest.name, "name")
    if manifest.nickname:
        check_word(manifest.nickname, "nickname")
    _check_version(manifest.version, "version")
    architecture = _check_spec(manifest.spec)
    if manifest.weights_bytes != architecture.parameter_bytes:
        raise InvalidSpec(
            "weights_bytes", f"is {manifest.weights_bytes}, the spec needs {architecture.parameter_bytes}"
        )
    if manifest.task != architecture.objective.KIND:
        raise InvalidSpec("task", f"is {manifest.task!r}, the spec says {architecture.objective.KIND!r}")
    if manifest.input != TensorSchema(architecture.input.dtype, architecture.input.shape):
        raise InvalidSpec("input", "is not the input of the spec")
    if manifest.output != TensorSchema("float32", architecture.output):
        raise InvalidSpec("output", "is not the output of the spec")
    classes = architecture.objective.classes if isinstance(architecture.objective, Classification) else 0
    if manifest.labels and (len(manifest.labels) != classes or len(set(manifest.labels)) != classes):
        raise InvalidSpec("labels", f"must be {classes} different names, or none")
    for place, metric in enumerate(manifest.metrics):
        check_word(metric.name, f"metrics[{place}].name")
    return architecture


def seal_manifest(identity: Identity, manifest: ModelManifest) -> bytes:
    """The signed envelope. Raises InvalidSpec for a manifest that others would refuse."""
    check_manifest(manifest)
    envelope = seal(identity, manifest)
    if len(envelope) > MAX_MANIFEST_BYTES:
        raise InvalidSpec("", f"the manifest has {len(envelope)} bytes, limit {MAX_MANIFEST_BYTES}")
    return envelope


def open_manifest(data: bytes, *, signer: str | None = None) -> OpenedManifest:
    """A manifest from a peer. Raises ProtocolViolation or BadSignature; nothing half-checked comes out."""
    signed = open_envelope(ModelManifest, data, limit=MAX_MANIFEST_BYTES, signer=signer)
    try:
        architecture = check_manifest(signed.record)
    except InvalidSpec as error:
        raise ProtocolViolation(f"model manifest: {error}", peer=signed.signer) from error
    return OpenedManifest(signed, architecture, digest_of(data))


# --- the versions under one name -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VersionEntry:
    """manifest: digest of the manifest's envelope."""

    version: VersionText
    manifest: Bytes32


@dataclass(frozen=True, slots=True)
class Alias:
    """`stable` → `1.4.0`."""

    alias: Word
    version: VersionText


@dataclass(frozen=True, slots=True)
class VersionIndex:
    """All versions of one author's model, ascending. number: goes up by one with each change, never back."""

    KIND: ClassVar[str] = "version-index"

    name: Word
    number: U64
    entries: Annotated[tuple[VersionEntry, ...], Length(1, MAX_VERSIONS)]
    aliases: Annotated[tuple[Alias, ...], Length(0, 64)]

    def find(self, version: str | None = None, alias: str | None = None) -> VersionEntry:
        """That version, the version behind an alias, or the newest. Raises NotFound."""
        if alias is not None:
            version = next((one.version for one in self.aliases if one.alias == alias), None)
            if version is None:
                raise NotFound(f"{self.name}@{alias}")
        if version is None:
            version = str(newest(parse_version(entry.version) for entry in self.entries))
        for entry in self.entries:
            if entry.version == version:
                return entry
        raise NotFound(f"{self.name}:{version}")


def extend_index(index: VersionIndex | None, manifest: ModelManifest, digest: bytes) -> VersionIndex:
    """The next index, with this version in it. None: the first of its name.

    Raises LocalError when the version is taken by another manifest: what was published does not change.
    """
    version = manifest.version
    entries = () if index is None else index.entries
    if index is not None and index.name != manifest.name:
        raise LocalError(f"the index is of {index.name!r}, the manifest of {manifest.name!r}")
    for entry in entries:
        if entry.version == version and entry.manifest != digest:
            raise LocalError(f"{manifest.name}:{version} is published already", hint="publish it as a higher version")
        if entry.version == version and index is not None:
            return index
    if len(entries) == MAX_VERSIONS:
        raise LocalError(f"{manifest.name} has {MAX_VERSIONS} versions already")
    merged = sorted((*entries, VersionEntry(version, digest)), key=lambda entry: _order(entry.version))
    return VersionIndex(manifest.name, 1 if index is None else index.number + 1, tuple(merged), _aliases(index))


def set_alias(index: VersionIndex, alias: str, version: str) -> VersionIndex:
    """The next index, with the alias moved. Raises NotFound for a version that is not there."""
    check_word(alias, "alias")
    index.find(version)
    others = tuple(one for one in index.aliases if one.alias != alias)
    aliases = tuple(sorted((*others, Alias(alias, version)), key=lambda one: one.alias))
    return VersionIndex(index.name, index.number + 1, index.entries, aliases)


def check_index(index: VersionIndex) -> None:
    """Versions valid, ascending and once each; aliases once each, pointing at versions. Raises InvalidSpec."""
    check_word(index.name, "name")
    for place, entry in enumerate(index.entries):
        _check_version(entry.version, f"entries[{place}].version")
    order = [_order(entry.version) for entry in index.entries]
    if any(later <= earlier for earlier, later in itertools.pairwise(order)):
        raise InvalidSpec("entries", "must ascend by version, each once")
    versions = {entry.version for entry in index.entries}
    names = [one.alias for one in index.aliases]
    if names != sorted(set(names)):
        raise InvalidSpec("aliases", "must be sorted, each once")
    for place, one in enumerate(index.aliases):
        check_word(one.alias, f"aliases[{place}].alias")
        if one.version not in versions:
            raise InvalidSpec(f"aliases[{place}].version", "is not a version of this index")


def seal_index(identity: Identity, index: VersionIndex) -> bytes:
    """The signed envelope. Raises InvalidSpec for an index that others would refuse."""
    check_index(index)
    return seal(identity, index)


def open_index(data: bytes, *, signer: str | None = None) -> Signed[VersionIndex]:
    """An index from a peer. Raises ProtocolViolation or BadSignature."""
    signed = open_envelope(VersionIndex, data, limit=MAX_INDEX_BYTES, signer=signer)
    try:
        check_index(signed.record)
    except InvalidSpec as error:
        raise ProtocolViolation(f"version index: {error}", peer=signed.signer) from error
    return signed


def _check_spec(spec: bytes) -> Architecture:
    try:
        return parse_spec(spec)
    except InvalidSpec as error:
        raise InvalidSpec(f"spec.{error.path}" if error.path else "spec", error.problem) from error


def _check_version(text: str, path: str) -> None:
    try:
        parse_version(text)
    except InvalidSpec as error:
        raise InvalidSpec(path, error.problem) from error


def _order(version: str) -> tuple[Version, str]:
    return parse_version(version), version


def _aliases(index: VersionIndex | None) -> tuple[Alias, ...]:
    return () if index is None else index.aliases
