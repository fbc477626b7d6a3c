"""The disk store's index: which blocks and pieces are held, in SQLite.

Each method is one transaction under one lock, safe from any thread. `durable=False` leaves out the fsync: such a commit
survives the process, not a power cut, and a later durable one makes it durable too. Knows nothing of files.

Many rows travel as one JSON value: SQLite lets other threads run at every row it steps to, and beside a busy one each
of these steps may take milliseconds to come back.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

from celluler.content.digest import Digest
from celluler.content.disk_schema import open_database
from celluler.content.manifest import Layout, Piece
from celluler.content.store_eviction import Evictable, NoRoom
from celluler.errors import BlockAbsent, IntegrityError, LocalError, QuotaExceeded

_ROWS_AT_ONCE = 4096
_INSERT_PIECES = """
INSERT INTO piece SELECT
    ?1, ?2 + key, substr(?3, 1 + 32 * key, 32),
    json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]')
FROM json_each(?4)
"""


class State(IntEnum):
    """Of one piece: not asked for; nothing yet; bytes handed to the kernel; bytes known to be on the disk."""

    UNWANTED = -1
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
    wanted: int
    pinned: int


class Index:
    """What the store holds. Raises QuotaExceeded when quota or disk is full, and then nothing has changed."""

    def __init__(self, path: Path, quota_bytes: int) -> None:
        """Raises IntegrityError when the file is no index of ours."""
        self._quota_bytes = quota_bytes
        self._lock = threading.RLock()
        self._durable: bool | None = None  # what the connection is set to
        try:
            self._db = open_database(path)
            self._used: int = sum(self._row("SELECT coalesce(sum(length(data)), 0) FROM block"))
            self._used += sum(self._row("SELECT coalesce(sum(wanted), 0) FROM content"))
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

    def blocks(self) -> Iterator[tuple[Digest, bytes]]:
        """Every block, a few at a time: what is put meanwhile may be left out."""
        last = -1
        while rows := self._blocks_after(last):
            last = rows[-1][0]
            yield from ((Digest(digest), data) for _, digest, data in rows)

    def _blocks_after(self, last: int) -> list[Any]:
        with self._lock:
            return self._rows("SELECT id, digest, data FROM block WHERE id > ? ORDER BY id LIMIT 16", last)

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

    def begin(self, root: bytes, layout: Layout | None, only: Collection[int] | None, now_s: float) -> bool:
        """Record a content, or want more of one that is here; whether anything is wanted that was not before.

        Raises BlockAbsent when it is not here and no layout is given, or a block of it has gone since that was read,
        LocalError when there is no such piece.
        """
        with self._transaction():
            if self._row("SELECT 1 FROM content WHERE root = ?", root) or layout is None:
                content = self.content(root)
                return (only is not None or content.wanted < content.total) and self._want(content.id, only)
            for digest in (root, *layout.manifest.leaves):
                if not self._row("SELECT 1 FROM block WHERE digest = ?", digest):
                    raise BlockAbsent(digest)
            self._insert_content(root, layout, _wanted(layout, only), now_s)
            return True

    def want(self, content: int, numbers: Collection[int]) -> None:
        """Raises LocalError when there is no such piece."""
        with self._transaction():
            self._want(content, numbers)

    def add_whole(
        self, root: bytes, layout: Layout, blocks: Mapping[Digest, bytes], now_s: float, *, pin: bool
    ) -> None:
        """Record a content that is complete and synced, with its blocks. One that was begun becomes so."""
        with self._transaction():
            for digest, data in blocks.items():
                self._insert_block(digest, data)
            if self._row("SELECT 1 FROM content WHERE root = ?", root):
                self._want(self.content(root).id, None)
            else:
                self._insert_content(root, layout, range(len(layout)), now_s)
            self._complete(self.content(root).id, now_s)
            self._db.execute("UPDATE content SET pinned = max(pinned, ?) WHERE root = ?", (pin, root))

    def complete(self, content: int, now_s: float) -> None:
        with self._transaction():
            self._complete(content, now_s)

    def touch(self, used_s: Mapping[bytes, float]) -> None:
        """When these roots were last used."""
        with self._transaction(durable=False):
            query = "UPDATE content SET last_used = max(last_used, ?) WHERE root = ?"
            self._db.executemany(query, ((when, root) for root, when in used_s.items()))

    def pin(self, root: bytes, pinned: bool) -> None:
        """Raises BlockAbsent when it was not begun."""
        with self._transaction():
            self._db.execute("UPDATE content SET pinned = ? WHERE id = ?", (pinned, self.content(root).id))

    def remove(self, root: bytes, held: Callable[[bytes], bool]) -> bool:
        """Forget a content, its manifest and the leaves nobody else needs; or a lone block.

        held: asked inside the transaction, so that whoever holds a root and then finds it here keeps it.
        Raises LocalError for a leaf, and for what is held.
        """
        with self._transaction():
            if self._row("SELECT 1 FROM leaf WHERE digest = ?", root):
                raise LocalError("this block belongs to a content")
            if held(root):
                raise LocalError(f"{root.hex()[:16]}… is in use")
            self._delete(root)
            return True

    def evict(self, root: bytes, held: Callable[[bytes], bool]) -> bool:
        """Forget a content like `remove`, unless it is pinned, held or gone: False then."""
        with self._transaction():
            row = self._row("SELECT pinned FROM content WHERE root = ?", root)
            if not row or row[0] or held(root):
                return False
            self._delete(root)
            return True

    def evictable(self) -> list[Evictable]:
        """Every content and what it would free."""
        with self._lock:
            sizes: dict[int, dict[bytes, int]] = {}
            query = "SELECT content, leaf.digest, length(data) FROM leaf JOIN block ON block.digest = leaf.digest"
            for content, digest, size in self._rows(query):
                sizes.setdefault(content, {})[digest] = size
            query = (
                "SELECT content.id, root, last_used, wanted + coalesce(length(data), 0), pinned "
                "FROM content LEFT JOIN block ON digest = root"
            )
            return [
                Evictable(root, last_used, own, sizes.get(content, {}), bool(pinned))
                for content, root, last_used, own, pinned in self._rows(query)
            ]

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
        return self._pieces(content, f"state = {state.value}")

    def held(self, content: int) -> tuple[Piece, ...]:
        """Pieces whose bytes are here, by number."""
        return self._pieces(content, "state > 0")

    def held_numbers(self, content: int) -> list[int]:
        with self._lock:
            query = "SELECT json_group_array(number) FROM piece WHERE content = ? AND state > 0"
            numbers: list[int] = json.loads(self._row(query, content)[0])
        return numbers

    def count(self, content: int) -> int:
        """How many pieces it has in all."""
        with self._lock:
            return int(self._row("SELECT count(*) FROM piece WHERE content = ?", content)[0])

    def whole(self, content: int) -> bool:
        """Whether every piece is here, wanted or not."""
        with self._lock:
            query = (
                "SELECT 1 FROM content WHERE id = ?1 AND wanted = total "
                "AND NOT EXISTS (SELECT 1 FROM piece WHERE content = ?1 AND state = 0)"
            )
            return bool(self._row(query, content))

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
        elsewhere = (
            "state = 0 AND EXISTS (SELECT 1 FROM piece AS other WHERE other.digest = mine.digest "
            "AND other.length = mine.length AND other.state > 0)"
        )
        return self._pieces(content, elsewhere)

    def mark_written(self, content: int, pieces: Iterable[Piece]) -> None:
        """One statement, hence one transaction: between two of them a busy thread may hold this one up for long."""
        with self._lock:
            self._set_durable(False)
            try:
                self._update_states(content, [piece.index for piece in pieces], State.MISSING, State.WRITTEN)
            except sqlite3.Error as error:
                raise _ours(error) from error

    def mark_synced(self, content: int) -> None:
        """What is written is synced now."""
        with self._transaction():
            self._db.execute("UPDATE piece SET state = 2 WHERE content = ? AND state = 1", (content,))

    def forget(self, content: int, pieces: Iterable[Piece]) -> None:
        """These are not on the disk after all: the content is incomplete."""
        numbers = [piece.index for piece in pieces]
        with self._transaction():
            for state in (State.WRITTEN, State.SYNCED):
                self._update_states(content, numbers, state, State.MISSING)
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

    def _insert_content(self, root: bytes, layout: Layout, wanted: Collection[int], now_s: float) -> None:
        manifest = layout.manifest
        wanted_bytes = sum(layout[index].length for index in wanted)
        self._reserve(wanted_bytes)
        query = "INSERT INTO content (root, kind, total, last_used, wanted) VALUES (?, ?, ?, ?, ?)"
        content = self._db.execute(query, (root, manifest.kind, manifest.total_len, now_s, wanted_bytes)).lastrowid
        leaves = ((content, digest) for digest in manifest.leaves)
        self._db.executemany("INSERT OR IGNORE INTO leaf VALUES (?, ?)", leaves)
        for first in range(0, len(layout), _ROWS_AT_ONCE):
            pieces = [layout[index] for index in range(first, min(first + _ROWS_AT_ONCE, len(layout)))]
            rows = [(piece.length, piece.offset, 0 if piece.index in wanted else -1) for piece in pieces]
            digests = b"".join(piece.digest for piece in pieces)
            self._db.execute(_INSERT_PIECES, (content, first, digests, json.dumps(rows)))

    def _want(self, content: int, only: Collection[int] | None) -> bool:
        """Whether any of these was not wanted before."""
        before = self._row("SELECT wanted FROM content WHERE id = ?", content)[0]
        if only is None:
            self._db.execute("UPDATE piece SET state = 0 WHERE content = ? AND state = -1", (content,))
        else:
            self._check_numbers(content, only)
            self._update_states(content, list(only), State.UNWANTED, State.MISSING)
        extra = self._row("SELECT wanted FROM content WHERE id = ?", content)[0] - before
        self._reserve(extra)
        return bool(extra)

    def _check_numbers(self, content: int, numbers: Collection[int]) -> None:
        if numbers:
            self.piece(content, min(numbers))
            self.piece(content, max(numbers))

    def _delete(self, root: bytes) -> None:
        row = self._row("SELECT id, wanted FROM content WHERE root = ?", root)
        if row:
            ours = "SELECT digest FROM leaf GROUP BY digest HAVING count(*) = 1 AND min(content) = ?"
            for (digest,) in self._rows(ours, row[0]):
                self._delete_block(digest)
            self._db.execute("DELETE FROM content WHERE id = ?", (row[0],))
            self._used -= row[1]
        self._delete_block(root)

    def _complete(self, content: int, now_s: float) -> None:
        self._db.execute("UPDATE piece SET state = 2 WHERE content = ? AND state < 2", (content,))
        query = "UPDATE content SET complete = 1, have = total, last_used = ? WHERE id = ?"
        self._db.execute(query, (now_s, content))

    def _update_states(self, content: int, numbers: list[int], old: State, new: State) -> None:
        query = (
            "UPDATE piece SET state = ? WHERE content = ? AND state = ? AND number IN (SELECT value FROM json_each(?))"
        )
        self._db.execute(query, (new.value, content, old.value, json.dumps(numbers)))

    def _recount(self, content: int) -> None:
        """An incomplete content has what its pieces say."""
        query = (
            "UPDATE content SET complete = 0, have = (SELECT coalesce(sum(length), 0) FROM piece "
            "WHERE piece.content = content.id AND state > 0) WHERE id = ?"
        )
        self._db.execute(query, (content,))

    def _reserve(self, extra: int) -> None:
        if self._used + extra > self._quota_bytes:
            raise NoRoom(extra, self._used, self._quota_bytes)
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

    def _pieces(self, content: int, condition: str) -> tuple[Piece, ...]:
        """By number. condition: SQL of ours about `mine`, never anything from outside."""
        some = f"SELECT * FROM piece AS mine WHERE content = ? AND number > ? AND {condition} ORDER BY number LIMIT ?"  # noqa: S608
        query = f"SELECT json_group_array(json_array(number, hex(digest), length, place)) FROM ({some})"  # noqa: S608
        found: list[Piece] = []
        with self._lock:
            while rows := json.loads(self._row(query, content, found[-1].index if found else -1, _ROWS_AT_ONCE)[0]):
                found += (Piece(number, Digest(bytes.fromhex(digest)), *rest) for number, digest, *rest in sorted(rows))
        return tuple(found)

    def _rows(self, query: str, *values: Any) -> list[Any]:
        return self._db.execute(query, values).fetchall()

    def _row(self, query: str, *values: Any) -> tuple[Any, ...]:
        row: tuple[Any, ...] | None = self._db.execute(query, values).fetchone()
        return row or ()


def _wanted(layout: Layout, only: Collection[int] | None) -> Collection[int]:
    """With the header of a content that has one. Raises LocalError for a bad index."""
    if only is None:
        return range(len(layout))
    wanted = {layout[index].index for index in only}
    return wanted if layout.manifest.header is None else wanted | {0}


def _piece(row: tuple[Any, ...]) -> Piece:
    number, digest, length, place = row[:4]
    return Piece(number, Digest(digest), length, place)


def _ours(error: sqlite3.Error) -> LocalError:
    if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
        return QuotaExceeded("the disk is full", hint="make room on it; nothing in the store was lost")
    return LocalError(f"the store's index: {error}")
