"""Reading a disk store beside the process that writes it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from celluler.content.digest import Digest, digest_of
from celluler.content.disk import DiskStore
from celluler.content.manifest import MAX_BLOCK_BYTES, Description, describe
from celluler.content.reader import StoreReader
from celluler.errors import BlockAbsent, IntegrityError

DATA = random.Random(2).randbytes(6 * 1024 + 7)
CHUNKS = [DATA[at : at + 1024] for at in range(0, len(DATA), 1024)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    store = DiskStore(tmp_path / "store", 1 << 22)
    yield store
    store.close()


@pytest.fixture
def reader(store: DiskStore, tmp_path: Path) -> Iterator[StoreReader]:
    with StoreReader(tmp_path / "store") as reader:
        yield reader


@pytest.fixture
def described(store: DiskStore, tmp_path: Path) -> Description:
    """Begun, and nothing of it there."""
    (tmp_path / "file").write_bytes(DATA)
    described = describe(tmp_path / "file", "blob", chunk_size=1024)
    for block in (described.manifest_bytes, *described.leaves):
        store.put_block(block)
    store.begin(described.root)
    return described


def fill(store: DiskStore, root: bytes) -> None:
    for index, chunk in enumerate(CHUNKS):
        store.put_chunk(root, index, chunk)


def test_a_reader_sees_pieces_as_they_come(store: DiskStore, reader: StoreReader, described: Description) -> None:
    with reader.open_content(described.root) as content:
        assert content.have() == b"\0"
        assert content.find(digest_of(CHUNKS[3])) is None
        store.put_chunk(described.root, 3, CHUNKS[3])
        assert content.read(digest_of(CHUNKS[3])) == CHUNKS[3]
        assert content.read(digest_of(CHUNKS[2])) is None
        assert content.have() == bytes([1 << 3])


def test_a_reader_keeps_the_file_open_when_it_is_completed_and_when_it_is_removed(
    store: DiskStore, reader: StoreReader, described: Description
) -> None:
    store.put_chunk(described.root, 0, CHUNKS[0])
    with reader.open_content(described.root) as content:
        assert content.read(digest_of(CHUNKS[0])) == CHUNKS[0]
        assert not content.complete()
        fill(store, described.root)
        assert content.complete()
        assert content.have() == b""
        assert [content.read(digest_of(chunk)) for chunk in CHUNKS] == CHUNKS
        placement = content.find(digest_of(CHUNKS[1]))
        assert placement is not None
        store.remove(described.root)
        assert os.pread(placement.descriptor, placement.length, placement.offset) == CHUNKS[1]
        assert content.read(digest_of(CHUNKS[1])) is None


def test_a_reader_finds_the_other_file_when_a_begun_content_is_added(
    store: DiskStore, reader: StoreReader, tmp_path: Path
) -> None:
    file, first, second = tmp_path / "large", random.Random(3).randbytes(MAX_BLOCK_BYTES), b"the rest"
    file.write_bytes(first + second)
    described = describe(file, "blob")
    for block in (described.manifest_bytes, *described.leaves):
        store.put_block(block)
    store.begin(described.root)
    store.put_chunk(described.root, 1, second)
    with reader.open_content(described.root) as content:
        assert content.read(digest_of(second)) == second
        assert store.add(file, "blob") == described.root
        assert content.read(digest_of(first)) == first
        assert content.read(digest_of(second)) == second


def test_what_does_not_hash_is_never_given_out(store: DiskStore, reader: StoreReader, described: Description) -> None:
    fill(store, described.root)
    path = store.path(described.root)
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(2 * 1024)
        file.write(b"?")
    with reader.open_content(described.root) as content:
        assert content.read(digest_of(CHUNKS[2])) is None
        assert content.read(digest_of(CHUNKS[1])) == CHUNKS[1]
        path.unlink()
    with reader.open_content(described.root) as content:
        assert content.read(digest_of(CHUNKS[1])) is None


def test_a_piece_is_hashed_once(
    store: DiskStore, reader: StoreReader, described: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[int] = []

    def count(data: bytes) -> Digest:
        hashed.append(len(data))
        return digest_of(data)

    monkeypatch.setattr("celluler.content.reader.digest_of", count)
    fill(store, described.root)
    with reader.open_content(described.root) as content:
        for _ in range(3):
            assert content.read(digest_of(CHUNKS[1])) == CHUNKS[1]
    assert hashed == [1024]


def test_a_content_nobody_began_is_absent(reader: StoreReader, described: Description) -> None:
    with pytest.raises(BlockAbsent):
        reader.open_content(digest_of(b"another"))
    with reader.open_content(described.root) as content:
        assert content.read(digest_of(b"a chunk of something else")) is None


def test_a_folder_without_a_store_is_refused_and_stays_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError):
        StoreReader(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
