"""Cutting files into chunks, and refusing manifests that contradict themselves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from safetensors.numpy import save_file

from celluler.content.digest import digest_of
from celluler.content.manifest import (
    MAX_BLOCK_BYTES,
    MAX_LEAF_DIGESTS,
    MAX_TOTAL_BYTES,
    Description,
    Header,
    Leaf,
    Manifest,
    Tensor,
    describe,
    parse_leaf,
    parse_manifest,
)
from celluler.errors import LocalError, ProtocolViolation
from celluler.wire import pack

LEAF = digest_of(b"leaf")
PLAIN = Manifest(1, "blob", 3000, 1024, None, (), (LEAF,), ())
HEADER = Header(digest_of(b"header"), 100)
TENSORS = (
    Tensor("a", "F32", (300, 2), 100, 2400, 0, 3),
    Tensor("b", "I64", (), 2500, 8, 3, 1),
    Tensor("empty", "F16", (0, 7), 2508, 0, 4, 0),
    Tensor("c", "BOOL", (5,), 2508, 5, 4, 1),
)
MODEL = Manifest(1, "model", 2513, 1024, HEADER, TENSORS, (LEAF,), (("format", "safetensors"),))


def weights(path: Path, **arrays: Any) -> Path:
    save_file(arrays, path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    return weights(
        tmp_path / "model.safetensors",
        dense=rng.normal(size=(300, 1000)).astype(np.float32),
        bias=rng.normal(size=7).astype(np.float32),
        nothing=np.zeros((0, 3), np.float32),
        counter=np.array(5, np.int64),
    )


def check(path: Path, described: Description) -> None:
    """Every piece is where the layout says, and has the digest it says."""
    data = path.read_bytes()
    layout = described.layout()
    end = 0
    for piece in layout:
        assert piece.offset == end
        assert 0 < piece.length <= described.manifest.chunk_size or piece.index == 0
        assert digest_of(data[piece.offset : piece.offset + piece.length]) == piece.digest
        assert layout.at(piece.offset + piece.length - 1) == piece
        end += piece.length
    assert end == len(data) == described.manifest.total_len
    assert parse_manifest(described.manifest_bytes) == described.manifest
    assert digest_of(described.manifest_bytes) == described.root


@pytest.mark.parametrize("size", [0, 1, 7, 8, 1023, 1024, 1025, 10_000])
def test_a_plain_file_is_cut_at_every_chunk_size(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\xff" * size)
    described = describe(path, "blob", chunk_size=1024)
    check(path, described)
    assert described.manifest.header is None
    assert len(described.layout()) == -(-size // 1024)


def test_a_safetensors_file_is_cut_at_its_tensors_with_the_header_apart(model: Path) -> None:
    described = describe(model, "model")
    check(model, described)
    manifest = described.manifest
    assert manifest.header is not None
    assert {(tensor.name, tensor.dtype, tensor.shape) for tensor in manifest.tensors} == {
        ("dense", "F32", (300, 1000)),
        ("bias", "F32", (7,)),
        ("nothing", "F32", (0, 3)),
        ("counter", "I64", ()),
    }
    starts = {tensor.offset for tensor in manifest.tensors}
    pieces = list(described.layout())
    assert starts <= {piece.offset for piece in pieces} | {manifest.total_len}
    dense = next(tensor for tensor in manifest.tensors if tensor.name == "dense")
    assert dense.n_chunks == 2


def test_a_longer_header_shares_every_chunk_with_the_version_before(tmp_path: Path, model: Path) -> None:
    with model.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        table, body = json.loads(file.read(size)), file.read()
    table["__metadata__"] = {"note": "a header of another length"}
    header = json.dumps(table).encode()
    longer = tmp_path / "longer.safetensors"
    longer.write_bytes(len(header).to_bytes(8, "little") + header + body)
    before, after = describe(model, "model").layout(), describe(longer, "model").layout()
    check(longer, describe(longer, "model"))
    assert [piece.digest for piece in before][1:] == [piece.digest for piece in after][1:]
    assert before[0].digest != after[0].digest


def test_the_same_bytes_and_kind_have_one_root(tmp_path: Path, model: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(model.read_bytes())
    assert describe(model, "model").root == describe(copy, "model").root
    assert describe(model, "model").root != describe(copy, "blob").root


@pytest.mark.parametrize(
    "header",
    [
        b"{}",  # bytes behind it that no tensor covers
        b"[" * 5000,
        b"not json",
        b'{"a": 5}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 3]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "??", "shape": [8], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "U8", "shape": [8], "data_offsets": [-8, 0]}}',
        b'{"a": {"dtype": "U8", "shape": [-8], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "U8", "shape": [8], "data_offsets": ["0", 8]}}',
        b'{"a": {"dtype": "U8", "shape": [18446744073709551616], "data_offsets": [0, 18446744073709551616]}}',
        b'{"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]},'
        b' "b": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}}',
    ],
)
def test_what_only_looks_like_safetensors_is_cut_as_a_plain_file(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"8 bytes!")
    described = describe(path, "model")
    check(path, described)
    assert described.manifest.header is None


def test_more_tensors_than_a_manifest_holds_are_cut_as_a_plain_file(tmp_path: Path) -> None:
    names = {f"{place:0400d}": np.zeros(1, np.uint8) for place in range(3000)}
    path = weights(tmp_path / "many.safetensors", **names)
    described = describe(path, "model")
    check(path, described)
    assert described.manifest.header is None
    assert len(described.manifest_bytes) <= MAX_BLOCK_BYTES


def test_more_digests_than_one_leaf_holds_go_into_several(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1024 * (MAX_LEAF_DIGESTS + 1)))
    described = describe(path, "blob", chunk_size=1024)
    assert [described.manifest.leaf_len(leaf) for leaf in range(2)] == [MAX_LEAF_DIGESTS, 1]
    assert len(described.layout()) == MAX_LEAF_DIGESTS + 1


def test_what_cannot_be_described_is_a_local_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    for call in (
        lambda: describe(tmp_path / "absent", "blob"),
        lambda: describe(path, "song"),
        lambda: describe(path, "blob", chunk_size=10),
        lambda: describe(path, "blob", chunk_size=MAX_BLOCK_BYTES + 1),
    ):
        with pytest.raises(LocalError):
            call()


def test_sound_manifests_are_accepted() -> None:
    for manifest in (PLAIN, MODEL, Manifest(1, "dataset", 0, 1024, None, (), (), ())):
        assert parse_manifest(pack(manifest)) == manifest


def _tensor(place: int, **changes: Any) -> Manifest:
    tensors = list(TENSORS)
    tensors[place] = dataclasses.replace(tensors[place], **changes)
    return dataclasses.replace(MODEL, tensors=tuple(tensors))


@pytest.mark.parametrize(
    "lie",
    [
        dataclasses.replace(PLAIN, kind="virus"),
        dataclasses.replace(PLAIN, total_len=0),
        dataclasses.replace(PLAIN, total_len=MAX_TOTAL_BYTES),
        dataclasses.replace(PLAIN, leaves=()),
        dataclasses.replace(PLAIN, leaves=(LEAF, LEAF)),
        dataclasses.replace(PLAIN, leaves=(LEAF,) * 4096),
        dataclasses.replace(PLAIN, tensors=TENSORS),
        dataclasses.replace(PLAIN, meta=(("b", ""), ("a", ""))),
        dataclasses.replace(PLAIN, meta=(("a", ""), ("a", ""))),
        dataclasses.replace(MODEL, total_len=2514),
        dataclasses.replace(MODEL, total_len=2512),
        dataclasses.replace(MODEL, header=None),
        dataclasses.replace(MODEL, header=Header(HEADER.digest, 99)),
        dataclasses.replace(MODEL, tensors=()),
        dataclasses.replace(MODEL, tensors=TENSORS[::-1]),
        dataclasses.replace(MODEL, chunk_size=2048),
        _tensor(0, dtype="F33"),
        _tensor(0, dtype="F64"),
        _tensor(0, shape=(300, 3)),
        _tensor(0, shape=(2**43, 2**43)),
        _tensor(0, n_chunks=2),
        _tensor(0, first_chunk=1),
        _tensor(1, name="a"),
        _tensor(1, offset=2499),
        _tensor(1, offset=2501),
        _tensor(1, length=2**44),
        _tensor(3, first_chunk=3),
        _tensor(2, n_chunks=1),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(lie: Manifest) -> None:
    with pytest.raises(ProtocolViolation):
        parse_manifest(pack(lie))


@pytest.mark.parametrize("place", range(8))
@pytest.mark.parametrize("value", [-1, 2**63, 2**64 - 1, "text", None, [], b"", 1.0, True, [[]] * 10_000])
def test_no_field_takes_what_is_not_its_own(place: int, value: object) -> None:
    plain = msgpack.unpackb(pack(MODEL))
    if (type(plain[place]), plain[place]) == (type(value), value) or (place == 7 and value == []):
        return  # its own, or an empty `meta`, which is as good as any
    plain[place] = value
    with pytest.raises(ProtocolViolation):
        parse_manifest(msgpack.packb(plain))


def test_bytes_that_are_no_manifest_are_refused() -> None:
    sound = pack(MODEL)
    for data in (b"", b"\x90", sound + b"\0", sound[:-1], b"\xdd\xff\xff\xff\xff", bytes(MAX_BLOCK_BYTES + 1)):
        with pytest.raises(ProtocolViolation):
            parse_manifest(data)


def test_a_leaf_lists_exactly_what_its_manifest_leaves_to_it() -> None:
    assert parse_leaf(pack(Leaf((LEAF,) * 3)), PLAIN, 0).digests == (LEAF,) * 3
    for leaf in (Leaf((LEAF,) * 2), Leaf((LEAF,) * 4), Leaf((LEAF,) * 4096)):
        with pytest.raises(ProtocolViolation):
            parse_leaf(pack(leaf), PLAIN, 0)


def test_pieces_are_counted_from_zero_to_the_last(model: Path) -> None:
    layout = describe(model, "model").layout()
    for index in (-1, len(layout)):
        with pytest.raises(LocalError):
            layout[index]
