"""One source's account: what it owes, what it lacks, and how much more it may be asked for.

A source may owe what it delivered lately in `WINDOW_S`: enough to keep it busy while an answer travels, little enough
that its debts are soon paid by others when it dies. Before anything is known of it, `FIRST_WINDOW_BYTES`.

Knows nothing of the other sources. Time is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from celluler.content.digest import Digest
from celluler.content.progress import Transport

WINDOW_S = 0.25
FIRST_WINDOW_BYTES = {Transport.STREAM: 4 << 20, Transport.BULK: 16 << 20}
MIN_WINDOW_BYTES = 2 << 20
MAX_WINDOW_BYTES = {Transport.STREAM: 16 << 20, Transport.BULK: 64 << 20}  # a mover's bytes do not pass our memory
MAX_ASKED = 128
"""Digests asked of one source and not yet kept."""
LACK_S = 2.0
"""A source is asked again for what it lacked so long ago: what holds a part may grow."""
LONG_DENIAL = 256
"""Denials in a row after which a source is asked `REST_S` apart: denying is cheap, and asking is not."""
REST_S = 0.05
_SILENT_S = 2.0  # after so long without an answer the rate to show is none


@dataclass(slots=True)
class Window:
    heard_s: float
    asked: dict[Digest, int] = field(default_factory=dict)  # digest -> bytes expected, until answered
    keeping: dict[Digest, int] = field(default_factory=dict)  # the same, until kept
    lacks: dict[Digest, float] = field(default_factory=dict)  # digest -> when it may be asked for again
    transport: Transport = Transport.STREAM
    owed_bytes: int = 0  # asked and keeping together
    denials: int = 0  # in a row
    rest_until_s: float = 0.0
    rate: float | None = None  # bytes a second over the latest intervals
    anew: bool = False  # that was of another transport
    interval_start_s: float = 0.0
    interval_bytes: int = 0

    def room(self) -> tuple[int, int]:
        """(bytes, digests) that may be asked now: none until a quarter is free, so that requests go in batches.

        With half of it, a source a tenth of a second away ran dry between two batches of a window it had earned so far.
        """
        unknown = self.rate is None or self.anew
        window = FIRST_WINDOW_BYTES[self.transport] if unknown else int((self.rate or 0.0) * WINDOW_S)
        window = max(MIN_WINDOW_BYTES, min(MAX_WINDOW_BYTES[self.transport], window))
        size, count = window - self.owed_bytes, MAX_ASKED - len(self.asked) - len(self.keeping)
        enough = size >= window // 4 and count >= MAX_ASKED // 4
        return (size, count) if enough else (0, 0)

    def switch(self, transport: Transport) -> None:
        """Its bytes go another way from now on: how fast, is to be seen."""
        if transport is not self.transport:
            self.transport, self.anew = transport, True

    def may_have(self, digest: Digest, now: float) -> bool:
        return self.lacks.get(digest, now) <= now

    def ask(self, digest: Digest, size: int, now: float) -> None:
        if not self.asked:  # it owed nothing until now: idle time is not slowness
            self.heard_s = self.interval_start_s = now
            self.interval_bytes = 0
        self.asked[digest] = size
        self.owed_bytes += size

    def answered(self, digest: Digest, received: int, now: float) -> None:
        self.owed_bytes -= self.asked.pop(digest)
        self.heard_s = now
        self.interval_bytes += received
        elapsed = now - self.interval_start_s
        if elapsed >= WINDOW_S:
            rate = self.interval_bytes / elapsed
            known = None if self.anew else self.rate
            self.rate, self.anew = rate if known is None or rate > known else (known + rate) / 2, False
            self.interval_start_s, self.interval_bytes = now, 0

    def forgive(self, digest: Digest) -> None:
        """No answer will come."""
        self.owed_bytes -= self.asked.pop(digest)

    def denied(self, digest: Digest, now: float) -> None:
        self.lacks[digest] = now + LACK_S
        self.denials += 1
        if self.denials >= LONG_DENIAL:
            self.rest(now)

    def rest(self, now: float) -> None:
        self.rest_until_s = now + REST_S

    def keep(self, digest: Digest, size: int) -> None:
        self.denials = 0
        self.keeping[digest] = size
        self.owed_bytes += size

    def kept(self, digest: Digest) -> None:
        self.owed_bytes -= self.keeping.pop(digest, 0)

    def rate_at(self, now: float) -> float:
        """To show: of the interval that runs while nothing older is known, none after a silence."""
        if now - self.heard_s > _SILENT_S:
            return 0.0
        if self.rate is None:
            return self.interval_bytes / max(now - self.interval_start_s, WINDOW_S)
        return self.rate
