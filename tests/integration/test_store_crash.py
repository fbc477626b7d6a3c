"""A process that stores is killed hundreds of times, at any moment: its index claims nothing false, forgets nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from celluler.content.digest import digest_of
from celluler.content.disk import DiskStore
from celluler.errors import BlockAbsent, LocalError
from tests.support import store_in_a_loop as loop
from tests.support.stores import folder_in_memory

SEED = 20_260
KILLS = 300
BOUND_S = 120.0
STORES = 3  # each lives through many deaths; what one finds at birth is what another death left
KINDS = ("blob", loop.ADDED_KIND)


class Lives:
    """The process whose children are killed."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.support.store_in_a_loop"]
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=root,
            start_new_session=True,
        )
        self._bound = threading.Timer(BOUND_S, self._kill)  # a store that hangs ends the test, in `_line`
        self._bound.start()

    def end_one(self, folder: Path, seed: int, *, lines: int, micros: int) -> list[list[str]]:
        """Kill one in the midst of what follows line number `lines`. Returns what it said until then, in words."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{folder} {seed}\n")
        child = self._born()
        said = [self._line() for _ in range(lines)]
        until = time.perf_counter() + micros / 1e6
        while time.perf_counter() < until:
            pass
        os.kill(child, signal.SIGKILL)
        while (words := self._line())[0] != "dead":
            said.append(words)
        assert words[1] == "-9", said[-3:]
        return said

    def _born(self) -> int:
        words = self._line()
        assert words[0] == "born", words
        return int(words[1])

    def _line(self) -> list[str]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.endswith("\n"), "the process that is killed ended by itself"
        assert not line.startswith("failed"), line
        return line.split()

    def close(self) -> None:
        self._bound.cancel()
        self._kill()
        with self._process:
            self._process.wait(10)

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


@pytest.fixture
def lives() -> Iterator[Lives]:
    lives = Lives()
    yield lives
    lives.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    with folder_in_memory() as folder:  # a death of the process takes nothing from the kernel
        yield folder


@pytest.fixture(scope="module")
def truth() -> dict[bytes, bytes]:
    """Root to bytes, of everything that is ever stored."""
    return {loop.description(number, kind).root: loop.content(number) for number in loop.NUMBERS for kind in KINDS}


def test_the_store_survives_hundreds_of_kills_at_any_moment(
    lives: Lives, folder: Path, truth: dict[bytes, bytes]
) -> None:
    rng = random.Random(SEED)
    seen: set[str] = set()
    for kill in range(KILLS):
        home = folder / f"store{kill % STORES}"
        pinned = pins(home)
        said = lives.end_one(
            home, rng.randrange(2**32), lines=rng.choice((0, 1, rng.randrange(150))), micros=rng.randrange(4000)
        )
        seen |= {words[0] for words in said}
        store = DiskStore(home, loop.QUOTA_BYTES)
        try:
            check_claims(store, truth, home)
            check_kept(store, said, pinned)
            resume(store, truth, rng)
        finally:
            store.close()
    assert seen >= {"open", "evicting", "begun", "kept", "added", "removing", "removed", "pinned", "unpinning"}


def pins(home: Path) -> set[bytes]:
    if not home.exists():
        return set()
    store = DiskStore(home, loop.QUOTA_BYTES)
    try:
        return {bytes(root) for root in store.roots() if store.stat(root).pinned}
    finally:
        store.close()


def check_claims(store: DiskStore, truth: dict[bytes, bytes], home: Path) -> None:
    """Every byte the index claims is there, and nothing is there that it does not claim."""
    assert store.used_bytes() <= loop.QUOTA_BYTES
    assert {path.name for path in (home / "content").iterdir()} <= {root.hex() for root in store.roots()}
    assert list((home / "incoming").iterdir()) == []
    assert store.verify_blocks().damaged == ()
    for root in store.roots():
        stat, missing, verified = store.stat(root), store.missing(root), store.verify(root)
        assert verified.damaged == ()
        assert verified.checked_bytes == stat.have_bytes
        assert stat.have_bytes == stat.wanted_bytes - sum(piece.length for piece in missing)
        assert stat.complete == (stat.have_bytes == stat.total_bytes)
        for piece in held_of(store, root, truth):
            assert store.get(digest_of(piece)) == piece
        if stat.complete:
            assert store.path(root).read_bytes() == truth[root]


def held_of(store: DiskStore, root: bytes, truth: dict[bytes, bytes]) -> Iterator[bytes]:
    """The true bytes of the pieces that are said to be here."""
    size = loop.CHUNK_BYTES if store.stat(root).kind == "blob" else 1 << 20
    have, data = store.have(root), truth[root]
    for index, place in enumerate(range(0, len(data), size)):
        if not have or have[index >> 3] >> (index & 7) & 1:
            yield data[place : place + size]


def check_kept(store: DiskStore, said: list[list[str]], pinned: set[bytes]) -> None:
    """What was acknowledged is so, unless it was taken back, or began to be, or might be evicted since."""
    must_have: dict[bytes, set[int]] = {}
    gone: set[bytes] = set()
    for words in said:
        root = bytes.fromhex(words[1]) if len(words) > 1 else b""
        match words[0]:
            case "begun":
                must_have.setdefault(root, set())
            case "added":
                must_have[root] = {0} if store_bytes(store, root) else set()
            case "kept":
                must_have.setdefault(root, set()).update(map(int, words[2:]))
            case "pinned":
                pinned.add(root)
            case "unpinning":
                pinned.discard(root)
            case "removing":
                pinned.discard(root)
                must_have.pop(root, None)
            case "removed":
                gone.add(root)
            case "evicting":
                gone.clear()  # from here on it may be begun again
                must_have = {root: pieces for root, pieces in must_have.items() if root in pinned}
    roots = store.roots()
    assert set(roots) >= pinned | must_have.keys()
    assert all(store.stat(root).pinned for root in pinned)
    for root, pieces in must_have.items():
        assert pieces.isdisjoint(piece.index for piece in store.missing(root))
    assert gone.isdisjoint(roots)


def store_bytes(store: DiskStore, root: bytes) -> int:
    try:
        return store.stat(root).total_bytes
    except BlockAbsent:
        return 0


def resume(store: DiskStore, truth: dict[bytes, bytes], rng: random.Random) -> None:
    """What was left incomplete can be completed."""
    incomplete = [root for root in store.roots() if store.missing(root)]
    for root in rng.sample(incomplete, k=min(1, len(incomplete))):
        for piece in store.missing(root):
            store.put_chunk(root, piece.index, truth[root][piece.offset : piece.offset + piece.length])
        assert store.missing(root) == ()
        assert store.verify(root).damaged == ()


def test_a_store_open_in_one_process_is_refused_to_another(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, 1000)
    with pytest.raises(LocalError):
        DiskStore(tmp_path, 1000)
    store.close()
    again = DiskStore(tmp_path, 1000)
    with pytest.raises(BlockAbsent):
        again.get(digest_of(b""))
    again.close()
