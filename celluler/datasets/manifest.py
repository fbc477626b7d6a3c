"""What its author signs about one version of a dataset.

A manifest is parsed strictly and checked against itself. That its figures are those of the file nobody else has
checked: whoever has the file can compute them anew and compare. The file is content of its own, named by root digest;
nothing here reads it. Which versions there are stands in an index of kind `dataset`, as for models.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from celluler.content.digest import Digest, digest_of
from celluler.datasets.schema import MAX_NAME_BYTES, Balance, Quality, RowCount, Schema, Summary, check_summary
from celluler.errors import InvalidSpec, ProtocolViolation
from celluler.identity import Identity, Signed, open_envelope, seal
from celluler.models.names import check_licence, check_printable, check_word, check_words
from celluler.models.version import MAX_VERSION_BYTES, check_step, parse_version
from celluler.wire import U64, Bytes32, Length, Range

MAX_MANIFEST_BYTES = 1 << 19
MAX_CONTENT_BYTES = 1 << 44


@dataclass(frozen=True, slots=True)
class DatasetManifest:
    """One version of a dataset. The digest of its envelope is the dataset's identity.

    nickname: of the author, or empty. content: root of the file's content; content_bytes: of the file. format, rows,
    schema, quality, label, balance: see `Summary`. parents: manifests of the datasets it was made from. created_s:
    seconds since 1970.

    What follows is for people and for peers that keep copies; nothing is computed from it. licence: an SPDX
    expression, or empty. card: digest of a block of Markdown. copies: how many peers should hold the file, 0 for as
    many as the swarm holds by default. regions: where, when that matters.
    """

    KIND: ClassVar[str] = "dataset-manifest"

    name: Annotated[str, Length(1, 64)]
    version: Annotated[str, Length(5, MAX_VERSION_BYTES)]
    nickname: Annotated[str, Length(0, 64)]
    content: Bytes32
    content_bytes: Annotated[int, Range(1, MAX_CONTENT_BYTES)]
    format: Annotated[str, Length(1, 16)]
    rows: RowCount
    schema: Schema
    quality: Quality
    label: Annotated[str, Length(0, MAX_NAME_BYTES)]
    balance: Balance
    parents: Annotated[tuple[Bytes32, ...], Length(0, 16)]
    created_s: U64
    licence: Annotated[str, Length(0, 64)]
    tags: Annotated[tuple[Annotated[str, Length(1, 64)], ...], Length(0, 32)]
    description: Annotated[str, Length(0, 512)]
    card: Bytes32 | None
    copies: Annotated[int, Range(0, 64)]
    regions: Annotated[tuple[Annotated[str, Length(1, 32)], ...], Length(0, 8)]

    @property
    def summary(self) -> Summary:
        return Summary(self.format, self.rows, self.schema, self.quality, self.label, self.balance)


@dataclass(frozen=True, slots=True)
class OpenedDataset:
    """A manifest whose signature and contents were checked. digest: of the envelope, the dataset's identity."""

    signed: Signed[DatasetManifest]
    digest: Digest

    @property
    def record(self) -> DatasetManifest:
        return self.signed.record


def describe_dataset(
    name: str,
    version: str,
    content: bytes,
    content_bytes: int,
    summary: Summary,
    *,
    created_s: int,
    nickname: str = "",
    parents: tuple[bytes, ...] = (),
    licence: str = "",
    tags: Iterable[str] = (),
    description: str = "",
    card: bytes | None = None,
    copies: int = 0,
    regions: Iterable[str] = (),
) -> DatasetManifest:
    """A manifest around what was read from the file. tags, regions: in any order, repetitions allowed.

    Raises InvalidSpec.
    """
    manifest = DatasetManifest(
        name=name,
        version=version,
        nickname=nickname,
        content=content,
        content_bytes=content_bytes,
        format=summary.format,
        rows=summary.rows,
        schema=summary.schema,
        quality=summary.quality,
        label=summary.label,
        balance=summary.balance,
        parents=parents,
        created_s=created_s,
        licence=licence,
        tags=tuple(sorted(set(tags))),
        description=description,
        card=card,
        copies=copies,
        regions=tuple(sorted(set(regions))),
    )
    check_dataset(manifest)
    return manifest


def check_dataset(manifest: DatasetManifest) -> None:
    """Everything a manifest says about itself is so. Raises InvalidSpec with the field that is wrong."""
    check_word(manifest.name, "name")
    if manifest.nickname:
        check_word(manifest.nickname, "nickname")
    parse_version(manifest.version)
    check_summary(manifest.summary)
    check_licence(manifest.licence)
    check_words(manifest.tags, "tags")
    check_printable(manifest.description, "description")
    check_words(manifest.regions, "regions")


def seal_dataset(identity: Identity, manifest: DatasetManifest) -> bytes:
    """The signed envelope. Raises InvalidSpec for a manifest that others would refuse."""
    check_dataset(manifest)
    envelope = seal(identity, manifest)
    if len(envelope) > MAX_MANIFEST_BYTES:
        raise InvalidSpec("", f"the manifest has {len(envelope)} bytes, limit {MAX_MANIFEST_BYTES}")
    return envelope


def open_dataset(data: bytes, *, signer: str | None = None) -> OpenedDataset:
    """A manifest from a peer. Raises ProtocolViolation or BadSignature; nothing half-checked comes out."""
    signed = open_envelope(DatasetManifest, data, limit=MAX_MANIFEST_BYTES, signer=signer)
    try:
        check_dataset(signed.record)
    except InvalidSpec as error:
        raise ProtocolViolation(f"dataset manifest: {error}", peer=signed.signer) from error
    return OpenedDataset(signed, digest_of(data))


# --- versions -------------------------------------------------------------------------------------------------------


def required_bump(old: DatasetManifest, new: DatasetManifest) -> str:
    """`major`, `minor` or `patch`: the least step from `old` to `new` that does not deceive anybody.

    Major: columns or label, so whoever reads it must look. Minor: other rows, or the same in another format. Patch:
    the same file and other words about it.
    """
    if (old.schema, old.label) != (new.schema, new.label):
        return "major"
    return "patch" if (old.content, old.format) == (new.content, new.format) else "minor"


def check_bump(old: DatasetManifest, new: DatasetManifest) -> None:
    """`new` may be published above `old`, its predecessor. Raises InvalidSpec with the least version as hint."""
    check_step(old.version, new.version, required_bump(old, new))
