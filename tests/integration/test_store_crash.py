"""A process that stores in a loop is killed at any moment: its index claims nothing false and forgets nothing."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from celluler.content.digest import digest_of
from celluler.content.disk import DiskStore
from celluler.errors import BlockAbsent, LocalError
from tests.support import store_in_a_loop as loop

SEED = 20_260
KILLS = 12


def test_the_store_survives_sigkill_at_any_moment(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    folder = tmp_path / "store"
    numbers: dict[bytes, int] = {}
    for kill in range(KILLS):
        said = run_and_kill(folder, seed=rng.randrange(2**32), lines=rng.randrange(1, 250), micros=rng.randrange(2000))
        numbers |= {bytes.fromhex(words[1]): int(words[2]) for words in said if words[0] in ("begun", "added")}
        store = DiskStore(folder, loop.QUOTA_BYTES)
        try:
            check_claims(store, numbers, folder, f"kill {kill}")
            check_kept(store, said)
            resume(store, rng.choice(store.roots()), numbers)
        finally:
            store.close()
    assert len(numbers) > 5


def run_and_kill(folder: Path, *, seed: int, lines: int, micros: int) -> list[list[str]]:
    """Kill in the midst of what follows line number `lines`. Returns what was said until then, in words."""
    said = []
    command = [sys.executable, "-m", "tests.support.store_in_a_loop", str(folder), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                said.append(line.split())
                if len(said) == lines:
                    with pytest.raises(subprocess.TimeoutExpired):
                        child.wait(micros / 1e6)
                    break
            child.kill()
            said += [line.split() for line in child.stdout if line.endswith("\n")]
        finally:
            child.kill()
        assert child.wait(10) == -9, said[-3:]
    return said


def check_claims(store: DiskStore, numbers: dict[bytes, int], folder: Path, when: str) -> None:
    assert store.used_bytes() <= loop.QUOTA_BYTES, when
    names = {path.name for path in (folder / "content").iterdir()}
    assert names <= {root.hex() for root in store.roots()}, when
    assert list((folder / "incoming").iterdir()) == [], when
    for root in store.roots():
        data = expected(store, root, numbers)
        stat, missing = store.stat(root), store.missing(root)
        assert stat.have_bytes == len(data) - sum(piece.length for piece in missing), when
        absent = {piece.digest for piece in missing}
        for place in range(0, len(data), loop.CHUNK_BYTES):
            chunk = data[place : place + loop.CHUNK_BYTES]
            if stat.kind == "blob" and digest_of(chunk) not in absent:
                assert store.get(digest_of(chunk)) == chunk, when
        assert stat.complete == (not missing), when
        if stat.complete:
            assert store.path(root).read_bytes() == data, when


def expected(store: DiskStore, root: bytes, numbers: dict[bytes, int]) -> bytes:
    """The bytes of a content; one that was begun but killed before saying so is found by its length."""
    if root not in numbers:
        numbers |= {loop.description(number).root: number for number in range(1, 30)}
    if root not in numbers:  # added under another kind, which is part of the root
        total = store.stat(root).total_bytes
        numbers[root] = next(number for number in range(1, 30) if len(loop.content(number)) == total)
    return loop.content(numbers[root])


def check_kept(store: DiskStore, said: list[list[str]]) -> None:
    """Whatever was acknowledged, unless its removal was at least begun since."""
    removing = {words[1]: place for place, words in enumerate(said) if words[0] == "removing"}
    for place, words in enumerate(said):
        if words[0] in ("open", "removing") or removing.get(words[1], -1) > place:
            continue
        root = bytes.fromhex(words[1])
        match words[0]:
            case "begun":
                assert root in store.roots()
            case "added":
                assert store.stat(root).complete
            case "chunk":
                assert int(words[2]) not in [piece.index for piece in store.missing(root)]
            case "block" if not removing:  # a leaf may have gone with a content
                assert store.has(root)


def resume(store: DiskStore, root: bytes, numbers: dict[bytes, int]) -> None:
    data = expected(store, root, numbers)
    for piece in store.missing(root):
        store.put_chunk(root, piece.index, data[piece.offset : piece.offset + piece.length])
    assert store.path(root).read_bytes() == data


def test_a_store_open_in_one_process_is_refused_to_another(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, 1000)
    with pytest.raises(LocalError):
        DiskStore(tmp_path, 1000)
    store.close()
    again = DiskStore(tmp_path, 1000)
    with pytest.raises(BlockAbsent):
        again.get(digest_of(b""))
    again.close()
