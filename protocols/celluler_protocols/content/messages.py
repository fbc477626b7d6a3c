"""Words and limits of /celluler/content/1. Knows nothing of who says them when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import trio

from celluler.content.manifest import MAX_BLOCK_BYTES
from celluler.wire import Bytes32, Frames, Length

PROTOCOL_ID = "/celluler/content/1"
MAX_WANTED = 64
"""Digests in one Want."""
MAX_WANT_BYTES = 4096
"""Longest frame that a provider reads."""
MAX_OUTSTANDING = 256
"""Digests asked on one stream and not yet answered; asking for more is a violation."""

RECEIVE_BYTES = 1 << 18
END_OF_STREAM = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)


@dataclass(frozen=True, slots=True)
class Want:
    """Send me these."""

    digests: Annotated[tuple[Bytes32, ...], Length(1, MAX_WANTED)]


@dataclass(frozen=True, slots=True)
class Found:
    """One of them. The requester hashes it."""

    digest: Bytes32
    data: Annotated[bytes, Length(0, MAX_BLOCK_BYTES)]


@dataclass(frozen=True, slots=True)
class Absent:
    """One of them is not here."""

    digest: Bytes32


@dataclass(frozen=True, slots=True)
class Busy:
    """No answer will come on this stream; ask elsewhere or later. The provider closes."""


_WORDS = (Want, Found, Absent, Busy)  # wire tag = position


def frames() -> Frames:
    return Frames(_WORDS, limit=MAX_BLOCK_BYTES + 64)


def requests() -> Frames:
    """What a provider reads: the largest word that it may be sent is a full Want."""
    return Frames(_WORDS, limit=MAX_WANT_BYTES)
