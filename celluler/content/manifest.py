"""How a file becomes content: chunks, leaves, manifest; and the way back, from a stranger's bytes.

The manifest's digest is the content's root. It lists leaves by digest, a leaf lists chunks by digest: whoever trusts
the root can verify manifest, then leaves, then every chunk as it arrives, from anybody.

    plain file          [chunk][chunk]...[rest]                       chunks of `chunk_size`
    safetensors file    [header][tensor a: chunk chunk rest][b: rest]  the header apart, no chunk spans two tensors

Two versions of a model then share every chunk of every tensor they have in common, whatever became of the header.
`tensors` is the publisher's table of contents: it decides where chunks lie, and a loader reads the header itself.

Knows nothing of stores or networks. Tensors are byte ranges here: their values are never looked at.
"""

from __future__ import annotations

import itertools
import json
import math
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from celluler.content.digest import DIGEST_BYTES, Digest, digest_of
from celluler.errors import LocalError, ProtocolViolation
from celluler.wire import Bytes32, Length, Name, Range, Text, pack, unpack

MAX_BLOCK_BYTES = 1 << 20
"""The largest block or chunk that may travel or be kept as one."""

MIN_CHUNK_BYTES = 1 << 10  # smaller ones would let the digests outweigh the content
MAX_TOTAL_BYTES = 1 << 44
MAX_LEAF_DIGESTS = 4096
MAX_LEAVES = 4096
MAX_TENSORS = 8192  # with long names and all leaves a manifest still fits one block
MAX_DIMENSIONS = 16
KINDS = frozenset({"blob", "model", "dataset"})

DTYPE_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits of one element, by the names of the safetensors format."""

Size = Annotated[int, Range(0, MAX_TOTAL_BYTES)]
ChunkCount = Annotated[int, Range(0, MAX_LEAVES * MAX_LEAF_DIGESTS)]


@dataclass(frozen=True, slots=True)
class Header:
    """The first piece of a safetensors file: its length prefix and its JSON."""

    digest: Bytes32
    length: Annotated[int, Range(8, MAX_BLOCK_BYTES)]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor's bytes: `length` from `offset` in the file, in `n_chunks` chunks from `first_chunk` of the leaves."""

    name: Annotated[str, Length(1, 512)]
    dtype: Annotated[str, Length(1, 16)]
    shape: Annotated[tuple[Size, ...], Length(0, MAX_DIMENSIONS)]
    offset: Size
    length: Size
    first_chunk: ChunkCount
    n_chunks: ChunkCount


@dataclass(frozen=True, slots=True)
class Manifest:
    """The root block of a content. A value from `parse_manifest` or `describe` is consistent in itself."""

    v: Annotated[int, Range(1, 1)]
    kind: Annotated[str, Length(1, 16)]
    total_len: Size
    chunk_size: Annotated[int, Range(MIN_CHUNK_BYTES, MAX_BLOCK_BYTES)]
    header: Header | None
    tensors: Annotated[tuple[Tensor, ...], Length(0, MAX_TENSORS)]
    leaves: Annotated[tuple[Bytes32, ...], Length(0, MAX_LEAVES)]
    meta: Annotated[tuple[tuple[Name, Text], ...], Length(0, 16)]

    @property
    def n_chunks(self) -> int:
        """How many digests the leaves list together. Does not count the header."""
        if self.header is None:
            return _count(self.total_len, self.chunk_size)
        return self.tensors[-1].first_chunk + self.tensors[-1].n_chunks if self.tensors else 0

    def lengths(self) -> Iterator[int]:
        """Bytes of every piece, in the order of the file."""
        return (end - start for start, end in itertools.pairwise(_offsets(self)))

    def leaf_len(self, leaf: int) -> int:
        """How many digests leaf number `leaf` must list: all are full but the last."""
        return min(MAX_LEAF_DIGESTS, self.n_chunks - leaf * MAX_LEAF_DIGESTS)


@dataclass(frozen=True, slots=True)
class Leaf:
    """Digests of consecutive chunks."""

    digests: Annotated[tuple[Bytes32, ...], Length(1, MAX_LEAF_DIGESTS)]


@dataclass(frozen=True, slots=True)
class Piece:
    """One verifiable stretch of the file: the header, when there is one, is piece 0; then the chunks."""

    index: int
    digest: Digest
    length: int
    offset: int


@dataclass(frozen=True, slots=True)
class Description:
    """What `describe` found: every block to keep beside the file."""

    root: Digest
    manifest: Manifest
    manifest_bytes: bytes
    leaves: tuple[bytes, ...]

    def layout(self) -> Layout:
        return Layout(self.manifest, tuple(unpack(Leaf, leaf, limit=MAX_BLOCK_BYTES) for leaf in self.leaves))


# --- reading what a stranger says -------------------------------------------------------------------------------


def parse_manifest(data: bytes) -> Manifest:
    """The manifest in these bytes, every number of it consistent with every other. Raises ProtocolViolation.

    A valid manifest may still be a lie about bytes that nobody has: each chunk is checked when it comes.
    """
    manifest = unpack(Manifest, data, limit=MAX_BLOCK_BYTES)
    _require(manifest.kind in KINDS, f"kind {manifest.kind!r}")
    keys = [key for key, _ in manifest.meta]
    _require(keys == sorted(set(keys)), "meta keys are not sorted and distinct")
    if manifest.header is None:
        _require(not manifest.tensors, "tensors without a header")
    else:
        _check_tensors(manifest, manifest.header)
    leaves = _count(manifest.n_chunks, MAX_LEAF_DIGESTS)
    _require(len(manifest.leaves) == leaves, f"{len(manifest.leaves)} leaves where {leaves} are due")
    return manifest


def parse_leaf(data: bytes, manifest: Manifest, leaf: int) -> Leaf:
    """Leaf number `leaf` of this manifest. Raises ProtocolViolation."""
    parsed = unpack(Leaf, data, limit=MAX_BLOCK_BYTES)
    due = manifest.leaf_len(leaf)
    _require(len(parsed.digests) == due, f"leaf {leaf} lists {len(parsed.digests)} digests where {due} are due")
    return parsed


def _check_tensors(manifest: Manifest, header: Header) -> None:
    """Tensors cover the file behind the header without gap or overlap, and their chunks the leaves."""
    names = {tensor.name for tensor in manifest.tensors}
    _require(len(names) == len(manifest.tensors), "two tensors of one name")
    offset, chunk = header.length, 0
    for tensor in manifest.tensors:
        _require(tensor.offset == offset, f"tensor {tensor.name!r} starts at {tensor.offset}, not at {offset}")
        _require(_tensor_bytes(tensor.dtype, tensor.shape) == tensor.length, f"tensor {tensor.name!r}: wrong length")
        due = _count(tensor.length, manifest.chunk_size)
        _require((tensor.first_chunk, tensor.n_chunks) == (chunk, due), f"tensor {tensor.name!r}: wrong chunks")
        offset, chunk = offset + tensor.length, chunk + due
    _require(offset == manifest.total_len, f"tensors end at {offset}, the content at {manifest.total_len}")


def _tensor_bytes(dtype: str, shape: Sequence[int]) -> int | None:
    """Bytes of a tensor, None for an unknown dtype or a number of bits that fills no whole byte."""
    bits = math.prod(shape) * DTYPE_BITS.get(dtype, 1)
    return bits // 8 if dtype in DTYPE_BITS and bits % 8 == 0 else None


def _count(total: int, size: int) -> int:
    return -(-total // size)


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise ProtocolViolation(f"manifest: {problem}")


# --- where pieces lie -------------------------------------------------------------------------------------------


class Layout:
    """Every piece of a content: digest, length and place. About 40 bytes of memory a piece."""

    def __init__(self, manifest: Manifest, leaves: Sequence[Leaf]) -> None:
        """leaves: all of them, in order, each from `parse_leaf`."""
        assert len(leaves) == len(manifest.leaves)
        self.manifest = manifest
        head = () if manifest.header is None else (manifest.header.digest,)
        self._digests = b"".join([*head, *(b"".join(leaf.digests) for leaf in leaves)])
        self._offsets = array("Q", _offsets(manifest))
        assert len(self._digests) == (len(self._offsets) - 1) * DIGEST_BYTES

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __iter__(self) -> Iterator[Piece]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Piece:
        """Raises LocalError when there is no such piece."""
        if not 0 <= index < len(self):
            raise LocalError(f"piece {index} of a content of {len(self)} pieces")
        digest = self._digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
        offset = self._offsets[index]
        return Piece(index, Digest(digest), self._offsets[index + 1] - offset, offset)

    def at(self, offset: int) -> Piece:
        """The piece that holds this byte of the file."""
        return self[bisect_right(self._offsets, offset) - 1]


def _offsets(manifest: Manifest) -> Iterator[int]:
    """Where each piece starts, then where the last one ends."""
    yield 0
    if manifest.header is None:
        yield from _ends(0, manifest.total_len, manifest.chunk_size)
    else:
        yield manifest.header.length
        for tensor in manifest.tensors:
            yield from _ends(tensor.offset, tensor.length, manifest.chunk_size)


def _ends(offset: int, length: int, chunk_size: int) -> Iterator[int]:
    end = offset + length
    return (min(end, start + chunk_size) for start in range(offset, end, chunk_size))


# --- describing a file of ours ----------------------------------------------------------------------------------


def describe(path: Path, kind: str, *, chunk_size: int = MAX_BLOCK_BYTES) -> Description:
    """Read a file once and say what its content is. The same bytes and kind always give the same root.

    A sound safetensors file with a header of at most 1 MiB gets tensor-aligned chunks, any other plain ones.
    Raises LocalError when the file is absent, too large or changes in between.
    """
    if kind not in KINDS:
        raise LocalError(f"kind {kind!r}, expected one of {', '.join(sorted(KINDS))}")
    if not MIN_CHUNK_BYTES <= chunk_size <= MAX_BLOCK_BYTES:
        raise LocalError(f"chunks of {chunk_size} bytes, allowed {MIN_CHUNK_BYTES}..{MAX_BLOCK_BYTES}")
    try:
        with path.open("rb") as file:
            total = file.seek(0, 2)
            file.seek(0)
            if total > MAX_TOTAL_BYTES:
                raise LocalError(f"{path} has {total} bytes, the most is {MAX_TOTAL_BYTES}")
            header, tensors = _tensor_table(file, total, chunk_size)
            plan = Manifest(1, kind, total, chunk_size, header, tensors, (), ())
            return _finish(file, plan)
    except OSError as error:
        raise LocalError(f"cannot read {path}: {error.strerror}") from error


def _finish(file: BinaryIO, plan: Manifest) -> Description:
    """Hash the chunks that `plan` lays out and close the tree above them."""
    offsets = list(_offsets(plan))[0 if plan.header is None else 1 :]
    file.seek(offsets[0])
    digests = [digest_of(_exactly(file, end - start)) for start, end in itertools.pairwise(offsets)]
    groups = (digests[at : at + MAX_LEAF_DIGESTS] for at in range(0, len(digests), MAX_LEAF_DIGESTS))
    leaves = tuple(pack(Leaf(tuple(group))) for group in groups)
    roots = tuple(digest_of(leaf) for leaf in leaves)
    manifest = Manifest(1, plan.kind, plan.total_len, plan.chunk_size, plan.header, plan.tensors, roots, plan.meta)
    data = pack(manifest)
    return Description(digest_of(data), parse_manifest(data), data, leaves)


def _exactly(file: BinaryIO, length: int) -> bytes:
    data = file.read(length)
    if len(data) != length:
        raise LocalError("the file became shorter while it was read")
    return data


def _tensor_table(file: BinaryIO, total: int, chunk_size: int) -> tuple[Header | None, tuple[Tensor, ...]]:
    """(header, tensors in file order), or (None, ()) for a file that is not one we can align to."""
    prefix = file.read(8)
    size = 8 + int.from_bytes(prefix, "little")
    if len(prefix) < 8 or size > min(total, MAX_BLOCK_BYTES):
        return None, ()
    raw = prefix + _exactly(file, size - 8)
    header = Header(digest_of(raw), size)
    try:
        table = json.loads(raw[8:])
        tensors = _tensors_in(table, size, chunk_size)
        manifest = Manifest(1, "model", total, chunk_size, header, tensors, (), ())
        _check_tensors(manifest, header)
        leaves = (bytes(DIGEST_BYTES),) * _count(manifest.n_chunks, MAX_LEAF_DIGESTS)
        fits = len(pack(Manifest(1, "dataset", total, chunk_size, header, tensors, leaves, ()))) <= MAX_BLOCK_BYTES
    except (ValueError, TypeError, KeyError, RecursionError, ProtocolViolation):
        return None, ()
    return (header, tensors) if fits else (None, ())


def _tensors_in(table: dict[str, Any], header_bytes: int, chunk_size: int) -> tuple[Tensor, ...]:
    """Entries of a safetensors header in the order of their bytes. Raises whatever a malformed table makes it raise."""
    entries = [(*entry["data_offsets"], name, entry) for name, entry in table.items() if name != "__metadata__"]
    tensors, chunk = [], 0
    for start, end, name, entry in sorted(entries, key=lambda item: item[:3]):
        chunks = _count(end - start, chunk_size)
        shape = tuple(entry["shape"])
        tensors.append(Tensor(name, entry["dtype"], shape, header_bytes + start, end - start, chunk, chunks))
        chunk += chunks
    return tuple(tensors)
