"""The tables of the disk store's index, and how a file of them is opened, for writing and by a reader beside.

Version 1 knew neither wanted parts nor pins: its contents are wanted in full, and pinned, for who can say whether some
of them are the only copy. Knows nothing of what the rows mean to the store.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from urllib.parse import quote

from celluler.errors import IntegrityError

VERSION = 2

_CONTENT = """
CREATE TABLE content (
    id INTEGER PRIMARY KEY, root BLOB NOT NULL UNIQUE, kind TEXT NOT NULL, total INTEGER NOT NULL,
    have INTEGER NOT NULL DEFAULT 0, complete INTEGER NOT NULL DEFAULT 0, last_used REAL NOT NULL,
    wanted INTEGER NOT NULL DEFAULT 0, pinned INTEGER NOT NULL DEFAULT 0);
"""
_TABLES = """
CREATE TABLE block (id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, data BLOB NOT NULL);
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
_WANTED = """
CREATE TRIGGER piece_wanted AFTER UPDATE OF state ON piece WHEN OLD.state = -1 AND NEW.state = 0
    BEGIN UPDATE content SET wanted = wanted + NEW.length WHERE id = NEW.content; END;
"""
_FROM_1 = """
ALTER TABLE content ADD COLUMN wanted INTEGER NOT NULL DEFAULT 0;
ALTER TABLE content ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;
UPDATE content SET wanted = total, pinned = 1;
"""
_STEPS = {0: _CONTENT + _TABLES + _WANTED, 1: _FROM_1 + _WANTED}  # from this version to the newest


def open_database(path: Path) -> sqlite3.Connection:
    """The index for the one process that writes it, made or brought to the newest version.

    Raises IntegrityError when it is of a later version, sqlite3.Error when it is no database.
    """
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA foreign_keys = ON")
    version = _version(database)
    if version in _STEPS:
        database.executescript(f"BEGIN; {_STEPS[version]} PRAGMA user_version = {VERSION}; COMMIT;")
    _check_version(database, path)
    return database


def open_read_only(path: Path) -> sqlite3.Connection:
    """The same for a process beside that one. Raises IntegrityError, sqlite3.Error when there is none."""
    database = sqlite3.connect(
        f"file:{quote(str(path))}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
    )
    _check_version(database, path)
    return database


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def _check_version(database: sqlite3.Connection, path: Path) -> None:
    version = _version(database)
    if version != VERSION:
        database.close()
        raise IntegrityError(f"the index {path} has version {version}, this program reads {VERSION}")
