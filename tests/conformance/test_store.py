"""What every store guarantees, over every store there is."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from celluler.content.digest import digest_of
from celluler.content.disk import DiskStore
from celluler.content.manifest import MAX_BLOCK_BYTES, Description, Leaf, Manifest, describe
from celluler.content.store import Store
from celluler.errors import BlockAbsent, CorruptBlock, IntegrityError, LocalError, ProtocolViolation, QuotaExceeded
from celluler.wire import pack
from tests.support.stores import Opener, file_of, fill, put_blocks


def test_a_block_comes_back_as_it_was_put(store: Store) -> None:
    digest = store.put_block(b"hello")
    assert digest == digest_of(b"hello")
    assert store.get(digest) == b"hello"
    assert store.has(digest)


def test_the_empty_block_is_a_block(store: Store) -> None:
    assert store.get(store.put_block(b"")) == b""


def test_an_unknown_digest_is_absent(store: Store) -> None:
    digest = digest_of(b"nobody put this")
    assert not store.has(digest)
    for ask in (store.get, store.missing, store.stat, store.path, store.begin):
        with pytest.raises(BlockAbsent) as caught:
            ask(digest)
        assert caught.value.digest == digest
    with pytest.raises(BlockAbsent):
        store.put_chunk(digest, 0, b"")


def test_a_block_above_the_limit_is_refused(store: Store) -> None:
    store.put_block(bytes(MAX_BLOCK_BYTES))
    with pytest.raises(LocalError):
        store.put_block(bytes(MAX_BLOCK_BYTES + 1))


def test_the_same_block_twice_counts_once(store: Store) -> None:
    store.put_block(b"x" * 100)
    store.put_block(b"x" * 100)
    assert store.used_bytes() == 100


def test_a_content_put_piece_by_piece_becomes_the_file(store: Store, described: Description, data: bytes) -> None:
    root = put_blocks(store, described)
    store.begin(root)
    assert [piece.index for piece in store.missing(root)] == list(range(11))
    for piece in reversed(store.missing(root)):
        with pytest.raises(BlockAbsent):
            store.path(root)
        store.put_chunk(root, piece.index, memoryview(data)[piece.offset : piece.offset + piece.length])
    assert store.missing(root) == ()
    assert store.path(root).read_bytes() == data
    stat = store.stat(root)
    assert (stat.kind, stat.total_bytes, stat.have_bytes, stat.complete) == ("blob", len(data), len(data), True)
    assert stat.last_used_s == 7.0


def test_a_half_filled_content_serves_the_pieces_it_has(store: Store, described: Description, data: bytes) -> None:
    root = put_blocks(store, described)
    store.begin(root)
    last = store.missing(root)[-1]
    assert not store.has(last.digest)
    store.put_chunk(root, last.index, data[last.offset :])
    assert store.has(last.digest)
    assert store.get(last.digest) == data[last.offset :]
    assert store.stat(root).have_bytes == last.length
    assert not store.stat(root).complete


def test_beginning_again_keeps_what_is_there(store: Store, described: Description, data: bytes) -> None:
    root = put_blocks(store, described)
    store.begin(root)
    store.put_chunk(root, 10, data[10 * 1024 :])
    store.begin(root)
    assert 10 not in [piece.index for piece in store.missing(root)]
    assert store.roots() == (root,)


def test_a_corrupt_chunk_is_never_stored(store: Store, described: Description, data: bytes) -> None:
    root = put_blocks(store, described)
    store.begin(root)
    for wrong in (b"", b"short", data[:1023] + b"?", data[:1025]):
        with pytest.raises(CorruptBlock) as caught:
            store.put_chunk(root, 0, wrong)
        assert caught.value.digest == digest_of(data[:1024])
    assert store.stat(root).have_bytes == 0
    fill(store, root, data)
    with pytest.raises(CorruptBlock):
        store.put_chunk(root, 0, b"even when it is complete")
    assert store.path(root).read_bytes() == data


def test_a_bad_index_is_a_local_error(store: Store, described: Description) -> None:
    store.begin(put_blocks(store, described))
    for index in (-1, 11, 2**62):
        with pytest.raises(LocalError):
            store.put_chunk(described.root, index, b"")


def test_a_piece_that_is_not_in_it_is_refused_of_a_whole_content_too(
    store: Store, described: Description, tmp_path: Path, data: bytes
) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    root = store.add(path, described.manifest.kind)
    with pytest.raises(LocalError):
        store.begin(root, [len(described.layout())])
    store.begin(root, [0])


def test_begin_refuses_a_manifest_without_its_leaves(store: Store, described: Description) -> None:
    root = store.put_block(described.manifest_bytes)
    with pytest.raises(BlockAbsent):
        store.begin(root)
    assert store.roots() == ()


def test_begin_refuses_bytes_that_are_no_manifest(store: Store) -> None:
    with pytest.raises(ProtocolViolation):
        store.begin(store.put_block(b"not a manifest"))
    assert store.roots() == ()


def test_a_chunk_longer_than_its_manifest_says_is_the_manifests_lie(store: Store) -> None:
    leaf = pack(Leaf((digest_of(b"eleven byte"),)))
    root = store.put_block(pack(Manifest(1, "blob", 5, 1024, None, (), (digest_of(leaf),), ())))
    store.put_block(leaf)
    store.begin(root)
    with pytest.raises(ProtocolViolation, match="manifest"):
        store.put_chunk(root, 0, b"eleven byte")
    assert store.stat(root).have_bytes == 0


def test_an_added_file_is_complete_and_the_original_may_go(store: Store, tmp_path: Path, data: bytes) -> None:
    original = tmp_path / "original"
    original.write_bytes(data)
    root = store.add(original, "dataset")
    original.unlink()
    assert root == store.add(store.path(root), "dataset")
    assert store.path(root).read_bytes() == data
    assert store.stat(root).kind == "dataset"
    assert store.get(root)
    assert store.roots() == (root,)


def test_adding_completes_a_content_that_was_begun(store: Store, tmp_path: Path, data: bytes) -> None:
    description = describe(file_of(tmp_path, data), "blob")
    store.begin(put_blocks(store, description))
    assert store.add(file_of(tmp_path, data), "blob") == description.root
    assert store.missing(description.root) == ()
    assert store.path(description.root).read_bytes() == data


def test_an_empty_file_is_complete_at_once(store: Store, tmp_path: Path) -> None:
    root = put_blocks(store, describe(file_of(tmp_path, b""), "blob"))
    store.begin(root)
    assert store.stat(root).complete
    assert store.path(root).read_bytes() == b""
    store.remove(root)
    assert store.add(file_of(tmp_path, b""), "blob") == root
    assert store.path(root).read_bytes() == b""


def test_adding_what_is_not_there_is_a_local_error(store: Store, tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(LocalError):
            store.add(path, "blob")
    with pytest.raises(LocalError):
        store.add(file_of(tmp_path, b"x"), "no such kind")
    assert store.used_bytes() == 0


def test_a_new_version_takes_over_the_pieces_it_shares(store: Store, tmp_path: Path, data: bytes) -> None:
    first = describe(file_of(tmp_path, data), "blob", chunk_size=1024)
    store.begin(put_blocks(store, first))
    fill(store, first.root, data)
    changed = data[:5000] + b"!" + data[5001:]
    second = describe(file_of(tmp_path, changed), "blob", chunk_size=1024)
    store.begin(put_blocks(store, second))
    assert [piece.offset // 1024 for piece in store.missing(second.root)] == [4]
    fill(store, second.root, changed)
    store.remove(first.root)
    assert store.path(second.root).read_bytes() == changed
    assert store.get(digest_of(data[:1024])) == data[:1024]


def test_a_content_that_repeats_a_chunk_holds_it_at_every_place(store: Store, tmp_path: Path) -> None:
    data = bytes(5000)
    root = put_blocks(store, describe(file_of(tmp_path, data), "blob", chunk_size=1024))
    store.begin(root)
    fill(store, root, data)
    assert store.path(root).read_bytes() == data


def test_removing_a_content_frees_everything_it_used(store: Store, described: Description, data: bytes) -> None:
    root = put_blocks(store, described)
    lone = store.put_block(b"lone")
    store.begin(root)
    fill(store, root, data)
    path = store.path(root)
    store.remove(root)
    store.remove(root)
    assert store.used_bytes() == 4
    assert store.roots() == ()
    assert not path.exists()
    assert not store.has(root)
    assert not store.has(digest_of(data[:1024]))
    store.remove(lone)
    assert store.used_bytes() == 0


def test_a_leaf_goes_with_the_last_content_that_needs_it(store: Store, tmp_path: Path, data: bytes) -> None:
    kinds = [describe(file_of(tmp_path, data), kind, chunk_size=1024) for kind in ("blob", "dataset")]
    for description in kinds:
        store.begin(put_blocks(store, description))
    leaf = digest_of(kinds[0].leaves[0])
    with pytest.raises(LocalError):
        store.remove(leaf)
    store.remove(kinds[0].root)
    assert store.has(leaf)
    store.begin(kinds[1].root)
    store.remove(kinds[1].root)
    assert not store.has(leaf)


def test_what_does_not_fit_the_quota_changes_nothing(open_store: Opener, tmp_path: Path, data: bytes) -> None:
    description = describe(file_of(tmp_path, data), "blob")
    overhead = len(description.manifest_bytes) + len(description.leaves[0])
    store = open_store(overhead + len(data) - 1)
    with pytest.raises(QuotaExceeded):
        store.add(file_of(tmp_path, data), "blob")
    assert (store.used_bytes(), store.roots(), store.has(description.root)) == (0, (), False)
    put_blocks(store, description)
    with pytest.raises(QuotaExceeded):
        store.begin(description.root)
    assert (store.used_bytes(), store.roots()) == (overhead, ())
    with pytest.raises(QuotaExceeded):
        store.put_block(b"x" * len(data))
    exact = open_store(overhead + len(data))
    exact.add(file_of(tmp_path, data), "blob")
    assert exact.add(file_of(tmp_path, data), "blob") == description.root


def test_a_content_counts_in_full_from_its_beginning(store: Store, described: Description, data: bytes) -> None:
    root = put_blocks(store, described)
    before = store.used_bytes()
    store.begin(root)
    assert store.used_bytes() == before + len(data)
    fill(store, root, data)
    assert store.used_bytes() == before + len(data)


def test_threads_may_fill_one_content_together(store: Store, described: Description, data: bytes) -> None:
    root = put_blocks(store, described)
    store.begin(root)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            fill(store, root, data)
            for piece in range(11):
                store.get(digest_of(data[piece * 1024 : (piece + 1) * 1024]))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert errors == []
    assert store.path(root).read_bytes() == data
    assert store.stat(root).have_bytes == len(data)


def test_threads_may_put_and_remove_at_the_same_time(store: Store, described: Description, data: bytes) -> None:
    errors: list[BaseException] = []

    def work(remove: bool) -> None:
        for _ in range(8):
            try:
                if remove:
                    store.remove(described.root)
                else:
                    store.begin(put_blocks(store, described))
                    fill(store, described.root, data)
            except BlockAbsent:
                pass
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=work, args=(place == 0,)) for place in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert errors == []
    store.begin(put_blocks(store, described))
    fill(store, described.root, data)
    assert store.path(described.root).read_bytes() == data


def test_a_damaged_copy_is_reported_forgotten_and_repaired(store: Store, described: Description, data: bytes) -> None:
    if not isinstance(store, DiskStore):
        pytest.skip("only a disk rots")
    root = put_blocks(store, described)
    store.begin(root)
    fill(store, root, data)
    path = store.path(root)
    path.chmod(0o644)
    path.write_bytes(data[:3000] + b"?" + data[3001:])
    broken = digest_of(data[2048:3072])
    with pytest.raises(IntegrityError):
        store.get(broken)
    assert not store.has(broken)
    assert [piece.digest for piece in store.missing(root)] == [broken]
    with pytest.raises(BlockAbsent):
        store.path(root)
    fill(store, root, data)
    assert store.path(root).read_bytes() == data


def test_closing_twice_changes_nothing(store: Store) -> None:
    store.close()
    store.close()
