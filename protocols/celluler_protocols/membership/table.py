"""Who is believed to be there, who was, and in which order they are asked. Knows nothing of messages or timers."""

from __future__ import annotations

import math
import random
from bisect import bisect_right, insort
from collections.abc import Container, Iterator
from dataclasses import dataclass
from enum import StrEnum

from celluler.identity import PeerId, Signed

from .messages import MAX_PAGE_BYTES, Capabilities, Page, PeerRecord
from .timers import Timer


class Status(StrEnum):
    ALIVE = "alive"
    SUSPECT = "suspect"


@dataclass(frozen=True, slots=True)
class Member:
    """One member as seen from here. round_trip_s: smoothed, None before the first direct answer."""

    peer: PeerId
    addresses: tuple[str, ...]
    nickname: str
    capabilities: Capabilities
    status: Status
    incarnation: int
    round_trip_s: float | None

    @property
    def region(self) -> str:
        """Where it says it stands; empty when it does not say."""
        return self.capabilities.region


class Entry:
    """A member's place in the table."""

    __slots__ = ("heard_at", "round_trip_s", "signed", "suspicion")

    def __init__(self, signed: Signed[PeerRecord]) -> None:
        self.signed = signed
        self.suspicion: Timer | None = None
        self.heard_at = -math.inf  # last message from it while suspected
        self.round_trip_s: float | None = None

    @property
    def incarnation(self) -> int:
        return self.signed.record.incarnation

    def member(self) -> Member:
        record = self.signed.record
        status = Status.ALIVE if self.suspicion is None else Status.SUSPECT
        return Member(
            self.signed.signer,
            record.addresses,
            record.nickname,
            record.capabilities,
            status,
            record.incarnation,
            self.round_trip_s,
        )


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A former member: only a higher incarnation brings it back. left: it said so itself, do not look for it."""

    signed: Signed[PeerRecord]
    incarnation: int
    left: bool


class Table:
    """Members by peer id, the order of asking, and a bounded memory of the departed."""

    def __init__(self, rng: random.Random, *, max_members: int, max_tombstones: int) -> None:
        self._rng = rng
        self._max_members, self._max_tombstones = max_members, max_tombstones
        self._entries: dict[PeerId, Entry] = {}
        self._raws: set[bytes] = set()
        self._sorted: list[PeerId] = []
        self._order: list[PeerId] = []
        self._next = 0
        self.tombstones: dict[PeerId, Tombstone] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, peer: str) -> Entry | None:
        return self._entries.get(PeerId(peer))

    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._entries.values())

    def holds(self, envelope: bytes) -> bool:
        """True for the very bytes of a record kept here, of a member or of a departed one."""
        return envelope in self._raws

    @property
    def full(self) -> bool:
        return len(self._entries) >= self._max_members

    def add(self, signed: Signed[PeerRecord]) -> Entry:
        """A newcomer gets a random place in the order of asking, so that no two nodes ask in the same order."""
        peer = signed.signer
        self._forget(peer)
        self._raws.add(signed.raw)
        entry = self._entries[peer] = Entry(signed)
        insort(self._sorted, peer)
        place = self._rng.randint(0, len(self._order))
        self._order.insert(place, peer)
        if place < self._next:
            self._next += 1
        return entry

    def renew(self, entry: Entry, signed: Signed[PeerRecord]) -> None:
        self._raws.discard(entry.signed.raw)
        self._raws.add(signed.raw)
        entry.signed = signed

    def remove(self, peer: PeerId, *, incarnation: int, left: bool) -> None:
        """Bury a member; the oldest tombstone makes room."""
        entry = self._entries.pop(peer)
        self._sorted.remove(peer)
        place = self._order.index(peer)
        del self._order[place]
        if place < self._next:
            self._next -= 1
        if len(self.tombstones) >= self._max_tombstones:
            self._forget(next(iter(self.tombstones)))
        self.tombstones[peer] = Tombstone(entry.signed, incarnation, left)

    def _forget(self, peer: PeerId) -> None:
        stone = self.tombstones.pop(peer, None)
        if stone is not None:
            self._raws.discard(stone.signed.raw)

    def next_target(self, skip: Container[PeerId]) -> PeerId | None:
        """Round robin in random order, shuffled anew each time round: nobody waits longer than two rounds."""
        for _ in range(len(self._order)):
            if self._next >= len(self._order):
                self._rng.shuffle(self._order)
                self._next = 0
            peer = self._order[self._next]
            self._next += 1
            if peer not in skip:
                return peer
        return None

    def hasten_one(self, after: str, last: str | None, listed: Container[PeerId]) -> None:
        """Another node's list of (after, last] misses some whom we believe in: ask one of them next. Only one a list,
        so that a liar cannot take over the order of asking."""
        end = len(self._sorted) if last is None else bisect_right(self._sorted, last)
        missed = [peer for peer in self._sorted[bisect_right(self._sorted, after) : end] if peer not in listed]
        if missed:
            peer = self._rng.choice(missed)
            self._order.remove(peer)
            self._next = min(self._next, len(self._order))
            self._order.insert(self._next, peer)

    def some(self, count: int, skip: Container[PeerId]) -> list[PeerId]:
        """Up to `count` different members at random."""
        drawn = self._rng.sample(self._order, min(count + 2, len(self._order)))
        return [peer for peer in drawn if peer not in skip][:count]

    def any_evicted(self) -> Tombstone | None:
        """One at random that was evicted and never said that it left."""
        evicted = [stone for stone in self.tombstones.values() if not stone.left]
        return self._rng.choice(evicted) if evicted else None

    def page(self, after: str, limit: int, own: Signed[PeerRecord]) -> Page:
        """Records behind `after`, ours at its place among them, as many as are wanted and one message holds."""
        records: list[bytes] = []
        room = MAX_PAGE_BYTES
        for raw in self._behind(after, own):
            room -= len(raw) + 4
            if len(records) >= limit or room < 0:
                return Page(tuple(records), more=True)
            records.append(raw)
        return Page(tuple(records), more=False)

    def _behind(self, after: str, own: Signed[PeerRecord]) -> Iterator[bytes]:
        """Records in order of peer id, ours once, no suspect's."""
        ours_waits = own.signer > after
        for place in range(bisect_right(self._sorted, after), len(self._sorted)):
            peer = self._sorted[place]
            if ours_waits and peer > own.signer:
                ours_waits = False
                yield own.raw
            entry = self._entries[peer]
            if entry.suspicion is None:
                yield entry.signed.raw
        if ours_waits:
            yield own.raw
