"""What the download machine asks of its caller, and why it leaves a source. Knows nothing of how it decides."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from celluler.content.digest import Digest


@dataclass(frozen=True, slots=True)
class KeepBlock:
    """A verified manifest or leaf: put it into the store."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Begin:
    """All blocks are kept: begin the content, then tell `Download.begun` what is missing."""


@dataclass(frozen=True, slots=True)
class KeepChunk:
    """An answer of the right length: put it at each index, then tell `kept` or, when its hash is wrong, `corrupt`."""

    source: str
    digest: Digest
    indices: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class KeepPlaced:
    """A mover verified it and wrote it at these indices: tell the store so, then tell `kept`."""

    source: str
    digest: Digest
    indices: tuple[int, ...]


Step = KeepBlock | Begin | KeepChunk | KeepPlaced


class Reason(Enum):
    """Why a source is no longer asked."""

    ABSENT = "has not got it"
    BUSY = "has no time"
    GONE = "could not be reached or went away"
    STALLED = "owed answers for too long"
    LIED = "sent something false"
