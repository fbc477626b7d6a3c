"""A model or dataset as part of a path: `author/name…`, a CID or `deploy:NAME`, so that something may follow it.

A model may be called `versions` or `card`: were the reference matched as any text, `alice/card` would be the card of
`alice`.
"""

from __future__ import annotations

import re
from functools import lru_cache

from starlette.convertors import Convertor, register_url_convertor

REFERENCE = "{ref:reference}"
_CONVERTOR = re.compile(r"\{(\w+):\w+\}")


class _ReferenceConvertor(Convertor[str]):
    regex = r"[^/]+/[^/]+|b[a-z2-7]{50,80}|deploy:[^/]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("reference", _ReferenceConvertor())


@lru_cache(maxsize=256)
def plain_path(path: str) -> str:
    """Of a route, as others are told of it: `/models/{ref:path}` → `/models/{ref}`."""
    return _CONVERTOR.sub(r"{\1}", path)
