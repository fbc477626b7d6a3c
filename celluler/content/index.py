"""The disk store's index: which blocks and pieces are held, in SQLite.

Each method is one transaction under one lock, safe from any thread. `durable=False` leaves out the fsync: such a commit
survives the process, not a power cut, and a later durable one makes it durable too. Knows nothing of files.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

from celluler.content.digest import Digest
from celluler.content.manifest import Layout, Piece
from celluler.errors import BlockAbsent, IntegrityError, LocalError, QuotaExceeded

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE block (id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, data BLOB NOT NULL);
CREATE TABLE content (
    id INTEGER PRIMARY KEY, root BLOB NOT NULL UNIQUE, kind TEXT NOT NULL, total INTEGER NOT NULL,
    have INTEGER NOT NULL DEFAULT 0, complete INTEGER NOT NULL DEFAULT 0, last_used REAL NOT NULL);
CREATE TABLE leaf (
    content INTEGER NOT NULL REFERENCES content ON DELETE CASCADE, digest BLOB NOT NULL,
    PRIMARY KEY (content, digest)) WITHOUT ROWID;
CREATE INDEX leaf_by_digest ON leaf (digest);
CREATE TABLE piece (
    content INTEGER NOT NULL REFERENCES content ON DELETE CASCADE, number INTEGER NOT NULL,
    digest BLOB NOT NULL, length INTEGER NOT NULL, place INTEGER NOT NULL, state INTEGER NOT NULL,
    PRIMARY KEY (content, number)) WITHOUT ROWID;
CREATE INDEX piece_held ON piece (digest) WHERE state > 0;
CREATE INDEX piece_missing ON piece (content) WHERE state = 0;
CREATE INDEX piece_unsynced ON piece (content) WHERE state = 1;
CREATE TRIGGER piece_written AFTER UPDATE OF state ON piece WHEN OLD.state = 0 AND NEW.state = 1
    BEGIN UPDATE content SET have = have + NEW.length WHERE id = NEW.content; END;
"""


class State(IntEnum):
    """Of one piece: nothing; bytes handed to the kernel; bytes known to be on the disk."""

    MISSING = 0
    WRITTEN = 1
    SYNCED = 2


class Content(NamedTuple):
    id: int
    root: bytes
    kind: str
    total: int
    have: int
    complete: int
    last_used: float


class Index:
    """What the store holds. Raises QuotaExceeded when quota or disk is full, and then nothing has changed."""

    def __init__(self, path: Path, quota_bytes: int) -> None:
        """Raises IntegrityError when the file is no index of ours."""
        self._quota_bytes = quota_bytes
        self._lock = threading.RLock()
        self._durable: bool | None = None  # what the connection is set to
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._make_tables(path)
            self._used: int = sum(self._row("SELECT coalesce(sum(length(data)), 0) FROM block"))
            self._used += sum(self._row("SELECT coalesce(sum(total), 0) FROM content"))
        except sqlite3.DatabaseError as error:
            raise IntegrityError(f"cannot open the index {path}: {error}") from error

    def close(self) -> None:
        with self._lock:
            self._db.close()

    # --- blocks ------------------------------------------------------------------------------------------------

    def block(self, digest: bytes) -> bytes | None:
        with self._lock:
            row = self._row("SELECT data FROM block WHERE digest = ?", digest)
        return bytes(row[0]) if row else None

    def put_block(self, digest: bytes, data: bytes) -> None:
        with self._transaction():
            self._insert_block(digest, data)

    def drop_block(self, digest: bytes) -> None:
        """Forget a block found damaged, whoever needs it."""
        with self._transaction():
            self._delete_block(digest)

    def has(self, digest: bytes) -> bool:
        with self._lock:
            in_blocks = self._row("SELECT 1 FROM block WHERE digest = ?", digest)
            return bool(in_blocks or self._row("SELECT 1 FROM piece WHERE digest = ? AND state > 0 LIMIT 1", digest))

    # --- contents ----------------------------------------------------------------------------------------------

    def content(self, root: bytes) -> Content:
        """Raises BlockAbsent when it was not begun."""
        with self._lock:
            row = self._row("SELECT * FROM content WHERE root = ?", root)
        if not row:
            raise BlockAbsent(root)
        return Content(*row)

    def contents(self) -> list[Content]:
        with self._lock:
            return [Content(*row) for row in self._rows("SELECT * FROM content ORDER BY root")]

    def begin(self, root: bytes, layout: Layout, now_s: float) -> None:
        """Record a content with every piece missing; one that is here already stays as it is."""
        with self._transaction():
            self._insert_content(root, layout, now_s)

    def add_whole(self, root: bytes, layout: Layout, blocks: Mapping[Digest, bytes], now_s: float) -> None:
        """Record a content that is complete and synced, with its blocks. One that was begun becomes so."""
        with self._transaction():
            for digest, data in blocks.items():
                self._insert_block(digest, data)
            self._insert_content(root, layout, now_s)
            self._complete(self.content(root).id, now_s)

    def complete(self, content: int, now_s: float) -> None:
        with self._transaction():
            self._complete(content, now_s)

    def touch(self, content: int, now_s: float) -> None:
        with self._transaction(durable=False):
            self._db.execute("UPDATE content SET last_used = ? WHERE id = ?", (now_s, content))

    def remove(self, root: bytes) -> None:
        """Forget a content, its manifest and the leaves nobody else needs; or a lone block. LocalError for a leaf."""
        with self._transaction():
            if self._row("SELECT 1 FROM leaf WHERE digest = ?", root):
                raise LocalError("this block belongs to a content")
            row = self._row("SELECT id, total FROM content WHERE root = ?", root)
            if row:
                ours = "SELECT digest FROM leaf GROUP BY digest HAVING count(*) = 1 AND min(content) = ?"
                for (digest,) in self._rows(ours, row[0]):
                    self._delete_block(digest)
                self._db.execute("DELETE FROM content WHERE id = ?", (row[0],))
                self._used -= row[1]
            self._delete_block(root)

    def used_bytes(self) -> int:
        with self._lock:
            return self._used

    # --- pieces ------------------------------------------------------------------------------------------------

    def piece(self, content: int, number: int) -> tuple[Piece, State]:
        """Raises LocalError when there is no such piece."""
        with self._lock:
            query = "SELECT number, digest, length, place, state FROM piece WHERE content = ? AND number = ?"
            row = self._row(query, content, number)
        if not row:
            raise LocalError(f"this content has no piece {number}")
        return _piece(row), State(row[4])

    def pieces(self, content: int, state: State) -> tuple[Piece, ...]:
        """Pieces in this state, by number."""
        with self._lock:
            query = "SELECT number, digest, length, place FROM piece WHERE content = ? AND state = ? ORDER BY number"
            return tuple(_piece(row) for row in self._rows(query, content, state.value))

    def whole(self, content: int) -> bool:
        with self._lock:
            return not self._row("SELECT 1 FROM piece WHERE content = ? AND state = 0 LIMIT 1", content)

    def places(self, digest: bytes) -> list[tuple[bytes, Piece]]:
        """Where a piece is held: roots and pieces, a few of them."""
        with self._lock:
            query = (
                "SELECT number, digest, length, place, root FROM piece JOIN content ON content.id = content "
                "WHERE digest = ? AND state > 0 LIMIT 4"
            )
            return [(row[4], _piece(row)) for row in self._rows(query, digest)]

    def held_elsewhere(self, content: int) -> tuple[Piece, ...]:
        """Missing pieces whose bytes are held in some other place."""
        with self._lock:
            query = (
                "SELECT number, digest, length, place FROM piece AS mine WHERE content = ? AND state = 0 AND EXISTS "
                "(SELECT 1 FROM piece AS other WHERE other.digest = mine.digest AND other.length = mine.length "
                "AND other.state > 0) ORDER BY number"
            )
            return tuple(_piece(row) for row in self._rows(query, content))

    def mark_written(self, content: int, piece: Piece) -> None:
        """One statement, hence one transaction: between two of them a busy thread may hold this one up for long."""
        with self._lock:
            self._set_durable(False)
            try:
                query = "UPDATE piece SET state = 1 WHERE content = ? AND number = ? AND state = 0"
                self._db.execute(query, (content, piece.index))
            except sqlite3.Error as error:
                raise _ours(error) from error

    def mark_synced(self, content: int) -> None:
        """What is written is synced now."""
        with self._transaction():
            self._db.execute("UPDATE piece SET state = 2 WHERE content = ? AND state = 1", (content,))

    def forget(self, content: int, pieces: Iterable[Piece]) -> None:
        """These are not on the disk after all: the content is incomplete."""
        with self._transaction():
            self._set_state(content, pieces, State.MISSING)
            self._recount(content)

    def doubt(self, content: int) -> None:
        """Nothing of this content is certain: every piece held counts as written, not synced."""
        with self._transaction():
            self._db.execute("UPDATE piece SET state = 1 WHERE content = ? AND state = 2", (content,))
            self._recount(content)

    # --- inside one transaction --------------------------------------------------------------------------------

    def _insert_block(self, digest: bytes, data: bytes) -> None:
        if not self._row("SELECT 1 FROM block WHERE digest = ?", digest):
            self._reserve(len(data))
            self._db.execute("INSERT INTO block (digest, data) VALUES (?, ?)", (digest, data))

    def _delete_block(self, digest: bytes) -> None:
        row = self._row("SELECT length(data) FROM block WHERE digest = ?", digest)
        if row:
            self._db.execute("DELETE FROM block WHERE digest = ?", (digest,))
            self._used -= row[0]

    def _insert_content(self, root: bytes, layout: Layout, now_s: float) -> None:
        if self._row("SELECT 1 FROM content WHERE root = ?", root):
            return
        manifest = layout.manifest
        self._reserve(manifest.total_len)
        values = (root, manifest.kind, manifest.total_len, now_s)
        cursor = self._db.execute("INSERT INTO content (root, kind, total, last_used) VALUES (?, ?, ?, ?)", values)
        content = cursor.lastrowid
        leaves = ((content, digest) for digest in manifest.leaves)
        self._db.executemany("INSERT OR IGNORE INTO leaf VALUES (?, ?)", leaves)
        pieces = ((content, piece.index, piece.digest, piece.length, piece.offset) for piece in layout)
        self._db.executemany("INSERT INTO piece VALUES (?, ?, ?, ?, ?, 0)", pieces)

    def _complete(self, content: int, now_s: float) -> None:
        self._db.execute("UPDATE piece SET state = 2 WHERE content = ? AND state < 2", (content,))
        query = "UPDATE content SET complete = 1, have = total, last_used = ? WHERE id = ?"
        self._db.execute(query, (now_s, content))

    def _set_state(self, content: int, pieces: Iterable[Piece], state: State) -> None:
        rows = ((state.value, content, piece.index) for piece in pieces)
        self._db.executemany("UPDATE piece SET state = ? WHERE content = ? AND number = ?", rows)

    def _recount(self, content: int) -> None:
        """An incomplete content has what its pieces say."""
        query = (
            "UPDATE content SET complete = 0, have = (SELECT coalesce(sum(length), 0) FROM piece "
            "WHERE piece.content = content.id AND state > 0) WHERE id = ?"
        )
        self._db.execute(query, (content,))

    def _reserve(self, extra: int) -> None:
        if self._used + extra > self._quota_bytes:
            raise QuotaExceeded(f"{extra} bytes are more than the quota of {self._quota_bytes} leaves")
        self._used += extra

    # --- SQLite ------------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self, *, durable: bool = True) -> Iterator[None]:
        with self._lock:
            used = self._used
            try:
                self._set_durable(durable)
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            except BaseException as error:
                self._used = used
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise _ours(error) from error
                raise

    def _set_durable(self, durable: bool) -> None:
        if durable != self._durable:
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._durable = durable

    def _rows(self, query: str, *values: Any) -> list[Any]:
        return self._db.execute(query, values).fetchall()

    def _row(self, query: str, *values: Any) -> tuple[Any, ...]:
        row: tuple[Any, ...] | None = self._db.execute(query, values).fetchone()
        return row or ()

    def _make_tables(self, path: Path) -> None:
        version = self._row("PRAGMA user_version")[0]
        if version == 0:
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;")
        elif version != _SCHEMA_VERSION:
            raise IntegrityError(f"the index {path} has version {version}, this program reads {_SCHEMA_VERSION}")


def _piece(row: tuple[Any, ...]) -> Piece:
    number, digest, length, place = row[:4]
    return Piece(number, Digest(digest), length, place)


def _ours(error: sqlite3.Error) -> LocalError:
    if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
        return QuotaExceeded("the disk is full")
    return LocalError(f"the store's index: {error}")
