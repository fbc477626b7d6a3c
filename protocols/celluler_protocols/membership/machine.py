"""SWIM as a machine without input and output: messages and `now` in, messages and events out.

Every period one member is asked whether it is there; if it does not answer, a few others ask for us; if none reaches
it, it is suspected, the suspicion is gossiped, and the suspect has some seconds to say, signed, that it lives. Every
node evicts by its own timer alone: there is no word by which one peer makes another evict a third.

Trusts nobody: what a peer is (addresses, incarnation, leaving) only its own signature says; a suspicion is hearsay,
accepted from members only and rationed for each sender. Tables, queues and messages are bounded, and what a node
sends in a period does not depend on how many members there are.

Sources: Das, Gupta, Motivala, "SWIM" (2002), sections 3 and 4; Dadgar, Phillips, Currey, "Lifeguard" (2017).
Knows nothing of streams, nor what the time of day is.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from celluler.identity import Identity, PeerId, Signed, seal

from .limits import Buckets
from .messages import (
    MAX_PAGE_RECORDS,
    Ack,
    Alive,
    Capabilities,
    Departure,
    Gone,
    Message,
    Nack,
    Page,
    PeerRecord,
    Ping,
    PingRequest,
    Rumour,
    Suspect,
    Sync,
    open_departure,
    open_peer_record,
    read_page,
)
from .rumours import RumourQueue
from .table import Entry, Member, Status, Table
from .timers import Timer, Timers

__all__ = ["Joined", "Left", "Member", "Output", "Profile", "Send", "Status", "Swim", "SwimConfig", "Synced", "Updated"]


@dataclass(frozen=True, slots=True)
class Profile:
    """What we tell the swarm about ourselves, besides our addresses."""

    nickname: str
    capabilities: Capabilities


@dataclass(frozen=True, slots=True)
class SwimConfig:
    """Times and bounds. All nodes of a swarm should agree on the first five."""

    period_s: float = 1.0
    ack_timeout_s: float = 0.5  # then others are asked to ask
    verdict_s: float = 1.5  # then it is suspected
    suspicion_factor: float = 4.0  # a suspect has factor × log10(members), 10 at least, periods to refute
    retransmit_factor: int = 4  # a rumour is told factor × ⌈log10(members + 1)⌉ times, and in a small swarm
    retransmit_least: int = 16  # this often: there it goes round so fast that its tellers fall silent too soon
    indirect: int = 3
    sync_every: int = 20  # periods between two short pages asked of somebody, against rumours that were missed
    sync_records: int = 8
    reconnect_every: int = 5  # periods between two tries at somebody evicted
    stall_s: float = 1.0  # a tick later than this means that we, not the others, were away
    max_health: int = 3
    max_members: int = 4096
    max_tombstones: int = 4096
    max_rumours: int = 4096
    max_relays: int = 128
    max_relays_each: int = 8
    sync_retry_s: float = 2.0
    sync_tries: int = 4


@dataclass(frozen=True, slots=True)
class Send:
    peer: PeerId
    message: Message


@dataclass(frozen=True, slots=True)
class Joined:
    """A peer is a member now; also one that was evicted and is back."""

    member: Member


@dataclass(frozen=True, slots=True)
class Updated:
    """Suspected, or cleared of it, or with new addresses or capabilities."""

    member: Member


@dataclass(frozen=True, slots=True)
class Left:
    """left: it said so itself. Otherwise it was silent for the whole time of its suspicion."""

    peer: PeerId
    left: bool


@dataclass(frozen=True, slots=True)
class Synced:
    """`join` is through.

    complete: we have the whole list, and the peer was told of us; else it fell silent before its list ended.
    """

    peer: PeerId
    complete: bool


Output: TypeAlias = Send | Joined | Updated | Left | Synced


@dataclass(slots=True)
class _Probe:
    """One member being asked whether it is there."""

    target: PeerId
    sequence: int
    sent_at: float
    timer: Timer
    introduces: bool = False  # ends a join: the target learns of us by it
    asked: bool = False
    helpers: set[PeerId] = field(default_factory=set)
    nacked: set[PeerId] = field(default_factory=set)


@dataclass(slots=True)
class _Relay:
    """We ask `target` on behalf of `requester`."""

    requester: PeerId
    sequence: int
    target: PeerId
    timer: Timer


@dataclass(slots=True)
class _Pull:
    """A list of members we are reading from a peer. whole: to its end, else one page."""

    peer: PeerId
    whole: bool
    after: str
    timer: Timer
    tries: int = 1


class Swim:
    """One node's half of the protocol. Every input returns what is to be done now; then ask `next_deadline`.

    incarnation: higher than any that this identity ever signed; max(last + 1, seconds since 1970) serves.
    open_record: how a PeerRecord is verified; worlds of many machines pass one that remembers.
    """

    def __init__(
        self,
        identity: Identity,
        profile: Profile,
        addresses: tuple[str, ...],
        *,
        incarnation: int,
        now: float,
        rng: random.Random,
        config: SwimConfig = SwimConfig(),
        open_record: Callable[[bytes], Signed[PeerRecord]] = open_peer_record,
    ) -> None:
        self._identity, self._rng, self._config, self._open_record = identity, rng, config, open_record
        self._table = Table(rng, max_members=config.max_members, max_tombstones=config.max_tombstones)
        self._rumours = RumourQueue(max_rumours=config.max_rumours)
        self._timers = Timers()
        self._probes: dict[int, _Probe] = {}
        self._probed: set[PeerId] = set()
        self._relays: dict[int, _Relay] = {}
        self._pulls: dict[PeerId, _Pull] = {}
        self._suspicions = Buckets(burst=32.0, rate=2.0 / config.period_s)
        self._admissions = Buckets(burst=128.0, rate=16.0 / config.period_s)
        self._answers = Buckets(burst=16.0, rate=4.0 / config.period_s)
        self._pages = Buckets(burst=160.0, rate=4.0 / config.period_s)
        self._out: list[Output] = []
        self._sequence = rng.randrange(1 << 31)
        self._periods = 0
        self._health = 0  # 0: well; each step makes us slower to blame others
        self._raised_at = now - config.period_s
        self._owed: int | None = None  # an incarnation to be exceeded as soon as the rate of raising allows
        self._gone = False
        self.peer = identity.peer_id
        self.own = self._sign(PeerRecord(addresses, incarnation, profile.nickname, profile.capabilities))
        self._rumours.add(self.peer, Alive(self.own.raw))
        self._timers.at(now + rng.random() * config.period_s, self._on_period)

    # --- what is known ---

    @property
    def incarnation(self) -> int:
        return self.own.record.incarnation

    def members(self) -> tuple[Member, ...]:
        """All members but ourselves, suspects included."""
        return tuple(entry.member() for entry in self._table.entries())

    def member(self, peer: str) -> Member | None:
        entry = self._table.get(peer)
        return None if entry is None else entry.member()

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, peer: str) -> bool:
        return self._table.get(peer) is not None

    def next_deadline(self) -> float | None:
        """When `tick` is wanted; None after leaving."""
        return None if self._gone else self._timers.next()

    # --- inputs ---

    def join(self, peer: PeerId, now: float) -> list[Output]:
        """Read the whole list of members of a peer; `Synced` says when that is done. Then we are known there too."""
        self._pull(peer, now, whole=True, after="")
        return self._drain()

    def receive(self, peer: PeerId, message: Message, now: float) -> list[Output]:
        """A message from `peer`, whom the transport has authenticated.

        Raises ProtocolViolation or BadSignature when no honest peer sends it.
        """
        if not self._gone and peer != self.peer:
            self._hear(peer, message, now)
            self._sign_of_life(peer, now)
        return self._drain()

    def tick(self, now: float) -> list[Output]:
        """Time has come for something. A tick that is late by `stall_s` is not held against the others."""
        due = self._timers.next()
        if not self._gone and due is not None:
            if now - due > self._config.stall_s:
                self._health = self._config.max_health
                self._timers.postpone(now - due + self._config.ack_timeout_s)
            self._timers.fire(now)
        return self._drain()

    def unreachable(self, peer: PeerId, now: float) -> list[Output]:
        """The transport could not deliver to `peer`: ask others at once instead of waiting."""
        for probe in [probe for probe in self._probes.values() if probe.target == peer and not probe.asked]:
            probe.timer.cancel()
            self._ask_others(probe, now, again=False)
        for sequence in [sequence for sequence, relay in self._relays.items() if relay.target == peer]:
            self._give_up_relay(sequence)
        if (pull := self._pulls.get(peer)) is not None:
            pull.tries += 1  # counts double: a stream may break once, a peer that is not there breaks them all
        return self._drain()

    def doubt(self, peer: PeerId, now: float) -> list[Output]:
        """The transport lost its connection to `peer`: ask now instead of when its turn comes."""
        if peer in self and peer not in self._probed and not self._gone:
            self._probe(peer, now)
        return self._drain()

    def update(self, addresses: tuple[str, ...], profile: Profile, now: float) -> list[Output]:
        """Tell the swarm about new addresses or capabilities."""
        self._renew(PeerRecord(addresses, self.incarnation + 1, profile.nickname, profile.capabilities), now)
        return self._drain()

    def adopt(self, records: Iterable[Signed[PeerRecord]], now: float) -> list[Output]:
        """Begin with members known from elsewhere. They are asked like all others, and evicted if silent."""
        for signed in records:
            self._meet(signed, signed.signer, now, spread=False)
        return self._drain()

    def leave(self, now: float) -> list[Output]:
        """Say goodbye to a few members, who pass it on. Nothing is sent or heard afterwards."""
        farewell = Gone(seal(self._identity, Departure(self.incarnation)))
        for peer in self._table.some(self._config.indirect + 1, ()):
            self._send(peer, Ping(self._next_sequence(), (farewell,)))
        self._gone = True
        return self._drain()

    # --- messages ---

    def _hear(self, peer: PeerId, message: Message, now: float) -> None:
        match message:
            case Ping(sequence, rumours):
                words = self._absorb(peer, rumours, now)
                worth = peer in self and self._answers.take(peer, now)  # else it could use up what others must hear
                self._send(peer, Ack(sequence, self._piggyback(peer, words) if worth else self._words(peer, words)))
                if not len(self) and not self._pulls:  # somebody counts on us, and we know nobody
                    self._pull(peer, now, whole=True, after="")
            case Ack(sequence, rumours):
                self._absorb(peer, rumours, now)
                self._on_ack(peer, sequence, now)
            case PingRequest(sequence, target, rumours):
                self._absorb(peer, rumours, now)
                self._relay(peer, sequence, PeerId(target), now)
            case Nack(sequence):
                probe = self._probes.get(sequence)
                if probe is not None and peer in probe.helpers:
                    probe.nacked.add(peer)
                    if probe.nacked == probe.helpers:
                        self._judge(probe, now)
            case Sync(after, limit):
                if self._pages.take(peer, now):
                    self._send(peer, self._table.page(after, limit, self.own))
            case Page():
                self._on_page(peer, message, now)

    def _sign_of_life(self, peer: PeerId, now: float) -> None:
        """Whoever talks to us needs no asking, and is not evicted while it does."""
        if peer in self._probed:
            for probe in [probe for probe in self._probes.values() if probe.target == peer and probe.sent_at < now]:
                self._finish(probe)
        entry = self._table.get(peer)
        if entry is not None and entry.suspicion is not None:
            entry.heard_at = now

    def _absorb(self, sender: PeerId, rumours: tuple[Rumour, ...], now: float) -> tuple[Rumour, ...]:
        """Take in rumours; the result is what the sender must hear about itself."""
        words: tuple[Rumour, ...] = ()
        for rumour in rumours:
            match rumour:
                case Alive(envelope):
                    if not self._table.holds(envelope):  # most of what arrives, and not worth a verification
                        words += self._meet(self._open_record(envelope), sender, now, spread=True)
                case Suspect(subject, incarnation):
                    if subject == self.peer:
                        words += self._hear_own_suspicion(incarnation, now)
                    else:
                        self._hear_suspicion(sender, PeerId(subject), incarnation, now)
                case Gone(envelope):
                    self._meet_departure(*open_departure(envelope), rumour)
        return words

    def _meet(self, signed: Signed[PeerRecord], sender: PeerId, now: float, *, spread: bool) -> tuple[Rumour, ...]:
        """A verified record. spread: pass it on if it is news."""
        peer, incarnation = signed.signer, signed.record.incarnation
        if peer == self.peer:
            if incarnation > self.incarnation or (incarnation == self.incarnation and signed.raw != self.own.raw):
                self._exceed(incarnation, now)  # an earlier life of ours, or a twin with our key
            return ()
        entry = self._table.get(peer)
        if entry is not None and incarnation <= entry.incarnation:
            stale = peer == sender and signed.raw != entry.signed.raw
            return (Alive(entry.signed.raw),) if stale else ()
        if entry is not None:
            self._renew_entry(entry, signed)
        elif not self._admit(signed, sender, now, rationed=spread):
            return ()
        if spread:
            self._rumours.add(peer, Alive(signed.raw))
        return ()

    def _renew_entry(self, entry: Entry, signed: Signed[PeerRecord]) -> None:
        self._table.renew(entry, signed)
        self._clear(entry)
        self._out.append(Updated(entry.member()))

    def _admit(self, signed: Signed[PeerRecord], sender: PeerId, now: float, *, rationed: bool) -> bool:
        stone = self._table.tombstones.get(signed.signer)
        if stone is not None and signed.record.incarnation <= stone.incarnation:
            return False
        if self._table.full or (rationed and not self._admissions.take(sender, now)):
            return False
        self._out.append(Joined(self._table.add(signed).member()))
        return True

    def _hear_own_suspicion(self, incarnation: int, now: float) -> tuple[Rumour, ...]:
        """Refute it; one of an earlier incarnation is refuted already, and whoever says it has only missed that."""
        if incarnation == self.incarnation:
            self._exceed(incarnation, now)
        elif incarnation < self.incarnation:
            if self.peer not in self._rumours:
                self._rumours.add(self.peer, Alive(self.own.raw))
            return (Alive(self.own.raw),)
        return ()

    def _hear_suspicion(self, sender: PeerId, subject: PeerId, incarnation: int, now: float) -> None:
        entry = self._table.get(subject)
        if entry is None or entry.suspicion is not None or incarnation != entry.incarnation:
            return
        if (sender in self or self._pulls) and self._suspicions.take(sender, now):
            self._suspect(entry, now)

    def _meet_departure(self, peer: PeerId, incarnation: int, rumour: Gone) -> None:
        entry = self._table.get(peer)
        if entry is None or incarnation < entry.incarnation:
            return
        self._remove(entry, incarnation, left=True)
        self._rumours.add(peer, rumour)

    # --- probing ---

    def _on_period(self, now: float) -> None:
        # A node that hears nobody asks less: probes that are late because we are overloaded must not load us more.
        self._timers.at(now + self._config.period_s * (1 + self._health), self._on_period)
        self._periods += 1
        if self._owed is not None:
            self._exceed(self._owed, now)
        if self._periods % self._config.sync_every == 0:
            for peer in self._table.some(1, self._pulls):
                cursor = self._table.some(1, ())[0]
                self._pull(peer, now, whole=False, after=cursor)
        if self._periods % self._config.reconnect_every == 0 and (stone := self._table.any_evicted()):
            self._send(stone.signed.signer, Ping(self._next_sequence(), self._piggyback(stone.signed.signer)))
        if (target := self._table.next_target(self._probed)) is not None:
            self._probe(target, now)

    def _probe(self, target: PeerId, now: float, *, introduces: bool = False) -> None:
        sequence = self._next_sequence()
        timer = self._timers.at(
            now + self._config.ack_timeout_s * (1 + self._health), lambda when: self._ask_others(probe, when)
        )
        probe = _Probe(target, sequence, now, timer, introduces)
        self._probes[sequence] = probe
        self._probed.add(target)
        words = (Alive(self.own.raw),) if introduces else ()
        self._send(target, Ping(sequence, self._piggyback(target, words)))

    def _ask_others(self, probe: _Probe, now: float, *, again: bool = True) -> None:
        """Through `indirect` helpers, and once more directly: one message is sooner lost than one of two."""
        verdict = probe.sent_at + self._config.verdict_s * (1 + self._health)
        least = now + self._config.verdict_s - self._config.ack_timeout_s
        probe.timer = self._timers.at(max(verdict, least), lambda when: self._judge(probe, when))
        probe.asked = True
        probe.helpers = set(helpers := self._table.some(self._config.indirect, (probe.target,)))
        if again:
            self._send(probe.target, Ping(probe.sequence, self._words(probe.target, ())))
        for helper in helpers:
            self._send(helper, PingRequest(probe.sequence, probe.target, self._piggyback(helper)))

    def _judge(self, probe: _Probe, now: float) -> None:
        """Nobody reached it. If not even the helpers answered, the fault may be ours."""
        self._finish(probe)
        if probe.helpers and not probe.nacked:
            self._health = min(self._health + 1, self._config.max_health)
        entry = self._table.get(probe.target)
        if entry is not None and entry.suspicion is None:
            self._suspect(entry, now)

    def _on_ack(self, peer: PeerId, sequence: int, now: float) -> None:
        probe = self._probes.get(sequence)
        if probe is not None and (peer == probe.target or peer in probe.helpers):
            self._finish(probe)
            self._health = max(self._health - 1, 0)
            entry = self._table.get(peer)
            if peer == probe.target and entry is not None:
                sample, old = now - probe.sent_at, entry.round_trip_s
                entry.round_trip_s = sample if old is None else old + (sample - old) / 8
            return
        relay = self._relays.get(sequence)
        if relay is not None and peer == relay.target:
            relay.timer.cancel()
            del self._relays[sequence]
            self._send(relay.requester, Ack(relay.sequence, self._piggyback(relay.requester)))

    def _finish(self, probe: _Probe) -> None:
        probe.timer.cancel()
        self._probes.pop(probe.sequence, None)
        self._probed.discard(probe.target)
        if probe.introduces:
            self._out.append(Synced(probe.target, complete=True))

    def _relay(self, requester: PeerId, sequence: int, target: PeerId, now: float) -> None:
        """Ask for another; only members for members, so that no stranger makes us knock at doors."""
        known = requester in self and target in self and target != requester
        asked = sum(relay.requester == requester for relay in self._relays.values())
        if not known or asked >= self._config.max_relays_each or len(self._relays) >= self._config.max_relays:
            self._send(requester, Nack(sequence))
            return
        own = self._next_sequence()
        timer = self._timers.at(now + self._config.ack_timeout_s, lambda when: self._give_up_relay(own))
        self._relays[own] = _Relay(requester, sequence, target, timer)
        self._send(target, Ping(own, self._piggyback(target)))

    def _give_up_relay(self, sequence: int) -> None:
        relay = self._relays.pop(sequence)
        relay.timer.cancel()
        self._send(relay.requester, Nack(relay.sequence))

    # --- suspicion ---

    @property
    def suspicion_s(self) -> float:
        """How long a suspect has to refute: long enough for a rumour to go round and its answer to come back."""
        scale = max(1.0, math.log10(len(self._table) + 1))
        return self._config.suspicion_factor * scale * self._config.period_s

    def _suspect(self, entry: Entry, now: float) -> None:
        peer = entry.signed.signer
        entry.suspicion = self._timers.at(
            now + self.suspicion_s - self._config.period_s, lambda when: self._knock(entry, when)
        )
        self._rumours.add(peer, Suspect(peer, entry.incarnation))
        self._out.append(Updated(entry.member()))

    def _clear(self, entry: Entry) -> None:
        """No longer suspected; what was asked before the news is void too."""
        for probe in [probe for probe in self._probes.values() if probe.target == entry.signed.signer]:
            self._finish(probe)
        if entry.suspicion is not None:
            entry.suspicion.cancel()
            entry.suspicion = None

    def _knock(self, entry: Entry, now: float) -> None:
        """The last word: before we evict we ask ourselves, so that no hearsay evicts a peer that we can reach."""
        peer = entry.signed.signer
        entry.suspicion = self._timers.at(now + self._config.period_s, lambda when: self._evict(entry, when))
        self._send(peer, Ping(self._next_sequence(), self._words(peer, ())))

    def _evict(self, entry: Entry, now: float) -> None:
        if now - entry.heard_at <= self._config.period_s:
            self._knock(entry, now)
            return
        self._remove(entry, entry.incarnation, left=False)

    def _remove(self, entry: Entry, incarnation: int, *, left: bool) -> None:
        peer = entry.signed.signer
        self._clear(entry)
        self._table.remove(peer, incarnation=incarnation, left=left)
        self._out.append(Left(peer, left))

    # --- our own record ---

    def _exceed(self, incarnation: int, now: float) -> None:
        """Sign a higher incarnation: at most one each half period, else one liar could flood the swarm through us."""
        self._owed = max(incarnation, self.incarnation, self._owed or 0)
        if now - self._raised_at >= self._config.period_s / 2:
            self._renew(replace(self.own.record, incarnation=self._owed + 1), now)

    def _renew(self, record: PeerRecord, now: float) -> None:
        self._owed, self._raised_at = None, now
        self.own = self._sign(record)
        self._rumours.add(self.peer, Alive(self.own.raw))

    def _sign(self, record: PeerRecord) -> Signed[PeerRecord]:
        return self._open_record(seal(self._identity, record))

    # --- reading lists ---

    def _pull(self, peer: PeerId, now: float, *, whole: bool, after: str) -> None:
        if peer in self._pulls:
            self._pulls.pop(peer).timer.cancel()
        timer = self._timers.at(now + self._config.sync_retry_s, lambda when: self._retry_pull(pull, when))
        pull = self._pulls[peer] = _Pull(peer, whole, after, timer)
        self._send(peer, self._question(pull))

    def _question(self, pull: _Pull) -> Sync:
        return Sync(pull.after, MAX_PAGE_RECORDS if pull.whole else self._config.sync_records)

    def _retry_pull(self, pull: _Pull, now: float) -> None:
        if not pull.whole or pull.tries >= self._config.sync_tries:
            del self._pulls[pull.peer]
            if pull.whole:
                self._out.append(Synced(pull.peer, complete=False))
            return
        pull.tries += 1
        pull.timer = self._timers.at(now + self._config.sync_retry_s, lambda when: self._retry_pull(pull, when))
        self._send(pull.peer, self._question(pull))

    def _on_page(self, peer: PeerId, page: Page, now: float) -> None:
        pull = self._pulls.get(peer)
        if pull is None:
            return  # the answer to a question we gave up
        last = self._read(page, pull.after, peer, now)
        pull.timer.cancel()
        del self._pulls[peer]
        if pull.whole and page.more and not self._table.full:
            self._pull(peer, now, whole=True, after=last)
        elif pull.whole and peer in self:
            self._probe(peer, now, introduces=True)
        elif pull.whole:
            self._out.append(Synced(peer, complete=True))

    def _read(self, page: Page, after: str, peer: PeerId, now: float) -> str:
        """Take in a page; the result is the id of its last record."""
        records = read_page(page, after, peer, self._open_record)
        for signed in records:
            self._meet(signed, peer, now, spread=False)
        last = records[-1].signer if page.more else None
        self._table.hasten_one(after, last, {signed.signer for signed in records})
        return last or ""

    # --- sending ---

    def _piggyback(self, peer: PeerId, words: tuple[Rumour, ...] = ()) -> tuple[Rumour, ...]:
        """Rumours for a message to `peer`, beginning with what it must hear."""
        config = self._config
        times = config.retransmit_factor * math.ceil(math.log10(len(self._table) + 2))
        return self._rumours.take(max(times, config.retransmit_least), self._words(peer, words))

    def _words(self, peer: PeerId, words: tuple[Rumour, ...]) -> tuple[Rumour, ...]:
        """What `peer` must hear about itself, to be able to refute it."""
        entry = self._table.get(peer)
        if entry is not None:
            return words if entry.suspicion is None else (*words, Suspect(peer, entry.incarnation))
        stone = self._table.tombstones.get(peer)
        return words if stone is None else (*words, Alive(stone.signed.raw), Suspect(peer, stone.incarnation))

    def _send(self, peer: PeerId, message: Message) -> None:
        self._out.append(Send(peer, message))

    def _next_sequence(self) -> int:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        return self._sequence

    def _drain(self) -> list[Output]:
        out, self._out = self._out, []
        return out
