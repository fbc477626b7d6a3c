"""JSON from strangers, from a file: bounded, without doubled keys, without NaN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from celluler.errors import InvalidSpec


def read_json_file(path: Path, what: str, limit: int) -> dict[str, Any]:
    """The object in a file. Raises InvalidSpec at `what`."""
    try:
        if path.stat().st_size > limit:
            raise InvalidSpec(what, f"has {path.stat().st_size} bytes, the limit is {limit}")
        document = json.loads(
            path.read_bytes().decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant
        )
    except OSError as error:
        raise InvalidSpec(what, f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidSpec(what, f"is not JSON: {str(error)[:128]}") from error
    if not isinstance(document, dict):
        raise InvalidSpec(what, "must be a JSON object")
    return document


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return document


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number")
