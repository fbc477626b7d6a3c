"""GGUF, versions 2 and 3: a header, metadata, a table of tensors, the tensors. Source: ggml/docs/gguf.md.

The format bounds nothing itself: every count is held here against a limit and every length against the file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from celluler.errors import InvalidSpec
from celluler.formats.gguf_blocks import BLOCK_TYPES, BlockType
from celluler.formats.stored import MAX_ELEMENTS, MAX_NAME, MAX_TENSORS, Floats, Stored

MAX_KEYS = 4096
MAX_TEXT_BYTES = 1 << 20
MAX_ITEMS = 4 << 20
"""Of one array in the metadata: vocabularies have up to half a million."""
MAX_KEPT = 4096
"""Items of a numeric array that are read; of longer ones, and of texts, the length is told."""
MAX_METADATA_BYTES = 256 << 20

_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_FLOAT32, _TEXT, _ARRAY = 6, 8, 9


@dataclass(frozen=True, slots=True)
class Many:
    """An array of the metadata that is not kept. item: its type. start, end: of its items in the file."""

    count: int
    item: int = 0
    start: int = 0
    end: int = 0


Value = int | float | bool | str | tuple[int | float | bool, ...] | Many


@dataclass(frozen=True, slots=True)
class Gguf:
    path: Path
    metadata: Mapping[str, Value]
    tensors: Mapping[str, Stored]

    def texts(self, key: str, most: int) -> tuple[str, ...]:
        """An array of texts; empty where there is none. Raises InvalidSpec."""
        told = self.metadata.get(key, Many(0, _TEXT))
        if not isinstance(told, Many) or told.item != _TEXT or told.count > most:
            raise InvalidSpec(f"metadata.{key[:64]}", f"is no array of at most {most} texts")
        data, at, found = self._items(told), 0, []
        for _ in range(told.count):
            length = int.from_bytes(data[at : at + 8], "little")
            try:
                found.append(data[at + 8 : at + 8 + length].decode("utf-8"))
            except UnicodeDecodeError as error:
                raise InvalidSpec(f"metadata.{key[:64]}", "holds a text that is not UTF-8") from error
            at += 8 + length
        return tuple(found)

    def numbers(self, key: str, most: int) -> tuple[float, ...]:
        """An array of numbers; empty where there is none. Raises InvalidSpec."""
        told = self.metadata.get(key, ())
        if isinstance(told, Many) and told.item in _NUMBERS and told.count <= most:
            return struct.unpack(f"<{told.count}{_NUMBERS[told.item][1]}", self._items(told))
        if not isinstance(told, tuple) or len(told) > most:
            raise InvalidSpec(f"metadata.{key[:64]}", f"is no array of at most {most} numbers")
        return told

    def _items(self, told: Many) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(told.start)
                data = file.read(told.end - told.start)
        except OSError as error:
            raise InvalidSpec("file", f"cannot be read: {error.strerror}") from error
        if len(data) != told.end - told.start:
            raise InvalidSpec("file", "became shorter while it was read")
        return data


def open_gguf(path: Path) -> Gguf:
    """Metadata, and where each tensor lies. Raises InvalidSpec."""
    try:
        with path.open("rb") as file:
            return _Reader(path, file, path.stat().st_size).read()
    except OSError as error:
        raise InvalidSpec("file", f"cannot be read: {error.strerror}") from error


class _Reader:
    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path, self._file, self._size, self._place = path, file, size, 0

    def read(self) -> Gguf:
        if self._take(4) != b"GGUF":
            raise InvalidSpec("file", "is no GGUF file")
        version = self._number("<I")
        if version not in (2, 3):
            raise InvalidSpec("file", f"is GGUF of version {version}; 2 and 3 are read, with little-endian numbers")
        tensors, keys = self._number("<Q"), self._number("<Q")
        if tensors > MAX_TENSORS or keys > MAX_KEYS:
            raise InvalidSpec("file", f"announces {tensors} tensors and {keys} keys: over {MAX_TENSORS} and {MAX_KEYS}")
        metadata: dict[str, Value] = {}
        for _ in range(keys):
            key = self._text(MAX_NAME)
            if key in metadata:
                raise InvalidSpec(f"metadata.{key[:64]}", "occurs twice")
            metadata[key] = self._value(self._number("<I"), key)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 8 <= alignment <= 1 << 16 or alignment & (alignment - 1):
            raise InvalidSpec("metadata.general.alignment", f"is {alignment!r}, must be a power of two")
        entries = [self._entry() for _ in range(tensors)]
        base = -(-self._place // alignment) * alignment
        return Gguf(self._path, metadata, self._lay_out(entries, base, alignment))

    def _value(self, kind: int, key: str) -> Value:
        if kind == _FLOAT32:  # as it was meant: 1e-5, not the double nearest to its nearest float
            return float(str(np.float32(self._number("<f"))))
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _TEXT:
            return self._text(MAX_TEXT_BYTES)
        if kind != _ARRAY:
            raise InvalidSpec(f"metadata.{key[:64]}", f"is of the unknown type {kind}")
        item, count = self._number("<I"), self._number("<Q")
        if count > MAX_ITEMS:
            raise InvalidSpec(f"metadata.{key[:64]}", f"has {count} items, the limit is {MAX_ITEMS}")
        start = self._place
        if item == _TEXT:
            for _ in range(count):
                self._take(self._length(MAX_TEXT_BYTES))
            return Many(count, item, start, self._place)
        if item not in _NUMBERS:
            raise InvalidSpec(f"metadata.{key[:64]}", f"is an array of the type {item}")
        form = _NUMBERS[item]
        data = self._take(count * struct.calcsize(form))
        if count > MAX_KEPT:
            return Many(count, item, start, self._place)
        return struct.unpack(f"<{count}{form[1]}", data)

    def _entry(self) -> tuple[str, BlockType, tuple[int, ...], int]:
        name = self._text(MAX_NAME)
        rank = self._number("<I")
        if not 1 <= rank <= 4:
            raise InvalidSpec(f"tensors.{name[:64]}", f"has {rank} dimensions")
        sides = tuple(self._number("<Q") for _ in range(rank))
        kind, offset = self._number("<I"), self._number("<Q")
        if kind not in BLOCK_TYPES:
            known = ", ".join(one.name for one in BLOCK_TYPES.values())
            raise InvalidSpec(
                f"tensors.{name[:64]}",
                f"is of the block type {kind}; read are {known}",
                hint="quantise the original to one of these",
            )
        form = BLOCK_TYPES[kind]
        if not all(1 <= side < MAX_ELEMENTS for side in sides) or math.prod(sides) >= MAX_ELEMENTS:
            raise InvalidSpec(f"tensors.{name[:64]}", "has a size that none has")
        if sides[0] % form.elements:
            raise InvalidSpec(f"tensors.{name[:64]}", f"has rows of {sides[0]}, no multiple of {form.elements}")
        return name, form, tuple(reversed(sides)), offset  # in the file the fastest dimension comes first

    def _lay_out(
        self, entries: list[tuple[str, BlockType, tuple[int, ...], int]], base: int, alignment: int
    ) -> dict[str, Stored]:
        """Tensors lie one behind another, aligned, and fill the file."""
        stored: dict[str, Stored] = {}
        place = 0
        for name, form, shape, offset in sorted(entries, key=lambda one: one[3]):
            if name in stored:
                raise InvalidSpec(f"tensors.{name[:64]}", "occurs twice")
            size = math.prod(shape) // form.elements * form.block_bytes
            if offset != place or base + offset + size > self._size:
                raise InvalidSpec(f"tensors.{name[:64]}", "does not lie where the one before it ends, within the file")
            place = -(-(offset + size) // alignment) * alignment
            stored[name] = self._stored(name, form, shape, base + offset, size)
        if self._size > max(base + place, self._place):
            raise InvalidSpec("file", f"has {self._size} bytes, its tensors end at {base + place}")
        return stored

    def _stored(self, name: str, form: BlockType, shape: tuple[int, ...], start: int, size: int) -> Stored:
        path = self._path

        def load() -> Floats:
            blocks = np.memmap(
                path, dtype=np.uint8, mode="r", offset=start, shape=(size // form.block_bytes, form.block_bytes)
            )
            return form.floats(np.asarray(blocks)).reshape(shape)

        # Whatever the blocks are, what is loaded is float32.
        return Stored(name, "F32", shape, load)

    def _number(self, form: str) -> int:
        number: int = struct.unpack(form, self._take(struct.calcsize(form)))[0]
        return number

    def _length(self, limit: int) -> int:
        length = self._number("<Q")
        if length > limit:
            raise InvalidSpec("file", f"holds a text of {length} bytes, the limit is {limit}")
        return length

    def _text(self, limit: int) -> str:
        try:
            return self._take(self._length(limit)).decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidSpec("file", "holds a text that is not UTF-8") from error

    def _take(self, count: int) -> bytes:
        if count > min(self._size, MAX_METADATA_BYTES) - self._place:
            raise InvalidSpec("file", f"ends, or is over the limit, within {count} bytes at {self._place}")
        self._place += count
        data = self._file.read(count)
        if len(data) != count:
            raise InvalidSpec("file", "became shorter while it was read")
        return data
