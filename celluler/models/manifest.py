"""What its author signs about one version of a model.

A manifest is parsed strictly and checked against itself: the architecture must parse within the budget, and sizes,
schemas, task and labels must be those that follow from it. The weights are content of their own, named by root
digest; nothing here reads them. Which versions there are stands in the index; resolving names, opening keys and
moving bytes happen elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from celluler.content.digest import Digest, digest_of
from celluler.errors import InvalidSpec, ProtocolViolation
from celluler.identity import Identity, PeerId, Signed, open_envelope, peer_id_of, seal
from celluler.models.access import MAX_READERS, SealedKey
from celluler.models.beside import LIMITS, TOKENIZER, FileBeside, check_files
from celluler.models.body import KINDS, MAX_BODY_BYTES, Body, parse_body
from celluler.models.interface import Interface, read_interface
from celluler.models.names import check_licence, check_printable, check_word, check_words
from celluler.models.objectives import Classification
from celluler.models.transforms.document import MAX_TRANSFORM_BYTES
from celluler.models.version import MAX_VERSION_BYTES, parse_version
from celluler.wire import U64, Bytes32, Length, Range

MAX_MANIFEST_BYTES = 1 << 19
MAX_WEIGHTS_BYTES = 1 << 40
MAX_CARD_BYTES = 1 << 18
MAX_TAGS = 32
MAX_REGIONS = 8
MAX_COPIES = 64
MAX_TRANSCRIPTS = 64
FORMATS = ("safetensors",)

Word = Annotated[str, Length(1, 64)]
VersionText = Annotated[str, Length(5, MAX_VERSION_BYTES)]
Label = Annotated[str, Length(1, 128)]
RegionWord = Annotated[str, Length(1, 32)]
TransformBytes = Annotated[bytes, Length(0, MAX_TRANSFORM_BYTES)]


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

    nickname: of the author, or empty. body: the kind of what is computed, spec: its document, see
    `celluler.models.body`. weights: root of the weights' content; weights_bytes: of the tensors in it. labels: name of
    each class, or none. parents: manifests of the models it was made from. dataset, job: what it was trained on and by,
    when that is known. transcripts: contents in which members of the job's run wrote it down, those that the author
    knew of. created_s: seconds since 1970.

    What follows is for people and for peers that keep copies; nothing is computed from it. category: of use
    (`vision`), or empty. licence: an SPDX expression, or empty. card: digest of a block of Markdown. copies: how many
    peers should hold the weights, 0 for as many as the swarm holds by default. regions: where, when that matters.

    sealed: the key of the weights for each reader, ascending by reader; empty for a public model. plain: BLAKE3 of
    the weights file before it was encrypted. `weights` is then the content of the encrypted file.

    preprocess, postprocess: documents of what stands before and after the model, see `celluler.models.transforms`;
    empty for none. files: that belong to it beside its weights, see `celluler.models.beside`; ascending by name.
    """

    KIND: ClassVar[str] = "model-manifest"

    name: Word
    version: VersionText
    nickname: Annotated[str, Length(0, 64)]
    body: Word
    spec: Annotated[bytes, Length(2, MAX_BODY_BYTES)]
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
    transcripts: Annotated[tuple[Bytes32, ...], Length(0, MAX_TRANSCRIPTS)]
    created_s: U64
    category: Annotated[str, Length(0, 64)]
    framework: Annotated[str, Length(1, 32)]
    format: Annotated[str, Length(1, 32)]
    dtype: Annotated[str, Length(1, 16)]
    licence: Annotated[str, Length(0, 64)]
    tags: Annotated[tuple[Word, ...], Length(0, MAX_TAGS)]
    description: Annotated[str, Length(0, 512)]
    card: Bytes32 | None
    copies: Annotated[int, Range(0, MAX_COPIES)]
    regions: Annotated[tuple[RegionWord, ...], Length(0, MAX_REGIONS)]
    sealed: Annotated[tuple[SealedKey, ...], Length(0, MAX_READERS)]
    plain: Bytes32 | None
    preprocess: TransformBytes = b""
    postprocess: TransformBytes = b""
    files: Annotated[tuple[FileBeside, ...], Length(0, len(LIMITS))] = ()

    @property
    def encrypted(self) -> bool:
        return bool(self.sealed)

    @property
    def readers(self) -> tuple[PeerId, ...]:
        """Who can decrypt the weights; nobody named means everybody can read them as they are."""
        return tuple(peer_id_of(one.reader) for one in self.sealed)

    def file(self, name: str) -> FileBeside | None:
        return next((one for one in self.files if one.name == name), None)


@dataclass(frozen=True, slots=True)
class OpenedManifest:
    """A manifest whose signature and contents were checked. digest: of the envelope, the model's identity."""

    signed: Signed[ModelManifest]
    interface: Interface
    digest: Digest

    @property
    def architecture(self) -> Body:
        return self.interface.body

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
    body: str = "spec",
    nickname: str = "",
    labels: tuple[str, ...] = (),
    metrics: tuple[Metric, ...] = (),
    parents: tuple[bytes, ...] = (),
    dataset: bytes | None = None,
    job: bytes | None = None,
    transcripts: Iterable[bytes] = (),
    category: str = "",
    framework: str = "celluler",
    licence: str = "",
    tags: Iterable[str] = (),
    description: str = "",
    card: bytes | None = None,
    copies: int = 0,
    regions: Iterable[str] = (),
    sealed: tuple[SealedKey, ...] = (),
    plain: bytes | None = None,
    preprocess: bytes = b"",
    postprocess: bytes = b"",
    files: Iterable[FileBeside] = (),
) -> ModelManifest:
    """A manifest with everything filled in that follows from the body. Raises InvalidSpec.

    transcripts, tags, regions: in any order, repetitions allowed; files: in any order. sealed, plain: both or neither.
    """
    architecture = parse_body(body, spec)
    manifest = ModelManifest(
        name=name,
        version=version,
        nickname=nickname,
        body=body,
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
        transcripts=tuple(sorted(set(transcripts))),
        created_s=created_s,
        category=category,
        framework=framework,
        format="safetensors",
        dtype=architecture.dtype,
        licence=licence,
        tags=tuple(sorted(set(tags))),
        description=description,
        card=card,
        copies=copies,
        regions=tuple(sorted(set(regions))),
        sealed=sealed,
        plain=plain,
        preprocess=preprocess,
        postprocess=postprocess,
        files=tuple(sorted(files, key=lambda one: one.name)),
    )
    check_manifest(manifest)
    return manifest


def check_manifest(manifest: ModelManifest) -> Interface:
    """Everything a manifest says about itself is so. Raises InvalidSpec with the field that is wrong."""
    check_word(manifest.name, "name")
    if manifest.nickname:
        check_word(manifest.nickname, "nickname")
    parse_version(manifest.version)
    architecture = _check_body(manifest.body, manifest.spec)
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
    _check_transcripts(manifest)
    _check_metadata(manifest, architecture)
    _check_access(manifest)
    check_files(manifest.files, encrypted=manifest.encrypted)
    interface = read_interface(architecture, manifest.preprocess, manifest.postprocess)
    interface.check_tokenizer(given=manifest.file(TOKENIZER) is not None)
    return interface


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
        interface = check_manifest(signed.record)
    except InvalidSpec as error:
        raise ProtocolViolation(f"model manifest: {error}", peer=signed.signer) from error
    return OpenedManifest(signed, interface, digest_of(data))


# --- one field each -------------------------------------------------------------------------------------------------


def _check_body(kind: str, document: bytes) -> Body:
    if kind not in KINDS:
        raise InvalidSpec("body", f"is {kind!r}, must be {' or '.join(KINDS)}")
    try:
        return parse_body(kind, document)
    except InvalidSpec as error:
        raise InvalidSpec(f"spec.{error.path}" if error.path else "spec", error.problem) from error


def _check_transcripts(manifest: ModelManifest) -> None:
    if manifest.transcripts and manifest.job is None:
        raise InvalidSpec("transcripts", "are of the run of a job, and no job is named")
    if list(manifest.transcripts) != sorted(set(manifest.transcripts)):
        raise InvalidSpec("transcripts", "must ascend, each once")


def _check_metadata(manifest: ModelManifest, architecture: Body) -> None:
    if manifest.category:
        check_word(manifest.category, "category")
    check_word(manifest.framework, "framework")
    if manifest.format not in FORMATS:
        raise InvalidSpec("format", f"is {manifest.format!r}, must be {' or '.join(FORMATS)}")
    if manifest.dtype != architecture.dtype:
        raise InvalidSpec("dtype", f"is {manifest.dtype!r}, the spec says {architecture.dtype!r}")
    check_licence(manifest.licence)
    check_words(manifest.tags, "tags")
    check_printable(manifest.description, "description")
    check_words(manifest.regions, "regions")


def _check_access(manifest: ModelManifest) -> None:
    if (manifest.plain is None) is manifest.encrypted:
        raise InvalidSpec("plain", "must be given exactly when the model is encrypted")
    readers = [one.reader for one in manifest.sealed]
    if readers != sorted(set(readers)):
        raise InvalidSpec("sealed", "must ascend by reader, each once")
