"""What a command prints: results on stdout, everything else on stderr.

With `--json` one document, or one a line for streams, each with the schema. Else tables on a terminal, and lines with
tabs and without a heading into a pipe.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from celluler.views import SCHEMA, to_json


class Output:
    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def document(self, record: Any) -> None:
        """One JSON object on a line: a record's fields, or a mapping."""
        print(json.dumps({"schema": SCHEMA, **to_json(record)}, ensure_ascii=False), flush=True)

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        if not sys.stdout.isatty():
            for row in rows:
                print("\t".join(_cell(value) for value in row))
            return
        from rich.console import Console  # noqa: PLC0415  # only a terminal pays for it
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        table = Table(*headings, box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*(Text(_cell(value)) for value in row))  # Text: a peer's words are no markup
        Console().print(table)

    def listing(
        self, name: str, records: Sequence[Any], headings: Sequence[str], rows: Iterable[Sequence[object]]
    ) -> None:
        """Records as one document, or as a table."""
        if self.as_json:
            self.document({name: records})
        else:
            self.table(headings, rows)

    def facts(self, record: Any, lines: Mapping[str, object]) -> None:
        """One record as a document, or as a list of names and values."""
        if self.as_json:
            self.document(record)
        else:
            _lines([(name, _cell(value)) for name, value in lines.items() if value or value == 0])


def _lines(rows: Sequence[tuple[str, str]]) -> None:
    """Names and values; on a terminal aligned and never wrapped, so that ids and addresses can be copied."""
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        print(f"{name:<{width}}  {value}" if sys.stdout.isatty() else f"{name}\t{value}")


def say(text: str) -> None:
    """Narration, for people."""
    print(printable(text, keep="\n"), file=sys.stderr, flush=True)


def ending(name: str) -> str:
    """The end of an id or a CID, by which people may name it: the beginnings are all alike."""
    return name[-8:]


def printable(text: str, *, keep: str = "") -> str:
    """Without what would steer a terminal or turn the direction of writing: much of what is shown, others wrote."""
    return "".join(char if char in keep or not _steers(char) else " " if char in "\t\n" else "\ufffd" for char in text)


def _steers(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _cell(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_cell(item) for item in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else printable(str(value))
