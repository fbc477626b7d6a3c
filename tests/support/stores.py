"""What tests of stores share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from celluler.content.digest import Digest, digest_of
from celluler.content.manifest import Description
from celluler.content.store import Store

QUOTA_BYTES = 8 << 20


class Opener(Protocol):
    """Opens a store of the kind under test; options are the store's own."""

    def __call__(self, quota_bytes: int = QUOTA_BYTES, **options: object) -> Store: ...


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """Where the system has such a folder: hundreds of stores are made, none lives long, and no power is cut."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def put_blocks(store: Store, described: Description) -> Digest:
    for block in (described.manifest_bytes, *described.leaves):
        store.put_block(block)
    return described.root


def fill(store: Store, root: bytes, data: bytes) -> None:
    for piece in store.missing(root):
        store.put_chunk(root, piece.index, data[piece.offset : piece.offset + piece.length])


def place(store: Store, described: Description, data: bytes, indices: Iterable[int]) -> None:
    """As a process beside writes and tells."""
    layout, wanted = described.layout(), list(indices)
    with store.hold(described.root):
        with store.part(described.root).open("r+b", buffering=0) as part:
            for index in wanted:
                piece = layout[index]
                os.pwrite(part.fileno(), data[piece.offset : piece.offset + piece.length], piece.offset)
        store.placed(described.root, wanted)


def file_of(folder: Path, data: bytes) -> Path:
    path = folder / digest_of(data).hex()[:16]
    path.write_bytes(data)
    return path
