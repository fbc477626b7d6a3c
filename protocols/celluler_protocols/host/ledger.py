"""The violations ledger and the traffic meter: bounded tables, time as an argument, no network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from celluler.identity import PeerId
from celluler_protocols.host.limits import HostLimits, Traffic, Violation

_REASON_CHARACTERS = 200


@dataclass(slots=True)
class _Entry:
    last: Violation
    since_ban: int = 0
    banned_until_s: float = float("-inf")


class Ledger:
    """Counts violations by peer and says who is banned. When full, the least recent offender not banned goes."""

    def __init__(self, limits: HostLimits) -> None:
        self._limits = limits
        self._entries: OrderedDict[PeerId, _Entry] = OrderedDict()

    def record(self, peer: PeerId, reason: str, now: float) -> bool:
        """Count one violation. True when it is the one that bans the peer."""
        entry = self._entries.pop(peer, None) or _Entry(Violation(peer, "", now, 0))
        entry.last = Violation(peer, reason[:_REASON_CHARACTERS], now, entry.last.count + 1)
        entry.since_ban += 1
        self._entries[peer] = entry
        self._make_room(now)
        if entry.since_ban < self._limits.violations_before_ban:
            return False
        entry.since_ban = 0
        entry.banned_until_s = now + self._limits.ban_s
        return True

    def banned(self, peer: PeerId, now: float) -> bool:
        entry = self._entries.get(peer)
        return entry is not None and now < entry.banned_until_s

    @property
    def violations(self) -> tuple[Violation, ...]:
        """The last violation of each peer remembered, least recent first."""
        return tuple(entry.last for entry in self._entries.values())

    def _make_room(self, now: float) -> None:
        while len(self._entries) > self._limits.ledger_peers:
            free = (peer for peer, entry in self._entries.items() if entry.banned_until_s <= now)
            del self._entries[next(free, next(iter(self._entries)))]


class Meter:
    """Bytes by peer. Bounded: beyond `peers` the one that moved least recently is forgotten."""

    def __init__(self, peers: int) -> None:
        self._peers = peers
        self._table: OrderedDict[PeerId, Traffic] = OrderedDict()

    def add(self, peer: PeerId, *, sent: int = 0, received: int = 0) -> None:
        seen = self._table.pop(peer, None) or Traffic()
        self._table[peer] = Traffic(seen.sent_bytes + sent, seen.received_bytes + received)
        if len(self._table) > self._peers:
            self._table.popitem(last=False)

    @property
    def traffic(self) -> Mapping[PeerId, Traffic]:
        return dict(self._table)


class Slots:
    """How many inbound streams are being served: a bound for all and one for each peer."""

    def __init__(self, most: int, a_peer: int) -> None:
        self._most, self._a_peer = most, a_peer
        self._taken: dict[PeerId, int] = {}
        self._total = 0

    def take(self, peer: PeerId) -> bool:
        taken = self._taken.get(peer, 0)
        if self._total >= self._most or taken >= self._a_peer:
            return False
        self._taken[peer] = taken + 1
        self._total += 1
        return True

    def give_back(self, peer: PeerId) -> None:
        left = self._taken[peer] - 1
        self._total -= 1
        if left:
            self._taken[peer] = left
        else:
            del self._taken[peer]

    @contextmanager
    def held(self, peer: PeerId) -> Iterator[bool]:
        """For the length of the block: True with a slot, False without one."""
        taken = self.take(peer)
        try:
            yield taken
        finally:
            if taken:
                self.give_back(peer)

    @property
    def total(self) -> int:
        return self._total
