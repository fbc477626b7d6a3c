"""JSON from strangers, from a file: bounded, without doubled keys, without NaN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from celluler.documents import read_json
from celluler.errors import InvalidSpec


def read_json_file(path: Path, what: str, limit: int) -> dict[str, Any]:
    """The object in a file. Raises InvalidSpec at `what`."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)  # no more, whatever it is: a device says that it has no bytes
    except OSError as error:
        raise InvalidSpec(what, f"cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise InvalidSpec(what, f"has more than {limit} bytes")
    try:
        document = read_json(data, limit=limit)
    except InvalidSpec as error:
        raise InvalidSpec(f"{what}.{error.path}" if error.path else what, error.problem) from error
    if not isinstance(document, dict):
        raise InvalidSpec(what, "must be a JSON object")
    return document
