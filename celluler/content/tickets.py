"""Tickets for bulk connections, sans-IO: issued to an authenticated peer for one root, good once, for a short while.

The book keeps hashes, so that whoever reads its memory cannot redeem what it holds. It is bounded in all and for each
peer: who asks for tickets and never uses them takes no room from others. Time is an argument, in seconds on any
monotonic clock; who asks and what for is not looked into here.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from celluler.content.bulk_frames import TICKET_BYTES
from celluler.content.digest import Digest, digest_of
from celluler.errors import Busy

LIFE_S = 15.0
MAX_TICKETS = 256
MAX_TICKETS_A_PEER = 4


@dataclass(frozen=True, slots=True)
class Holder:
    """What a ticket was issued for. number: of the ticket, never used twice by one book."""

    number: int
    peer: str
    root: Digest


class Tickets:
    """Those issued and neither redeemed nor expired. Not for several threads at once."""

    def __init__(self, *, make: Callable[[], bytes] = lambda: secrets.token_bytes(TICKET_BYTES)) -> None:
        self._make = make
        self._live: dict[Digest, tuple[Holder, float]] = {}  # by hash, oldest first: all live equally long
        self._held: Counter[str] = Counter()
        self._issued = 0

    def __len__(self) -> int:
        return len(self._live)

    def issue(self, peer: str, root: Digest, now: float) -> tuple[bytes, Holder]:
        """A fresh ticket. Call `expire` before. Raises Busy when there is no room for this peer, or for anybody."""
        if len(self._live) >= MAX_TICKETS or self._held[peer] >= MAX_TICKETS_A_PEER:
            raise Busy("too many tickets are out", peer=peer)
        self._issued += 1
        ticket, holder = self._make(), Holder(self._issued, peer, root)
        self._live[digest_of(ticket)] = (holder, now + LIFE_S)
        self._held[peer] += 1
        return ticket, holder

    def redeem(self, ticket: bytes, now: float) -> Holder | None:
        """Whom it was issued to, the first time in its life; None for any other ticket."""
        key = digest_of(ticket)
        holder, until = self._live.get(key, (None, 0.0))
        if holder is None or now >= until:
            return None
        self._forget(key, holder)
        return holder

    def expire(self, now: float) -> tuple[Holder, ...]:
        """Forget those whose time is over. Returns them."""
        late = [(key, holder) for key, (holder, until) in self._live.items() if now >= until]
        for key, holder in late:
            self._forget(key, holder)
        return tuple(holder for _, holder in late)

    def _forget(self, key: Digest, holder: Holder) -> None:
        del self._live[key]
        self._held[holder.peer] -= 1
        if not self._held[holder.peer]:
            del self._held[holder.peer]
