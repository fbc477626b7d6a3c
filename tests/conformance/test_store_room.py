"""Room: what is pinned and held, what is evicted and in which order, what is damaged. Over every store there is."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from celluler.content.digest import Digest, digest_of
from celluler.content.disk import DiskStore
from celluler.content.manifest import Description, describe
from celluler.content.memory import MemoryStore
from celluler.content.store import Store
from celluler.errors import BlockAbsent, LocalError, QuotaExceeded
from tests.support.stores import QUOTA_BYTES, Opener, file_of, fill, put_blocks

CONTENT_BYTES = 4000


@pytest.fixture
def clock() -> Callable[[], float]:
    """Every reading is later than the one before."""
    seconds = iter(range(1, 10**6))
    return lambda: float(next(seconds))


@pytest.fixture
def store(open_store: Opener, clock: Callable[[], float]) -> Store:
    return open_store(QUOTA_BYTES, clock=clock)


@pytest.fixture
def add(store: Store, tmp_path: Path) -> Callable[[int], Digest]:
    """Adds content number so and so, not pinned."""
    return lambda number: store.add(file_of(tmp_path, content(number)), "blob", pin=False)


def content(number: int) -> bytes:
    return random.Random(number).randbytes(CONTENT_BYTES)


def test_what_a_user_adds_is_pinned_and_what_is_fetched_is_not(
    store: Store, tmp_path: Path, described: Description, data: bytes
) -> None:
    added = store.add(file_of(tmp_path, content(1)), "blob")
    fetched = put_blocks(store, described)
    store.begin(fetched)
    fill(store, fetched, data)
    assert (store.stat(added).pinned, store.stat(fetched).pinned) == (True, False)
    store.pin(fetched)
    store.unpin(added)
    assert (store.stat(added).pinned, store.stat(fetched).pinned) == (False, True)
    store.add(store.path(added), "blob", pin=False)
    assert not store.stat(added).pinned
    store.add(store.path(added), "blob")
    store.add(store.path(added), "blob", pin=False)
    assert store.stat(added).pinned


def test_what_is_not_here_cannot_be_pinned(store: Store) -> None:
    for call in (store.pin, store.unpin):
        with pytest.raises(BlockAbsent):
            call(digest_of(b"nothing"))


def test_the_least_recently_used_go_first_until_the_target_is_met(store: Store, add: Callable[[int], Digest]) -> None:
    roots = [add(number) for number in range(4)]
    store.path(roots[0])
    with store.hold(roots[1]):
        pass
    lone = store.put_block(b"lone")
    used = store.used_bytes()
    planned = store.collect(used - CONTENT_BYTES * 3 // 2, dry_run=True)
    assert [stat.root for stat in planned] == [roots[2], roots[3]]
    assert store.used_bytes() == used
    went = store.collect(used - CONTENT_BYTES * 3 // 2)
    assert went == planned
    assert set(store.roots()) == {roots[0], roots[1]}
    assert store.used_bytes() <= used - 2 * CONTENT_BYTES
    assert store.collect(used) == ()
    assert len(store.collect(0)) == 2
    assert (store.used_bytes(), store.has(lone)) == (4, True)


def test_what_is_pinned_or_held_stays(store: Store, add: Callable[[int], Digest]) -> None:
    pinned, held, other = (add(number) for number in range(3))
    store.pin(pinned)
    with store.hold(held), store.hold(held):
        assert [stat.root for stat in store.collect(0, dry_run=True)] == [other]
        assert [stat.root for stat in store.collect(0)] == [other]
    assert set(store.roots()) == {pinned, held}
    assert [stat.root for stat in store.collect(0)] == [held]
    store.remove(pinned)
    assert store.used_bytes() == 0


def test_what_is_held_is_not_removed(store: Store, add: Callable[[int], Digest]) -> None:
    root = add(1)
    first, second = store.hold(root), store.hold(root)
    with first:
        with second:
            assert store.stat(root).in_use
        with pytest.raises(LocalError, match="in use"):
            store.remove(root)
        assert store.path(root).read_bytes() == content(1)
    assert not store.stat(root).in_use
    store.remove(root)
    with store.hold(root), pytest.raises(BlockAbsent):  # what is not here may be held
        store.path(root)


def test_a_leaf_that_contents_share_is_freed_with_the_last_of_them(store: Store, tmp_path: Path) -> None:
    for kind in ("blob", "dataset", "model"):
        store.add(file_of(tmp_path, content(1)), kind, pin=False)
    manifest_bytes, leaf_bytes = 200, len(describe(file_of(tmp_path, content(1)), "blob").leaves[0])
    for left in (1, 2, 3):
        least = left * CONTENT_BYTES + leaf_bytes  # without their manifests, which count too
        assert len(store.collect(least + left * manifest_bytes, dry_run=True)) == 3 - left
        assert len(store.collect(least, dry_run=True)) == 4 - left
    assert len(store.collect(0)) == 3
    assert store.used_bytes() == 0


def test_a_store_that_evicts_makes_room(open_store: Opener, clock: Callable[[], float], tmp_path: Path) -> None:
    gone: list[Digest] = []
    store = open_store(4 * CONTENT_BYTES, clock=clock, evicts=True, on_evict=gone.extend)
    roots = [store.add(file_of(tmp_path, content(number)), "blob", pin=False) for number in range(3)]
    store.path(roots[0])
    roots.append(store.add(file_of(tmp_path, content(3)), "blob"))
    assert gone == [roots[1]]
    described = describe(file_of(tmp_path, content(4)), "blob", chunk_size=1024)
    store.begin(put_blocks(store, described))
    assert gone == [roots[1], roots[2]]
    with store.hold(described.root):
        store.put_block(bytes(CONTENT_BYTES))
    assert gone == [roots[1], roots[2], roots[0]]
    assert set(store.roots()) == {roots[3], described.root}


def test_nothing_is_evicted_for_what_will_not_fit_anyway(open_store: Opener, tmp_path: Path) -> None:
    gone: list[Digest] = []
    store = open_store(4 * CONTENT_BYTES, evicts=True, on_evict=gone.extend)
    fetched = store.add(file_of(tmp_path, content(1)), "blob", pin=False)
    store.add(file_of(tmp_path, content(2)), "blob")
    for call in (
        lambda: store.put_block(bytes(3 * CONTENT_BYTES)),
        lambda: store.add(file_of(tmp_path, bytes(3 * CONTENT_BYTES)), "blob"),
    ):
        with pytest.raises(QuotaExceeded):
            call()
    assert (gone, store.has(fetched)) == ([], True)


def test_a_begun_content_is_not_evicted_for_its_own_sake(open_store: Opener, described: Description) -> None:
    overhead = len(described.manifest_bytes) + len(described.leaves[0])
    store = open_store(overhead + 2048, evicts=True)
    root = put_blocks(store, described)
    store.begin(root, [0, 1])
    with pytest.raises(QuotaExceeded):
        store.begin(root)
    assert [piece.index for piece in store.missing(root)] == [0, 1]


def test_a_content_whose_leaf_is_needed_stays_for_the_sake_of_the_next(
    open_store: Opener, clock: Callable[[], float], tmp_path: Path
) -> None:
    store = open_store(2 * CONTENT_BYTES + 1000, clock=clock, evicts=True)
    file = file_of(tmp_path, content(1))
    store.add(file, "blob", pin=False)
    other = store.add(file_of(tmp_path, content(2)), "blob", pin=False)
    same = describe(file, "dataset")
    store.put_block(same.manifest_bytes)
    store.begin(same.root)
    assert store.missing(same.root) == ()
    assert store.path(same.root).read_bytes() == content(1)
    assert other not in store.roots()


def test_what_evicting_tells_is_told_outside_of_locks(open_store: Opener, tmp_path: Path) -> None:
    done = []

    def ask_the_store_from_elsewhere(roots: tuple[Digest, ...]) -> None:
        thread = threading.Thread(target=lambda: done.append((store.roots(), store.has(roots[0]))), daemon=True)
        thread.start()
        thread.join(10)

    store = open_store(2 * CONTENT_BYTES, evicts=True, on_evict=ask_the_store_from_elsewhere)
    store.add(file_of(tmp_path, content(1)), "blob", pin=False)
    store.add(file_of(tmp_path, content(2)), "blob", pin=False)
    store.collect(0)
    assert len(done) == 2


def test_threads_may_hold_fill_and_evict_at_the_same_time(
    open_store: Opener, data: bytes, described: Description
) -> None:
    store = open_store(QUOTA_BYTES, evicts=True)
    errors: list[BaseException] = []

    def use() -> None:
        try:
            for _ in range(12):
                with store.hold(described.root):
                    store.begin(put_blocks(store, described))
                    fill(store, described.root, data)
                    assert store.path(described.root).read_bytes() == data
        except BaseException as error:
            errors.append(error)

    def evict() -> None:
        for _ in range(40):
            store.collect(0)

    threads = [threading.Thread(target=work) for work in (use, use, evict)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert errors == []


def test_a_sound_content_verifies(store: Store, described: Description, data: bytes) -> None:
    root = put_blocks(store, described)
    with pytest.raises(BlockAbsent):
        store.verify(root)
    store.begin(root)
    store.put_chunk(root, 3, data[3072:4096])
    assert store.verify(root) == (root, 1024, ())
    fill(store, root, data)
    assert store.verify(root, repair=True) == (root, len(data), ())
    blocks = len(described.manifest_bytes) + sum(map(len, described.leaves))
    assert store.verify_blocks() == (blocks, ())


def test_damage_is_found_and_forgotten_only_when_asked(store: Store, described: Description, data: bytes) -> None:
    root = put_blocks(store, described)
    store.begin(root)
    fill(store, root, data)
    damage(store, root, 2050)
    for _ in range(2):
        checked = store.verify(root)
        assert [piece.index for piece in checked.damaged] == [2]
        assert store.stat(root).complete
    assert store.verify(root, repair=True) == checked
    assert [piece.index for piece in store.missing(root)] == [2]
    assert store.verify(root).damaged == ()
    fill(store, root, data)
    assert store.verify(root) == (root, len(data), ())
    assert store.path(root).read_bytes() == data


def test_a_damaged_block_is_found_and_forgotten_only_when_asked(store: Store) -> None:
    digest, sound = store.put_block(b"a block"), store.put_block(b"another")
    if isinstance(store, MemoryStore):
        store._blocks[digest] = b"a brick"
    else:
        assert isinstance(store, DiskStore)
        store._index._db.execute("UPDATE block SET data = ? WHERE digest = ?", (b"a brick", digest))
    assert store.verify_blocks() == (14, (digest,))
    assert store.has(digest)
    assert store.verify_blocks(repair=True) == (14, (digest,))
    assert (store.has(digest), store.has(sound), store.used_bytes()) == (False, True, 7)


def damage(store: Store, root: bytes, place: int) -> None:
    if isinstance(store, MemoryStore):
        pieces = store._contents[root].pieces
        pieces[place // 1024] = b"?" * len(pieces[place // 1024])
        return
    path = store.path(root)
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"?")
