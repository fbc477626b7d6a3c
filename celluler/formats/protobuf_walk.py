"""The skeleton of a protobuf message, walked over a file before any library builds objects of it.

An empty submessage takes two bytes in a file and a hundred in memory; so messages are counted first. Source:
protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from mmap import mmap

from celluler.errors import InvalidSpec

MAX_FIELDS = 1_000_000
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Message:
    """A type of message: its fields that hold messages (number → type). allowed: numbers it may have; None: any.

    required: fields without which it is not one.
    """

    name: str
    fields: Mapping[int, Message] = field(default_factory=dict)
    allowed: frozenset[int] | None = None
    required: frozenset[int] = frozenset()


class Walk:
    """One walk over one file. data: its bytes, mapped."""

    def __init__(self, data: bytes | mmap) -> None:
        self._data, self._place, self._fields = data, 0, 0

    def message(self, kind: Message, end: int | None = None, depth: int = 0) -> None:
        """Every field of the message that begins where the walk stands. Raises InvalidSpec, at `file`."""
        end = len(self._data) if end is None else end
        if depth > 16:
            raise InvalidSpec("file", "holds messages within messages, deeper than any model")
        seen = set()
        while self._place < end:
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise InvalidSpec("file", f"has more than {MAX_FIELDS} fields")
            tag = self._varint(end)
            number, form = tag >> 3, tag & 7
            if not number or (kind.allowed is not None and number not in kind.allowed):
                raise InvalidSpec("file", f"has a field {number} that no {kind.name} has")
            seen.add(number)
            self._field(kind.fields.get(number), form, end, depth)
        if not kind.required <= seen:
            raise InvalidSpec("file", f"holds a {kind.name} that lacks fields {sorted(kind.required - seen)}")

    def _field(self, kind: Message | None, form: int, end: int, depth: int) -> None:
        if form == _VARINT:
            self._varint(end)
            return
        if form not in (_FIXED64, _FIXED32, _BYTES):
            raise InvalidSpec("file", f"has a field of the unknown form {form}")
        length = self._varint(end) if form == _BYTES else 8 if form == _FIXED64 else 4
        if length > end - self._place:
            raise InvalidSpec("file", "has a field that is longer than what holds it")
        if form == _BYTES and kind is not None:
            self.message(kind, self._place + length, depth + 1)
        else:
            self._place += length

    def _varint(self, end: int) -> int:
        value = 0
        for shift in range(0, 70, 7):
            if self._place >= end:
                break
            byte = self._data[self._place]
            self._place += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value & ((1 << 64) - 1)
        raise InvalidSpec("file", "ends within a number, or has one that never ends")
