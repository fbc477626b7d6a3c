"""How far a fetch is, for whoever watches it. Knows nothing of how it is made."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from celluler.content.digest import Digest


class Transport(Enum):
    """How a source's bytes come to us."""

    STREAM = "stream"
    BULK = "bulk"


@dataclass(frozen=True, slots=True)
class SourceProgress:
    """received_bytes: kept, of what this source gave. rate_bytes_s: lately; 0 for one that is silent."""

    peer: str
    received_bytes: int
    rate_bytes_s: float
    transport: Transport


@dataclass(frozen=True, slots=True)
class Progress:
    """kept_bytes of wanted_bytes are in the store; both 0 until the manifest is known. sources: those being asked."""

    root: Digest
    kept_bytes: int
    wanted_bytes: int
    sources: tuple[SourceProgress, ...] = ()

    @property
    def rate_bytes_s(self) -> float:
        return sum(source.rate_bytes_s for source in self.sources)

    @property
    def eta_s(self) -> float | None:
        """Seconds to go at this rate; None while nothing comes or nothing is known."""
        rate = self.rate_bytes_s
        return (self.wanted_bytes - self.kept_bytes) / rate if rate and self.wanted_bytes else None
