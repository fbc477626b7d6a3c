"""Steps between text and numbers: tokens, labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from celluler.errors import InvalidSpec
from celluler.models.fields import Flag, Whole, declare
from celluler.models.layers import Signal
from celluler.models.transforms.base import MAX_TEXT_BYTES, TEXT, Array, bounded, need
from celluler.models.transforms.elements import within
from celluler.models.transforms.rules import Several, Words

MAX_ENTRIES = 1 << 16
MAX_ENTRY_BYTES = 64
_NUMBER = Whole(0, (1 << 20) - 1)
_LENGTH = Whole(1, MAX_TEXT_BYTES)


def text_signal(given: Signal, path: str) -> None:
    """One text a sample. Raises InvalidSpec."""
    need(given, path, TEXT)
    if len(given.shape) != 1:
        raise InvalidSpec(path, "takes one text a sample")


def texts_of(x: Array) -> list[bytes]:
    """x: (n, bytes) uint8 → each up to its first zero."""
    return [row.tobytes().split(b"\0", 1)[0] for row in x]


def framed(numbers: Sequence[int], length: int, begin: int | None, end: int | None, pad: int) -> list[int]:
    """Exactly `length` numbers: cut so that there is room for both ends, then filled up."""
    room = length - (begin is not None) - (end is not None)
    whole = [*([] if begin is None else [begin]), *numbers[:room], *([] if end is None else [end])]
    return whole + [pad] * (length - len(whole))


@dataclass(frozen=True, slots=True)
class ByteTokens:
    """One number a byte of the text, `length` of them: cut, or filled up."""

    KIND: ClassVar[str] = "byte_tokens"

    length: int = declare(_LENGTH, "how many come out")
    offset: int = declare(_NUMBER, "added to every byte", default=0)
    begin: int | None = declare(_NUMBER, "stands before them", default=None)
    end: int | None = declare(_NUMBER, "stands behind them", default=None)
    pad: int = declare(_NUMBER, "fills up", default=0)

    def plan(self, given: Signal, path: str) -> Signal:
        text_signal(given, path)
        return framed_signal(self.length, self.begin, self.end, path)

    def run(self, x: Array) -> Array:
        return _tokens(x, self.length, self.begin, self.end, self.pad, lambda text: [one + self.offset for one in text])

    @property
    def largest(self) -> int:
        """Number that may come out."""
        return max(255 + self.offset, self.begin or 0, self.end or 0, self.pad)


@dataclass(frozen=True, slots=True)
class Tokenise:
    """The longest entry that the text goes on with, again and again; its number is its place. A character that begins
    none gives `unknown`, or without that nothing."""

    KIND: ClassVar[str] = "tokenise"

    entries: tuple[str, ...] = declare(Several(Words(1, MAX_ENTRY_BYTES), 1, MAX_ENTRIES), "the vocabulary, each once")
    length: int = declare(_LENGTH, "how many numbers come out: cut, or filled up")
    unknown: int | None = declare(_NUMBER, "for what no entry fits", default=None)
    begin: int | None = declare(_NUMBER, "stands before them", default=None)
    end: int | None = declare(_NUMBER, "stands behind them", default=None)
    pad: int = declare(_NUMBER, "fills up", default=0)
    lower: bool = declare(Flag(), "A…Z as a…z first", default=False)
    _places: dict[bytes, int] = field(init=False, repr=False, compare=False, default_factory=dict)
    _sizes: list[int] = field(init=False, repr=False, compare=False, default_factory=list)

    def __post_init__(self) -> None:
        for place, entry in enumerate(self.entries):
            self._places[entry.encode("utf-8")] = place
        self._sizes.append(max(map(len, self._places)))

    def plan(self, given: Signal, path: str) -> Signal:
        text_signal(given, path)
        if len(self._places) != len(self.entries):
            raise InvalidSpec(f"{path}.entries", "holds an entry twice")
        return framed_signal(self.length, self.begin, self.end, path)

    def run(self, x: Array) -> Array:
        return _tokens(x, self.length, self.begin, self.end, self.pad, lambda text: self.numbers(text, self.length))

    @property
    def largest(self) -> int:
        """Number that may come out."""
        return max(len(self.entries) - 1, self.unknown or 0, self.begin or 0, self.end or 0, self.pad)

    def numbers(self, text: bytes, most: int) -> list[int]:
        """Of the entries of a text, the first `most`."""
        found: list[int] = []
        text, at = text.lower() if self.lower else text, 0
        while at < len(text) and len(found) < most:
            for size in range(min(self._sizes[0], len(text) - at), 0, -1):
                if (number := self._places.get(text[at : at + size])) is not None:
                    found.append(number)
                    break
            else:
                size = 1
                while at + size < len(text) and text[at + size] & 0xC0 == 0x80:  # the rest of the character
                    size += 1
                if self.unknown is not None:
                    found.append(self.unknown)
            at += size
        return found


@dataclass(frozen=True, slots=True)
class Labels:
    """Of each whole number its name, as text."""

    KIND: ClassVar[str] = "labels"

    names: tuple[str, ...] = declare(Several(Words(1, 256), 1, MAX_ENTRIES), "the name of 0, and so on")

    def plan(self, given: Signal, path: str) -> Signal:
        need(given, path, "int64", "uint8")
        return bounded(TEXT, (*given.shape, self._width), path)

    def run(self, x: Array) -> Array:
        within(x, len(self.names))
        width = self._width
        rows = [name.encode("utf-8").ljust(width, b"\0") for name in self.names]
        table = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), width)
        return table[x.astype(np.int64)]

    @property
    def _width(self) -> int:
        return max(len(name.encode("utf-8")) for name in self.names)


def framed_signal(length: int, begin: int | None, end: int | None, path: str) -> Signal:
    if length <= (begin is not None) + (end is not None):
        raise InvalidSpec(f"{path}.length", f"is {length}, with no room for the text")
    return bounded("int64", (length,), path)


def _tokens(
    x: Array, length: int, begin: int | None, end: int | None, pad: int, numbers: Callable[[bytes], list[int]]
) -> Array:
    return np.array([framed(numbers(text), length, begin, end, pad) for text in texts_of(x)], np.int64)
