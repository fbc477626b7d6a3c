"""Contents of which only a part is wanted, or which another process writes: over every store there is."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from celluler.content.digest import digest_of
from celluler.content.disk import DiskStore
from celluler.content.manifest import Description, describe
from celluler.content.store import Store
from celluler.errors import BlockAbsent, IntegrityError, LocalError, QuotaExceeded
from tests.support.stores import Opener, file_of, fill, place, put_blocks


def indices_of(have: bytes, pieces: int) -> list[int]:
    return [index for index in range(pieces) if not have or have[index >> 3] >> (index & 7) & 1]


def test_only_what_is_wanted_is_missing_and_counts(store: Store, described: Description, data: bytes) -> None:
    root = put_blocks(store, described)
    before = store.used_bytes()
    store.begin(root, [2, 3, 10])
    assert [piece.index for piece in store.missing(root)] == [2, 3, 10]
    assert store.used_bytes() == before + 2048 + 23
    fill(store, root, data)
    stat = store.stat(root)
    assert (stat.have_bytes, stat.wanted_bytes, stat.complete) == (2048 + 23, 2048 + 23, False)
    assert store.missing(root) == ()
    assert store.get(digest_of(data[2048:3072])) == data[2048:3072]
    with pytest.raises(BlockAbsent):
        store.path(root)


def test_beginning_again_adds_to_what_is_wanted(store: Store, described: Description, data: bytes) -> None:
    root = put_blocks(store, described)
    before = store.used_bytes()
    store.begin(root, [2])
    store.begin(root, [2, 4])
    store.begin(root, [])
    assert [piece.index for piece in store.missing(root)] == [2, 4]
    fill(store, root, data)
    store.begin(root)
    assert len(store.missing(root)) == 9
    assert store.used_bytes() == before + len(data)
    fill(store, root, data)
    assert store.stat(root).complete
    assert store.path(root).read_bytes() == data
    store.begin(root, [1])
    assert store.stat(root).complete
    store.remove(root)
    assert store.used_bytes() == 0


def test_a_bad_index_wants_nothing(store: Store, described: Description) -> None:
    root = put_blocks(store, described)
    for wrong in ([11], [0, -1], [1, 2**40]):
        with pytest.raises(LocalError):
            store.begin(root, wrong)
        assert store.roots() == ()
    store.begin(root, [1])
    used = store.used_bytes()
    for wrong in ([11], [0, -1]):
        with pytest.raises(LocalError):
            store.begin(root, wrong)
    assert [piece.index for piece in store.missing(root)] == [1]
    assert store.used_bytes() == used


def test_the_header_of_a_model_is_always_wanted(store: Store, tmp_path: Path) -> None:
    tensors = {f"layer{number}": np.arange(600, dtype=np.float32) + number for number in range(3)}
    file = file_of(tmp_path, save(tensors))
    described = describe(file, "model", chunk_size=1024)
    store.begin(put_blocks(store, described), [4])
    assert [piece.index for piece in store.missing(described.root)] == [0, 4]


def test_a_piece_that_comes_unasked_is_wanted_from_then_on(store: Store, described: Description, data: bytes) -> None:
    root = put_blocks(store, described)
    store.begin(root, [0])
    used = store.used_bytes()
    store.put_chunk(root, 5, data[5 * 1024 : 6 * 1024])
    place(store, described, data, [6])
    assert store.used_bytes() == used + 2048
    assert store.stat(root).wanted_bytes == 3072
    assert [piece.index for piece in store.missing(root)] == [0]


def test_what_is_wanted_must_fit_the_quota_and_no_more(open_store: Opener, described: Description) -> None:
    overhead = len(described.manifest_bytes) + len(described.leaves[0])
    store = open_store(overhead + 2048)
    root = put_blocks(store, described)
    with pytest.raises(QuotaExceeded):
        store.begin(root)
    store.begin(root, [0, 1])
    with pytest.raises(QuotaExceeded):
        store.begin(root, [2])
    assert [piece.index for piece in store.missing(root)] == [0, 1]
    assert store.used_bytes() == overhead + 2048


def test_what_is_here_is_said_bit_by_bit(store: Store, described: Description, data: bytes) -> None:
    root = put_blocks(store, described)
    with pytest.raises(BlockAbsent):
        store.have(root)
    store.begin(root, [3, 9])
    assert indices_of(store.have(root), 11) == []
    fill(store, root, data)
    assert indices_of(store.have(root), 11) == [3, 9]
    store.begin(root)
    fill(store, root, data)
    assert store.have(root) == b""


def test_pieces_placed_by_another_process_are_kept(store: Store, described: Description, data: bytes) -> None:
    root = put_blocks(store, described)
    store.begin(root)
    assert store.part(root).stat().st_size == len(data)
    place(store, described, data, [7, 2, 2])
    assert store.stat(root).have_bytes == 2048
    assert store.get(digest_of(data[7 * 1024 : 8 * 1024])) == data[7 * 1024 : 8 * 1024]
    store.put_chunk(root, 0, data[:1024])
    place(store, described, data, [index for index in range(11) if index not in (0, 2, 7)])
    assert store.stat(root).complete
    assert store.path(root).read_bytes() == data
    store.placed(root, [3])
    with pytest.raises(LocalError):
        store.part(root)


def test_placing_what_is_no_piece_keeps_nothing(store: Store, described: Description, data: bytes) -> None:
    root = put_blocks(store, described)
    for call in (lambda: store.part(root), lambda: store.placed(root, [0])):
        with pytest.raises(BlockAbsent):
            call()
    store.begin(root)
    with pytest.raises(LocalError):
        place_raw(store, root, data, [0, 11])
    assert store.stat(root).have_bytes == 0
    store.placed(root, [])


def place_raw(store: Store, root: bytes, data: bytes, indices: list[int]) -> None:
    store.part(root).write_bytes(data)
    store.placed(root, indices)


def test_what_was_placed_falsely_is_never_given_out(store: Store, described: Description, data: bytes) -> None:
    root = put_blocks(store, described)
    store.begin(root)
    broken = digest_of(data[1024:2048])
    try:  # a store that reads what was placed notices at once, one that trusts its own processes when it is read
        place_raw(store, root, data[:1500] + b"?" + data[1501:], [1])
    except IntegrityError:
        assert not store.has(broken)
    else:
        with pytest.raises(IntegrityError):
            store.get(broken)
    assert 1 in [piece.index for piece in store.missing(root)]


def test_the_part_that_is_here_can_be_read_as_a_file(store: Store, described: Description, data: bytes) -> None:
    root = put_blocks(store, described)
    with pytest.raises(BlockAbsent):
        store.partial(root, [])
    store.begin(root, [4, 8])
    with pytest.raises(BlockAbsent):
        store.partial(root, [4])
    fill(store, root, data)
    with store.partial(root, [4, 8]).open("rb") as file:
        whole = file.read()
    assert len(whole) == len(data)
    assert whole[4096:5120] == data[4096:5120]
    assert whole[8192:9216] == data[8192:9216]
    for wrong in ([4, 5], [11], [-1]):
        with pytest.raises((BlockAbsent, LocalError)):
            store.partial(root, wrong)
    store.begin(root)
    fill(store, root, data)
    assert store.partial(root, [0, 10]).read_bytes() == data


def test_pieces_wanted_later_are_taken_over_from_other_contents(
    store: Store, described: Description, data: bytes, tmp_path: Path
) -> None:
    first = file_of(tmp_path, data[: 5 * 1024] + random.Random(8).randbytes(700))
    other = describe(first, "blob", chunk_size=1024)
    store.begin(put_blocks(store, other))
    fill(store, other.root, first.read_bytes())
    root = put_blocks(store, described)
    store.begin(root, [0, 7])
    assert [piece.index for piece in store.missing(root)] == [7]
    store.begin(root, [1, 2, 9])
    assert [piece.index for piece in store.missing(root)] == [7, 9]
    store.begin(root)
    fill(store, root, data)
    assert store.path(root).read_bytes() == data


def test_adding_the_file_completes_a_part(store: Store, data: bytes, tmp_path: Path) -> None:
    file = file_of(tmp_path, data)
    described = describe(file, "blob")
    store.begin(put_blocks(store, described), [])
    assert store.add(file, "blob") == described.root
    stat = store.stat(described.root)
    assert (stat.complete, stat.wanted_bytes, stat.pinned) == (True, len(data), True)
    assert store.used_bytes() == len(described.manifest_bytes) + len(described.leaves[0]) + len(data)


def test_a_part_outlives_the_store_that_began_it(tmp_path: Path, described: Description, data: bytes) -> None:
    store = DiskStore(tmp_path / "store", 1 << 20)
    root = put_blocks(store, described)
    store.begin(root, [1, 6])
    place(store, described, data, [6])
    store.pin(root)
    store.close()
    store = DiskStore(tmp_path / "store", 1 << 20)
    stat = store.stat(root)
    assert (stat.have_bytes, stat.wanted_bytes, stat.pinned) == (1024, 2048, True)
    assert [piece.index for piece in store.missing(root)] == [1]
    assert store.used_bytes() == len(described.manifest_bytes) + len(described.leaves[0]) + 2048
    store.begin(root)
    fill(store, root, data)
    assert store.path(root).read_bytes() == data
    store.close()
