"""A model or dataset as part of a path: `author/name…` or a CID, so that something may follow it.

A model may be called `versions` or `card`: were the reference matched as any text, `alice/card` would be the card of
`alice`.
"""

from __future__ import annotations

from starlette.convertors import Convertor, register_url_convertor

REFERENCE = "{ref:reference}"


class _ReferenceConvertor(Convertor[str]):
    regex = r"[^/]+/[^/]+|b[a-z2-7]{50,80}"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("reference", _ReferenceConvertor())
