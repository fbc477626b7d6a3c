"""Processes that store for ever, one at a time, and say what was accepted. Each is killed by the test.

Reads `FOLDER SEED` lines; for each a child is forked that opens the store in FOLDER and does what SEED says, a line for
every call begun and every call that returned. Forked, so that a life costs milliseconds. When the child is dead a line
says how. Every content is made of its number alone, so that the test knows its bytes too.
"""

from __future__ import annotations

import functools
import os
import random
import sys
import tempfile
from pathlib import Path

from celluler.content import disk_filling
from celluler.content.disk import DiskStore
from celluler.content.manifest import Description, describe

QUOTA_BYTES = 2 << 20
CHUNK_BYTES = 1 << 12
NUMBERS = range(1, 30)
ADDED_KIND = "dataset"


@functools.cache
def content(number: int) -> bytes:
    """Some begin like their neighbour, so that pieces are taken over."""
    rng = random.Random(number)
    head = content(number - 1)[: 9 * CHUNK_BYTES] if number % 3 == 0 else b""
    return head + rng.randbytes(rng.randrange(0, 48 * CHUNK_BYTES))


@functools.cache
def description(number: int, kind: str = "blob") -> Description:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(content(number))
        return describe(path, kind, chunk_size=1 << 20 if kind == ADDED_KIND else CHUNK_BYTES)


class Life:
    """One process's: calls drawn at random until it is killed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._rng = folder, random.Random(seed)
        self._store = DiskStore(folder, QUOTA_BYTES, evicts=True)
        say("open")

    def step(self) -> None:
        calls = (self.fill, self.fill, self.fill, self.place, self.place, self.add, self.remove, self.collect, self.pin)
        self._rng.choice(calls)()

    def fill(self) -> None:
        described, root = self._begin()
        missing = list(self._store.missing(root))
        self._rng.shuffle(missing)
        for piece in missing[: self._rng.randrange(0, 60)]:
            data = content_of(described)[piece.offset : piece.offset + piece.length]
            self._store.put_chunk(root, piece.index, data)
            say(f"kept {root.hex()} {piece.index}")

    def place(self) -> None:
        """As a process beside writes and tells."""
        described, root = self._begin()
        missing = list(self._store.missing(root))
        if not missing:
            return
        with self._store.hold(root), self._store.part(root).open("r+b", buffering=0) as part:
            while missing:
                batch, missing = missing[:7], missing[7:]
                for piece in batch:
                    data = content_of(described)[piece.offset : piece.offset + piece.length]
                    os.pwrite(part.fileno(), data, piece.offset)
                numbers = [piece.index for piece in batch]
                self._store.placed(root, numbers)
                say(f"kept {root.hex()} {' '.join(map(str, numbers))}")

    def add(self) -> None:
        original = self._folder / "incoming" / "original"
        original.write_bytes(content(self._rng.choice(NUMBERS)))
        pin = self._rng.random() < 0.2
        say("evicting")
        root = self._store.add(original, ADDED_KIND, pin=pin)
        say(f"added {root.hex()}")
        if pin:
            say(f"pinned {root.hex()}")

    def remove(self) -> None:
        for root in self._rng.sample(self._store.roots(), k=min(2, len(self._store.roots()))):
            say(f"removing {root.hex()}")
            self._store.remove(root)
            say(f"removed {root.hex()}")

    def collect(self) -> None:
        say("evicting")
        self._store.collect(self._store.used_bytes() * self._rng.randrange(50, 100) // 100)

    def pin(self) -> None:
        for root in self._rng.sample(self._store.roots(), k=min(2, len(self._store.roots()))):
            if self._store.stat(root).pinned:
                say(f"unpinning {root.hex()}")
                self._store.unpin(root)
            else:
                self._store.pin(root)
                say(f"pinned {root.hex()}")

    def _begin(self) -> tuple[Description, bytes]:
        described = description(self._rng.choice(NUMBERS))
        say("evicting")
        for block in (*described.leaves, described.manifest_bytes):
            self._store.put_block(block)
        pieces = range(len(described.layout()))
        some = self._rng.random() < 0.5
        self._store.begin(described.root, self._rng.sample(pieces, k=len(pieces) // 2) if some else None)
        say(f"begun {described.root.hex()}")
        return described, described.root


def content_of(described: Description) -> bytes:
    return content(_NUMBERS[described.root])


_NUMBERS = {description(number).root: number for number in NUMBERS}


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())  # whole or not at all: a pipe takes short writes as one


def live(folder: Path, seed: int) -> None:
    say(f"born {os.getpid()}")
    disk_filling.SYNC_BYTES = 8 * CHUNK_BYTES  # so that syncs and renames are frequent
    life = Life(folder, seed)
    while True:
        life.step()


def main() -> None:
    for line in sys.stdin:
        folder, seed = line.split()
        child = os.fork()
        if not child:
            try:
                live(Path(folder), int(seed))
            except BaseException as error:
                say(f"failed {error!r}")
            finally:
                os._exit(1)
        say(f"dead {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}")


if __name__ == "__main__":
    main()
