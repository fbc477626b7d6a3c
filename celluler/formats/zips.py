"""Zip archives from strangers: the table of contents, bounded before `zipfile` reads it, and nothing compressed.

The bytes of every entry lie in the file as they are, so an archive can hold no more than it weighs.
"""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

from celluler.errors import InvalidSpec

MAX_ENTRIES = 65_535
MAX_DIRECTORY_BYTES = 16 << 20
_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_LOCAL_BYTES, _CENTRAL_BYTES = 30, 46


@dataclass(frozen=True, slots=True)
class Entry:
    """start: of its bytes in the file. None for one that is compressed: it can be named, and not read."""

    name: str
    size: int
    start: int | None


def open_zip(path: Path) -> dict[str, Entry]:
    """What an archive holds, by name. Raises InvalidSpec for one that is damaged, over a limit, or ambiguous."""
    try:
        size = path.stat().st_size
        _bound(path, size)
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            entries = [_entry(info, file, size) for info in archive.infolist()]
    except (OSError, ValueError, NotImplementedError, struct.error, zipfile.BadZipFile) as error:
        raise InvalidSpec("file", f"is a damaged zip archive: {str(error)[:128]}") from error
    named = {one.name: one for one in entries}
    if len(named) != len(entries):
        raise InvalidSpec("file", "is a zip archive with two entries of one name")
    place = 0
    for one in sorted((one for one in entries if one.start is not None), key=lambda one: one.start or 0):
        assert one.start is not None
        if one.start < place:
            raise InvalidSpec("file", "is a zip archive whose entries overlap")
        place = one.start + one.size
    return named


def _bound(path: Path, size: int) -> None:
    """The end of the archive is the end of the file, and its table is small: asked before anything reads the table."""
    with path.open("rb") as file:
        file.seek(max(0, size - 98))
        tail = file.read(98)
    end = tail[-22:]
    if len(end) < 22 or end[:4] != _END or end[20:] != b"\0\0":
        raise InvalidSpec("file", "is a zip archive that does not end where the file ends")
    entries, directory = struct.unpack("<H", end[10:12])[0], struct.unpack("<I", end[12:16])[0]
    if tail[-42:-38] == _LOCATOR64:
        if tail[-98:-94] != _END64:
            raise InvalidSpec("file", "is a zip archive with a torn end")
        entries, directory = struct.unpack("<QQ", tail[-66:-50])
        size -= 76
    if entries > MAX_ENTRIES or directory > min(MAX_DIRECTORY_BYTES, size):
        raise InvalidSpec("file", f"is a zip archive of {entries} entries, named in {directory} bytes: over the limit")
    with path.open("rb") as file:
        file.seek(max(0, size - 22 - directory))
        if (found := _count(file.read(directory))) != entries:
            raise InvalidSpec("file", f"is a zip archive that says it has {entries} entries, and has {found}")


def _count(table: bytes) -> int:
    """Of whole entries; the library reads as many as there are, whatever the end of the archive says."""
    count = place = 0
    while place + _CENTRAL_BYTES <= len(table) and count <= MAX_ENTRIES:
        place += _CENTRAL_BYTES + sum(struct.unpack("<HHH", table[place + 28 : place + 34]))
        count += 1
    return count


def _entry(info: zipfile.ZipInfo, file: object, size: int) -> Entry:
    if info.flag_bits & 1:
        raise InvalidSpec("file", "is a zip archive with encrypted entries")
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        return Entry(info.filename, info.file_size, None)
    file.seek(info.header_offset)  # type: ignore[attr-defined]
    head = file.read(_LOCAL_BYTES)  # type: ignore[attr-defined]
    if len(head) < _LOCAL_BYTES or head[:4] != b"PK\x03\x04":
        raise InvalidSpec("file", "is a zip archive whose table points nowhere")
    start = info.header_offset + _LOCAL_BYTES + sum(struct.unpack("<HH", head[26:30]))
    if start + info.file_size > size:
        raise InvalidSpec("file", "is a zip archive whose entries are longer than the file")
    return Entry(info.filename, info.file_size, start)
