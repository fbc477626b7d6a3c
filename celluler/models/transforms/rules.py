"""What may stand in a field of a step, beside what `celluler.models.fields` knows: lists, words, bytes."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from celluler.errors import InvalidSpec
from celluler.models.fields import Rule


@dataclass(frozen=True, slots=True)
class Several:
    """A list of what one rule allows."""

    rule: Rule
    least: int
    most: int

    @property
    def text(self) -> str:
        return f"{self.least}…{self.most} × {self.rule.text}"

    def read(self, value: Any, path: str) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or not self.least <= len(value) <= self.most:
            raise InvalidSpec(path, f"must be a list of {self.least}…{self.most}")
        return tuple(self.rule.read(item, f"{path}[{place}]") for place, item in enumerate(value))


@dataclass(frozen=True, slots=True)
class Words:
    """A string of `least` to `most` bytes of UTF-8, none of them zero."""

    least: int
    most: int

    @property
    def text(self) -> str:
        return f"string of {self.least}…{self.most} bytes"

    def read(self, value: Any, path: str) -> str:
        if not isinstance(value, str) or "\0" in value:
            raise InvalidSpec(path, "must be a string without zeros")
        try:
            size = len(value.encode("utf-8"))
        except UnicodeEncodeError:
            raise InvalidSpec(path, "is not Unicode") from None
        if not self.least <= size <= self.most:
            raise InvalidSpec(path, f"has {size} bytes, must be {self.least}…{self.most}")
        return value


@dataclass(frozen=True, slots=True)
class Octets:
    """Bytes, in base64."""

    most: int

    @property
    def text(self) -> str:
        return f"base64 of at most {self.most} bytes"

    def read(self, value: Any, path: str) -> bytes:
        try:
            raw = base64.b64decode(value, validate=True) if isinstance(value, str) and value.isascii() else b""
        except (binascii.Error, ValueError):
            raw = b""
        if not 0 < len(raw) <= self.most:
            raise InvalidSpec(path, f"must be base64 of 1…{self.most} bytes")
        return raw


@dataclass(frozen=True, slots=True)
class Document:
    """A JSON object that somebody else reads."""

    what: str

    @property
    def text(self) -> str:
        return self.what

    def read(self, value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise InvalidSpec(path, "must be an object")
        return value
