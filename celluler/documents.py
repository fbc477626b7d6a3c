"""JSON that a stranger wrote, to plain values: bounded, each key once in its object, finite numbers."""

from __future__ import annotations

import json
from typing import Any

from celluler.errors import InvalidSpec


def read_json(data: bytes, *, limit: int) -> Any:
    """Raises InvalidSpec. limit: bytes. Depth is bounded by the interpreter alone: whoever recurses bounds it first."""
    if len(data) > limit:
        raise InvalidSpec("", f"{len(data)} bytes, limit {limit}")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_each_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # ValueError: bad UTF-8, bad JSON, an integer of thousands of digits
        raise InvalidSpec("", f"not JSON: {str(error)[:128]}") from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for key, value in pairs:
        if key in document:
            raise InvalidSpec(key[:64], "is there twice")
        document[key] = value
    return document


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not a number")
