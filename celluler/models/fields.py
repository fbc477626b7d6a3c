"""What a person or a peer may write into a field of a declarative document: one rule a field.

A rule reads a parsed JSON value and says in words what it allows; the parser, the reference page and the canonical
form of a document all come from the same declarations. Knows nothing of layers, shapes or tensors.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Protocol

from celluler.errors import InvalidSpec

MAX_SIZE = 1 << 20
"""The largest single dimension, width or count in a document."""


class Rule(Protocol):
    """`read` returns the checked value or raises InvalidSpec with `path`; `text` is for the reference page."""

    @property
    def text(self) -> str: ...

    def read(self, value: Any, path: str) -> Any: ...


@dataclass(frozen=True, slots=True)
class Whole:
    """An integer; `True` is none."""

    low: int
    high: int

    @property
    def text(self) -> str:
        return f"integer {self.low}…{self.high}"

    def read(self, value: Any, path: str) -> int:
        if type(value) is not int or not self.low <= value <= self.high:
            raise InvalidSpec(path, f"must be an integer in {self.low}…{self.high}")
        return value


@dataclass(frozen=True, slots=True)
class Real:
    """A finite number, `low` included and `high` not."""

    low: float
    high: float

    @property
    def text(self) -> str:
        return f"number {self.low} ≤ x < {self.high}"

    def read(self, value: Any, path: str) -> float:
        # An integer is compared before it is converted: float() of a huge one overflows.
        if type(value) not in (int, float) or not self.low <= value < self.high or not math.isfinite(value):
            raise InvalidSpec(path, f"must be a number, {self.low} ≤ x < {self.high}")
        return float(value)


@dataclass(frozen=True, slots=True)
class Flag:
    @property
    def text(self) -> str:
        return "true or false"

    def read(self, value: Any, path: str) -> bool:
        if not isinstance(value, bool):
            raise InvalidSpec(path, "must be true or false")
        return value


@dataclass(frozen=True, slots=True)
class Choice:
    options: tuple[str, ...]

    @property
    def text(self) -> str:
        return " · ".join(f"`{option}`" for option in self.options)

    def read(self, value: Any, path: str) -> str:
        if not isinstance(value, str) or value not in self.options:
            raise InvalidSpec(path, f"must be one of {', '.join(self.options)}")
        return value


@dataclass(frozen=True, slots=True)
class Sizes:
    """The shape of one sample: between 1 and `rank` dimensions."""

    rank: int = 4

    @property
    def text(self) -> str:
        return f"1…{self.rank} integers 1…{MAX_SIZE}"

    def read(self, value: Any, path: str) -> tuple[int, ...]:
        if not isinstance(value, list | tuple) or not 1 <= len(value) <= self.rank:
            raise InvalidSpec(path, f"must be a list of 1…{self.rank} integers")
        size = Whole(1, MAX_SIZE)
        return tuple(size.read(item, f"{path}[{place}]") for place, item in enumerate(value))


def declare(rule: Rule, doc: str, *, default: Any = MISSING) -> Any:
    """A dataclass field of a document. doc: what it means, for the reference page."""
    return field(default=default, metadata={"rule": rule, "doc": doc})


def rule_of(declared: Field[Any]) -> Rule:
    rule: Rule = declared.metadata["rule"]
    return rule


def read_fields(cls: type, document: Any, path: str, *, besides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Arguments for `cls` from a JSON object: everything known, nothing unknown, nothing required missing.

    besides: keys that the caller reads itself.
    """
    if not isinstance(document, dict):
        raise InvalidSpec(path, "must be an object")
    declared = {one.name: one for one in fields(cls) if "rule" in one.metadata}
    for key in document:
        if key not in declared and key not in besides:
            allowed = ", ".join([*besides, *declared])
            raise InvalidSpec(_join(path, str(key)[:64]), f"unknown field; allowed: {allowed}")
    values = {}
    for name, one in declared.items():
        if name in document:
            values[name] = rule_of(one).read(document[name], _join(path, name))
        elif one.default is MISSING:
            raise InvalidSpec(_join(path, name), "is missing")
    return values


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
