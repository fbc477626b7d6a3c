"""The disk store when any single step of its work is the last one, or fails: power cuts, full disks."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from celluler.content import disk, disk_filling
from celluler.content.digest import digest_of
from celluler.content.disk import DiskStore
from celluler.content.index import Index
from celluler.content.manifest import Description, describe
from celluler.errors import CellulerError, IntegrityError, QuotaExceeded
from tests.support.stores import fill, folder_in_memory, put_blocks

pytestmark = pytest.mark.thorough

QUOTA_BYTES = 1 << 20
DATA = random.Random(5).randbytes(9 * 1024 + 5)
OTHER = DATA[:4096] + random.Random(6).randbytes(3000)


class PowerCut(BaseException):
    """Nothing of ours runs after it."""


class Machine:
    """Counts the steps that reach the disk; the chosen one is prevented, or is the last. Knows what was not synced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps, self.chosen, self.error = 0, -1, PowerCut("cut")
        self.unsynced: dict[str, list[tuple[int, int]]] = {}
        self._files: dict[int, str] = {}
        for name in ("pwrite", "copy_file_range", "ftruncate", "fdatasync", "replace", "fsync", "unlink"):
            monkeypatch.setattr(os, name, self._step(getattr(os, name), getattr(self, f"_{name}", None)))
        for name in (
            "begin", "want", "mark_written", "mark_synced", "complete", "add_whole", "pin", "remove",
            "evict", "put_block", "touch",
        ):  # fmt: skip
            monkeypatch.setattr(Index, name, self._step(getattr(Index, name), None))
        monkeypatch.setattr(disk.shutil, "copyfile", self._step(disk.shutil.copyfile, None))
        monkeypatch.setattr(disk_filling, "SYNC_BYTES", 3 * 1024)

    def _step(self, real: Callable[..., Any], after: Callable[..., None] | None) -> Callable[..., Any]:
        def step(*args: Any, **options: Any) -> Any:
            self._count()
            result = real(*args, **options)
            if after is not None:
                after(*args)
            if isinstance(self.error, PowerCut):
                self._count()  # done, and then the lights go out
            return result

        return step

    def _count(self) -> None:
        self.steps += 1
        dark = self.steps > self.chosen > 0 and isinstance(self.error, PowerCut)
        if self.steps == self.chosen or dark:
            raise self.error

    def _pwrite(self, descriptor: int, data: memoryview, place: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        self.unsynced.setdefault(path, []).append((place, len(data)))

    def _copy_file_range(self, source: int, target: int, count: int, place: int, to: int) -> None:
        path = os.readlink(f"/proc/self/fd/{target}")
        self.unsynced.setdefault(path, []).append((to, count))

    def _fdatasync(self, descriptor: int) -> None:
        self.unsynced.pop(os.readlink(f"/proc/self/fd/{descriptor}"), None)

    def restart(self, store: DiskStore) -> None:
        """What was written and never synced is zeros now, and the process's lock is gone."""
        self.chosen = -1
        os.close(store._lock_file)
        store._index.close()
        for path, places in self.unsynced.items():
            if Path(path).exists():
                with open(path, "r+b") as file:
                    for place, length in places:
                        file.seek(place)
                        file.write(bytes(length))
        self.unsynced.clear()


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with folder_in_memory() as folder:
        yield folder


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def work(store: DiskStore, folder: Path) -> Iterator[Callable[[], object]]:
    """A little of everything, one call of the store at a time."""
    (folder / "data").write_bytes(DATA)
    (folder / "other").write_bytes(OTHER)
    described = describe(folder / "data", "blob", chunk_size=1024)
    for block in (described.manifest_bytes, *described.leaves):
        yield lambda block=block: store.put_block(block)
    yield lambda: store.begin(described.root)
    for piece in described.layout():
        data = DATA[piece.offset : piece.offset + piece.length]
        yield lambda piece=piece, data=data: store.put_chunk(described.root, piece.index, data)
    yield lambda: store.pin(described.root)
    second = describe(folder / "other", "blob", chunk_size=1024)
    for block in (second.manifest_bytes, *second.leaves):
        yield lambda block=block: store.put_block(block)
    yield lambda: store.begin(second.root, [1, 5])
    yield lambda: place(store, second, [5])
    yield lambda: store.begin(second.root)
    yield lambda: place(store, second, [4, 6])
    yield lambda: store.add(folder / "other", "dataset")
    yield lambda: store.path(described.root)
    yield lambda: store.collect(0)
    yield lambda: store.remove(second.root)


def place(store: DiskStore, described: Description, indices: Sequence[int]) -> None:
    """As another process does it."""
    if store.stat(described.root).complete:
        return
    layout = described.layout()
    with store.hold(described.root), store.part(described.root).open("r+b") as part:
        for index in indices:
            os.pwrite(part.fileno(), OTHER[layout[index].offset :][: layout[index].length], layout[index].offset)
        store.placed(described.root, indices)


def do_all(store: DiskStore, folder: Path) -> None:
    for call in work(store, folder):
        call()


def check(store: DiskStore) -> None:
    """Everything the store claims is so."""
    for root in store.roots():
        stat = store.stat(root)
        data = DATA if stat.total_bytes == len(DATA) else OTHER
        missing = store.missing(root)
        held = {(piece.offset, piece.length) for piece in missing}
        assert stat.wanted_bytes == stat.total_bytes or not stat.complete
        assert stat.have_bytes == stat.wanted_bytes - sum(length for _, length in held)
        assert not (stat.complete and missing)
        if stat.complete:
            assert store.path(root).read_bytes() == data
    for data in (DATA, OTHER):
        for place in range(0, len(data), 1024):
            chunk = data[place : place + 1024]
            if store.has(digest_of(chunk)):
                assert store.get(digest_of(chunk)) == chunk


def check_swept(store: DiskStore) -> None:
    """Nothing is left that the index does not know."""
    on_disk = {path.name for path in (store._folder / "content").iterdir()}
    assert on_disk <= {root.hex() for root in store.roots()}


def count_steps(machine: Machine, folder: Path) -> int:
    store = DiskStore(folder / "rehearsal", QUOTA_BYTES)
    machine.steps = 0
    do_all(store, folder)
    steps = machine.steps
    store.close()
    return steps


def test_after_a_power_cut_at_any_step_the_store_claims_nothing_false(machine: Machine, tmp_path: Path) -> None:
    total = count_steps(machine, tmp_path)
    assert total > 100
    for cut in range(1, total + 1):
        folder = tmp_path / f"cut{cut}"
        store = DiskStore(folder, QUOTA_BYTES)
        machine.steps, machine.chosen, machine.error = 0, cut, PowerCut(f"step {cut}")
        with pytest.raises(PowerCut):
            do_all(store, tmp_path)
        machine.restart(store)
        store = DiskStore(folder, QUOTA_BYTES)
        check_swept(store)
        check(store)
        do_all(store, tmp_path)
        check(store)
        assert [store.stat(root).complete for root in store.roots()] == [True, True]
        store.close()


def test_a_disk_that_is_full_at_any_step_fails_that_call_only(machine: Machine, tmp_path: Path) -> None:
    machine.error = OSError(errno.ENOSPC, "No space left on device")  # type: ignore[assignment]
    total = count_steps(machine, tmp_path)
    for full in range(1, total + 1):
        store = DiskStore(tmp_path / f"full{full}", QUOTA_BYTES)
        machine.steps, machine.chosen = 0, full
        failures = []
        for call in work(store, tmp_path):
            try:
                call()
            except (OSError, CellulerError) as error:
                failures.append(error)
                check(store)
        machine.chosen = -1
        assert failures or machine.steps >= full
        check(store)
        do_all(store, tmp_path)
        check(store)
        assert [store.stat(root).complete for root in store.roots()] == [True, True]
        store.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_a_quota_exceeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def full(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    store = DiskStore(tmp_path / "store", QUOTA_BYTES)
    *blocks, begin, put = [call for _, call in zip(range(4), work(store, tmp_path), strict=False)]
    for call in (*blocks, begin):
        call()
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(QuotaExceeded):
        put()
    monkeypatch.undo()
    check(store)
    put()
    store.close()


def test_an_index_that_cannot_grow_is_a_quota_exceeded(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "store", QUOTA_BYTES)
    pages = store._index._db.execute("PRAGMA page_count").fetchone()[0]
    store._index._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    used = store.used_bytes()
    with pytest.raises(QuotaExceeded):
        store.put_block(bytes(100_000))
    assert store.used_bytes() == used
    assert store.get(store.put_block(b"small")) == b"small"
    store.close()


@pytest.mark.parametrize("evict", [False, True])
def test_a_disk_too_full_to_forget_anything_is_rid_of_the_file_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evict: bool
) -> None:
    store = DiskStore(tmp_path / "store", QUOTA_BYTES)
    (tmp_path / "data").write_bytes(DATA)
    root = store.add(tmp_path / "data", "blob", pin=False)
    file, real = store.path(root), Index._delete

    def full_while_the_file_is_there(index: Index, root: bytes) -> None:
        if file.exists():
            raise QuotaExceeded("the disk is full")
        real(index, root)

    monkeypatch.setattr(Index, "_delete", full_while_the_file_is_there)
    if evict:
        assert [stat.root for stat in store.collect(0)] == [root]
    else:
        store.remove(root)
    assert (store.roots(), store.used_bytes(), file.exists()) == ((), 0, False)
    store.close()


def test_an_index_of_version_1_is_brought_up_to_date(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "store", QUOTA_BYTES)
    (tmp_path / "data").write_bytes(DATA)
    root = store.add(tmp_path / "data", "blob", pin=False)
    used = store.used_bytes()
    for statement in (
        "DROP TRIGGER piece_wanted", "ALTER TABLE content DROP COLUMN wanted",
        "ALTER TABLE content DROP COLUMN pinned", "PRAGMA user_version = 1",
    ):  # fmt: skip
        store._index._db.execute(statement)
    store.close()
    store = DiskStore(tmp_path / "store", QUOTA_BYTES)
    stat = store.stat(root)
    assert (stat.wanted_bytes, stat.pinned, stat.complete) == (len(DATA), True, True)
    assert store.used_bytes() == used
    assert store.path(root).read_bytes() == DATA
    store.close()


def test_an_index_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "store", QUOTA_BYTES)
    store._index._db.execute("PRAGMA user_version = 3")
    store.close()
    with pytest.raises(IntegrityError, match="version 3"):
        DiskStore(tmp_path / "store", QUOTA_BYTES)


def test_a_store_opens_on_a_disk_that_has_no_room_to_say_what_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise QuotaExceeded("the disk is full")

    store = DiskStore(tmp_path / "store", QUOTA_BYTES)
    (tmp_path / "data").write_bytes(DATA)
    root = put_blocks(store, describe(tmp_path / "data", "blob", chunk_size=1024))
    store.begin(root)
    store.put_chunk(root, 3, DATA[3 * 1024 : 4 * 1024])
    monkeypatch.setattr(Index, "mark_synced", full)
    store.close()
    store = DiskStore(tmp_path / "store", QUOTA_BYTES)
    assert store.get(digest_of(DATA[3 * 1024 : 4 * 1024])) == DATA[3 * 1024 : 4 * 1024]
    monkeypatch.undo()
    fill(store, root, DATA)
    assert store.path(root).read_bytes() == DATA
    store.close()
