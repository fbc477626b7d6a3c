"""Stores contents for ever and says what was accepted: `python store_in_a_loop.py FOLDER SEED`. Killed by its test.

Every content is made of its number alone, so that the test knows its bytes too.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

from celluler.content import disk
from celluler.content.disk import DiskStore
from celluler.content.manifest import Description, describe

QUOTA_BYTES = 16 << 20
CHUNK_BYTES = 1 << 12
KEPT_CONTENTS = 6


def content(number: int) -> bytes:
    rng = random.Random(number)
    return rng.randbytes(rng.randrange(0, 48 * CHUNK_BYTES))


def description(number: int) -> Description:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(content(number))
        return describe(path, "blob", chunk_size=CHUNK_BYTES)


def main(folder: Path, seed: int) -> None:
    disk.SYNC_BYTES = 8 * CHUNK_BYTES  # so that syncs and renames are frequent
    store, rng = DiskStore(folder, QUOTA_BYTES), random.Random(seed)
    say("open")
    while True:
        number = rng.randrange(1, 30)
        for root in store.roots()[KEPT_CONTENTS:]:
            say(f"removing {root.hex()}")
            store.remove(root)
        described, data = description(number), content(number)
        if rng.random() < 0.2:
            (folder / "incoming" / "original").write_bytes(data)
            root = store.add(folder / "incoming" / "original", "dataset")
            say(f"added {root.hex()} {number}")
            continue
        for block in (*described.leaves, described.manifest_bytes):
            say(f"block {store.put_block(block).hex()}")
        store.begin(described.root)
        say(f"begun {described.root.hex()} {number}")
        missing = list(store.missing(described.root))
        rng.shuffle(missing)
        for piece in missing[: rng.randrange(0, 60)]:
            store.put_chunk(described.root, piece.index, data[piece.offset : piece.offset + piece.length])
            say(f"chunk {described.root.hex()} {piece.index}")


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
