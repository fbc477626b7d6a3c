"""Reading a disk store from another process, while the node has it open: what serves chunks past the node.

The index is opened read-only beside its writer (SQLite's WAL allows one writer and any readers); nothing is ever
written. What a reader gives out it has hashed lately itself. It sees what the writer has committed: pieces of an
incomplete content become readable as they come, and a file stays readable by its descriptor when it is renamed at
completion, or removed.

Knows nothing of quotas, of who asks, and of what may be served: that is the node's to say.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from celluler.content.digest import digest_of
from celluler.content.disk_files import Files
from celluler.content.disk_schema import open_read_only
from celluler.content.store import bitmap_of
from celluler.errors import BlockAbsent, IntegrityError, LocalError

HASHED_S = 600.0
"""So long a piece counts as right once it was hashed: damage on the disk is noticed by then, and by whoever fetches."""
MAX_HASHED = 256


class Placement(NamedTuple):
    """Where piece `number` lies: `length` bytes from `offset` of the file behind `descriptor`, which is not yours."""

    number: int
    descriptor: int
    offset: int
    length: int


@dataclass(slots=True)
class _Hashed:
    """Pieces of one file that were hashed and right, a bit each. until_s: then all are to be hashed anew."""

    bits: bytearray
    until_s: float


class StoreReader:
    """A store's contents, for reading. Safe from any thread."""

    def __init__(self, folder: Path) -> None:
        """Raises IntegrityError when there is no index here that this program reads."""
        self._lock = threading.Lock()
        path = folder / "index.sqlite"
        try:
            self._db = open_read_only(path)
        except sqlite3.Error as error:
            raise IntegrityError(f"cannot read the index {path}: {error}") from error
        self._files = Files(folder)
        self._hashed: OrderedDict[tuple[bytes, int], _Hashed] = OrderedDict()

    def open_content(self, root: bytes) -> OpenContent:
        """One content, complete or not. Raises BlockAbsent when it was not begun."""
        query = "SELECT (SELECT count(*) FROM piece WHERE piece.content = content.id) FROM content WHERE root = ?"
        rows = self.rows(query, root)
        if not rows:
            raise BlockAbsent(root)
        return OpenContent(self, self._files, root, rows[0][0])

    def hashed(self, root: bytes, descriptor: int, pieces: int) -> _Hashed:
        """What is remembered of this file: who opens it again soon need not hash it again."""
        key, now = (bytes(root), os.fstat(descriptor).st_ino), time.monotonic()
        with self._lock:
            known = self._hashed.pop(key, None)
            if known is None or now > known.until_s:
                known = _Hashed(bytearray((pieces + 7) // 8), now + HASHED_S)
            self._hashed[key] = known
            if len(self._hashed) > MAX_HASHED:
                self._hashed.popitem(last=False)
        return known

    def rows(self, query: str, *values: Any) -> list[Any]:
        """Raises LocalError when the index cannot be read."""
        try:
            with self._lock:
                return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise LocalError(f"the store's index: {error}") from error

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class OpenContent:
    """One content's file and what is in it. Safe from any thread. Close it after use."""

    def __init__(self, reader: StoreReader, files: Files, root: bytes, pieces: int) -> None:
        self._reader, self._files, self._root, self._pieces = reader, files, root, pieces
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._seen = _Hashed(bytearray(), 0.0)
        self._stale: list[int] = []  # another thread may be reading from them

    def find(self, digest: bytes) -> Placement | None:
        """Where the piece should lie, None when it is not here. Its bytes were not looked at: see `read`."""
        query = (
            "SELECT number, place, length FROM piece JOIN content ON content.id = content "
            "WHERE digest = ? AND state > 0 AND root = ? LIMIT 1"
        )
        rows = self._reader.rows(query, digest, self._root)
        descriptor = self._open() if rows else None
        if descriptor is None:
            return None
        number, place, length = rows[0]
        return Placement(number, descriptor, place, length)

    def read(self, digest: bytes) -> bytes | None:
        """The piece, None when it is not here. Hashed, unless this reader did so lately with the same file."""
        placement = self.find(digest)
        data = self._checked(placement, digest) if placement else None
        if placement is None or data is not None:
            return data
        self._reopen()  # the content may lie in another file by now
        placement = self.find(digest)
        return self._checked(placement, digest) if placement else None

    def have(self) -> bytes:
        """What is here: empty when all of it, else a bit a piece, as `Store.have`."""
        query = (
            "SELECT json_group_array(number) FROM piece JOIN content ON content.id = content "
            "WHERE root = ? AND state > 0"
        )
        return bitmap_of(json.loads(self._reader.rows(query, self._root)[0][0]), self._pieces)

    def complete(self) -> bool:
        return bool(self._reader.rows("SELECT 1 FROM content WHERE root = ? AND complete", self._root))

    def close(self) -> None:
        """No call may follow, or be under way."""
        with self._lock:
            if self._descriptor is not None:
                self._stale.append(self._descriptor)
            for descriptor in self._stale:
                os.close(descriptor)
            self._descriptor, self._stale = None, []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _checked(self, placement: Placement, digest: bytes) -> bytes | None:
        try:
            data = os.pread(placement.descriptor, placement.length, placement.offset)
        except OSError:
            return None
        at, bit = placement.number >> 3, 1 << (placement.number & 7)
        with self._lock:
            seen = placement.descriptor == self._descriptor and self._seen.bits[at] & bit
        if seen and len(data) == placement.length:
            return data
        if digest_of(data) != digest:
            return None
        with self._lock:
            if placement.descriptor == self._descriptor:
                self._seen.bits[at] |= bit
        return data

    def _open(self) -> int | None:
        with self._lock:
            if self._descriptor is None:
                self._take(self._files.open(self._root))
            return self._descriptor

    def _reopen(self) -> None:
        """Ask for the file by name again. Of another one nothing was seen yet."""
        with self._lock:
            fresh, held = self._files.open(self._root), self._descriptor
            if fresh is not None and held is not None and os.path.sameopenfile(fresh, held):
                os.close(fresh)
            elif fresh is not None:
                self._stale += [] if held is None else [held]
                self._take(fresh)

    def _take(self, descriptor: int | None) -> None:
        """The lock is held."""
        self._descriptor = descriptor
        if descriptor is not None:
            self._seen = self._reader.hashed(self._root, descriptor, self._pieces)
