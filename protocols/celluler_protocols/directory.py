"""Who holds what, and where an author's newest version is: signed heads and provider records in the DHT.

Spec: docs/reference/protocols/directory.md. A head is the author's signed pointer from a name to the index of its
versions. It lives under `/head/<author's peer id>/<name>`; the storing peers accept only what that author signed, the
highest number wins, and a node that has seen a number never again takes a lower one, whatever the DHT says.
A provider record is a hint: what its peer sends is judged by its digest. Both are put again while the directory is
open, as `renewal.py` says when.
"""

from __future__ import annotations

import logging
import random
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Protocol

import trio

from celluler.errors import CellulerError, LocalError, NotFound, PeerViolation, ProtocolViolation
from celluler.identity import Identity, PeerId, Signed, open_envelope, public_key_of, seal, short
from celluler.wire import U64, Bytes32, Length, Range
from celluler_protocols.nursery import own_nursery
from celluler_protocols.renewal import DirectoryTiming, Key, Renewal

__all__ = [
    "MAX_NAME_BYTES",
    "NAMESPACE",
    "Directory",
    "DirectoryTiming",
    "Equivocation",
    "Head",
    "HeadBook",
    "HeadValidator",
    "head_key",
    "open_directory",
    "open_head",
]

log = logging.getLogger(__name__)

NAMESPACE = "head"
MAX_NAME_BYTES = 64
_MAX_BODY_BYTES = 512
_HEADS_SEEN = 4096
_EQUIVOCATIONS_KEPT = 64
"""Of so many names, one proof each."""
MAX_PROVIDED = 32768
"""Digests that one node tells of."""


@dataclass(frozen=True, slots=True)
class Head:
    """The author's pointer: version index `index` is number `number` of `name`. Numbers only grow."""

    KIND: ClassVar[str] = "celluler/head/1"
    name: Annotated[str, Length(1, MAX_NAME_BYTES)]
    number: U64
    index: Bytes32
    issued_s: Annotated[int, Range(0, 2**40)]


@dataclass(frozen=True, slots=True)
class Equivocation:
    """Two heads of one author, name and number that point at different indexes: proof of a lie, both signed."""

    author: PeerId
    name: str
    number: int
    first: bytes
    second: bytes


def head_key(author: PeerId, name: str) -> str:
    """Raises LocalError for a name that cannot be in a key."""
    if not 0 < len(name.encode()) <= MAX_NAME_BYTES or "/" in name:
        raise LocalError(f"a head's name has 1..{MAX_NAME_BYTES} bytes and no slash: {name[:80]!r}")
    return f"/{NAMESPACE}/{author}/{name}"


def open_head(key: str, value: bytes) -> Signed[Head]:
    """The head that `value` is, if it may stand under `key`. Raises ProtocolViolation, BadSignature."""
    match key.split("/"):
        case ["", namespace, author, name] if namespace == NAMESPACE and name:
            public_key_of(author)
        case _:
            raise ProtocolViolation(f"not the key of a head: {key[:80]!r}")
    signed = open_envelope(Head, value, limit=_MAX_BODY_BYTES, signer=author)
    if signed.record.name != name:
        raise ProtocolViolation(f"head of {signed.record.name[:40]!r} under the key of {name[:40]!r}", peer=author)
    return signed


def _rank(signed: Signed[Head]) -> tuple[int, bytes, int, bytes]:
    """Greater is better: the number; then one of two contradicting indexes, the same everywhere; then the later."""
    head = signed.record
    return head.number, bytes(255 - byte for byte in head.index), head.issued_s, signed.raw


class HeadBook:
    """The best head seen of each author and name, sans-IO. What makes a head never go back here.

    Bounded: beyond 4096 the one seen least recently is forgotten, unless it is pinned: our own, and those we keep up.
    So are proofs of equivocation, those about names of which no head was seen first: strangers can make any number.
    """

    def __init__(self, capacity: int = _HEADS_SEEN) -> None:
        self._capacity = capacity
        self._best: OrderedDict[str, Signed[Head]] = OrderedDict()
        self._pinned: set[str] = set()
        self._proofs: dict[str, Equivocation] = {}

    @property
    def equivocations(self) -> tuple[Equivocation, ...]:
        """What is proven, of each name the latest number, oldest proof first."""
        return tuple(self._proofs.values())

    def see(self, signed: Signed[Head], *, pin: bool = False) -> bool:
        """Remember a verified head. False when one with a higher number was seen before: this one is stale."""
        key = head_key(signed.signer, signed.record.name)
        if pin:
            self._pinned.add(key)
        held = self._best.get(key)
        if held is not None:
            if signed.record.number < held.record.number:
                return False
            self.compare(held, signed)
        self._best[key] = signed if held is None else max(held, signed, key=_rank)
        self._best.move_to_end(key)
        self._make_room()
        return True

    def best(self, author: PeerId, name: str) -> Signed[Head] | None:
        return self._best.get(head_key(author, name))

    def of(self, author: PeerId) -> tuple[Signed[Head], ...]:
        """All that is remembered of one author."""
        return tuple(signed for signed in self._best.values() if signed.signer == author)

    def pinned(self) -> tuple[Signed[Head], ...]:
        return tuple(self._best[key] for key in sorted(self._pinned))

    def compare(self, one: Signed[Head], other: Signed[Head]) -> None:
        """Take note if these two verified heads of one name contradict each other."""
        if one.record.number != other.record.number or one.record.index == other.record.index:
            return
        author, name, number = one.signer, one.record.name, one.record.number
        key = head_key(author, name)
        known = self._proofs.get(key)
        if known is not None and known.number >= number:
            return
        first, second = sorted((one.raw, other.raw))
        log.warning("head_equivocation author=%s name=%s number=%d", short(author), name, number)
        self._proofs.pop(key, None)
        self._proofs[key] = Equivocation(author, name, number, first, second)
        if len(self._proofs) > _EQUIVOCATIONS_KEPT:
            del self._proofs[next((key for key in self._proofs if key not in self._best), next(iter(self._proofs)))]

    def dump(self) -> tuple[bytes, ...]:
        """Proofs, then heads: in this order `load` takes both."""
        proofs = (raw for proof in self._proofs.values() for raw in (proof.first, proof.second))
        return (*proofs, *(signed.raw for signed in self._best.values()))

    def load(self, envelopes: Iterable[bytes]) -> None:
        """Take back what `dump` gave; what is damaged is passed over."""
        for raw in envelopes:
            try:
                self.see(open_envelope(Head, raw, limit=_MAX_BODY_BYTES))
            except (PeerViolation, LocalError) as error:
                log.warning("stored_head_damaged error=%s", error)

    def _make_room(self) -> None:
        while len(self._best) > max(self._capacity, len(self._pinned)):
            del self._best[next(key for key in self._best if key not in self._pinned)]


class HeadValidator:
    """Judges `/head/…` for the DHT. Give it to `open_host` under `NAMESPACE`."""

    def __init__(self, book: HeadBook) -> None:
        self._book = book

    def validate(self, key: str, value: bytes) -> None:
        signed = open_head(key, value)
        best = self._book.best(signed.signer, signed.record.name)
        if best is not None and signed.record.number < best.record.number:
            raise ProtocolViolation(f"head number {signed.record.number} after {best.record.number}")
        if best is not None:  # the one that is not selected is never heard of again
            self._book.compare(best, signed)

    def select(self, key: str, values: Sequence[bytes]) -> int:
        """The best; of equal ones the last, so that storing the same again renews it. All were validated before."""
        heads = [open_head(key, value) for value in values]
        place = max(range(len(heads)), key=lambda place: (_rank(heads[place]), place))
        for head in heads:
            self._book.compare(heads[place], head)
        return place


class _Dht(Protocol):
    @property
    def routing_peers(self) -> int: ...

    async def put(self, key: str, value: bytes) -> None: ...

    async def get(self, key: str) -> bytes | None: ...

    async def provide(self, digest: bytes) -> None: ...

    def withdraw(self, digest: bytes) -> None: ...

    async def providers(self, digest: bytes) -> tuple[PeerId, ...]: ...


class Network(Protocol):
    """What the directory needs of a host."""

    @property
    def dht(self) -> _Dht: ...

    @property
    def addresses(self) -> tuple[str, ...]: ...

    def connected(self) -> frozenset[PeerId]: ...


@asynccontextmanager
async def open_directory(
    host: Network,
    identity: Identity,
    heads: HeadBook | None = None,
    *,
    timing: DirectoryTiming | None = None,
    clock: Callable[[], float] = time.time,
    rng: random.Random | None = None,
) -> AsyncIterator[Directory]:
    """The directory for the length of the block; meanwhile our own heads and provider records are kept alive.

    heads: the book that the host's HeadValidator reads. clock: Unix seconds. rng: spreads the renewals.
    """
    timing = timing or DirectoryTiming()
    renewal = Renewal(timing, rng or random.SystemRandom(), trio.current_time())
    directory = Directory(host, identity, heads or HeadBook(), clock, renewal)
    async with own_nursery() as nursery:
        nursery.start_soon(directory._count_neighbours, timing.settle_s)
        for _ in range(timing.at_once):
            nursery.start_soon(directory._renew)
        yield directory


@dataclass(slots=True)
class _Turn:
    """A record that waits for its first put. error: why that failed."""

    over: trio.Event = field(default_factory=trio.Event)
    error: CellulerError | None = None


class Directory:
    """Made by `open_directory`."""

    def __init__(
        self, host: Network, identity: Identity, heads: HeadBook, clock: Callable[[], float], renewal: Renewal
    ) -> None:
        self._host, self._identity, self._clock, self._renewal = host, identity, clock, renewal
        self._turns: dict[bytes, _Turn] = {}
        self._due = trio.Event()
        self.heads = heads
        self.puts = 0
        """How often a record of ours was put, for whoever watches the cost."""

    async def publish_head(self, name: str, number: int, index: bytes) -> Signed[Head]:
        """Sign and store our head of a name.

        Raises LocalError for a number below one already published, or the same number with another index; TimedOut.
        """
        key = head_key(self._identity.peer_id, name)
        best = self.heads.best(self._identity.peer_id, name)
        if best is None or number > best.record.number:
            best = open_head(key, seal(self._identity, Head(name, number, index, int(self._clock()))))
        elif (number, index) != (best.record.number, best.record.index):
            raise LocalError(f"head number {number} of {name} after {best.record.number}")
        self.heads.see(best, pin=True)
        self._renewal.add(key, trio.current_time())
        self._renewal.begin(key)  # out of turn: somebody waits for it
        await self._store(key)
        return best

    async def resolve_head(self, author: PeerId, name: str) -> Signed[Head]:
        """The best head that the DHT or we ourselves have seen of a name. Raises NotFound, LocalError."""
        key = head_key(author, name)
        value = await self._host.dht.get(key)
        if value is not None:
            self._hear(key, value)
        best = self.heads.best(author, name)
        if best is None:
            raise NotFound(f"head of {name} by {short(author)}")
        return best

    def keep_head(self, author: PeerId, name: str) -> None:
        """Go on storing another author's head, the best we have seen: names outlive the author's node. Nobody but the
        author can move it. Does nothing when none was seen, or too much is told already."""
        best, key = self.heads.best(author, name), head_key(author, name)
        if best is not None and len(self._renewal) < MAX_PROVIDED:
            self.heads.see(best, pin=True)
            self._renewal.add(key, trio.current_time())
            self._wake()

    async def provide(self, digest: bytes) -> None:
        """Tell the DHT that we hold a digest, and go on telling for as long as the directory is open.

        Returns when it was told for the first time: many at once wait for their turns. Whoever cancels the wait does
        not take it back. Raises LocalError when we listen on nothing or tell of too many already, Unavailable.
        """
        if not self._host.addresses:
            raise LocalError("a host that listens on nothing cannot provide content")
        if digest not in self._renewal:
            if len(self._renewal) >= MAX_PROVIDED:
                raise LocalError(f"no more than {MAX_PROVIDED} digests can be provided")
            self._turns[digest] = _Turn()
            self._renewal.add(digest, trio.current_time())
            self._wake()
        if (turn := self._turns.get(digest)) is not None:
            await turn.over.wait()
            if turn.error is not None:
                raise turn.error

    def withdraw(self, digest: bytes) -> None:
        """Stop telling. Records already out expire by themselves within two days."""
        self._renewal.drop(digest)
        self._host.dht.withdraw(digest)
        self._end_turn(digest, None)

    async def providers(self, digest: bytes) -> tuple[PeerId, ...]:
        """Peers said to hold a digest, ourselves left out; none is a normal answer."""
        return await self._host.dht.providers(digest)

    @property
    def equivocations(self) -> tuple[Equivocation, ...]:
        return self.heads.equivocations

    def _hear(self, key: str, value: bytes) -> None:
        try:
            self.heads.see(open_head(key, value))
        except PeerViolation as error:
            log.info("head_refused key=%s error=%s", key[-40:], error)

    def _wake(self) -> None:
        self._due.set()
        self._due = trio.Event()

    async def _count_neighbours(self, every_s: float) -> None:
        while True:
            self._renewal.see(self._host.connected(), self._host.dht.routing_peers, trio.current_time())
            self._wake()
            await trio.sleep(every_s)

    async def _renew(self) -> None:
        """One of a few that put what is due, each one record at a time."""
        while True:
            key = self._renewal.take(trio.current_time())
            if key is None:
                with trio.move_on_after(self._renewal.wait_s(trio.current_time())):
                    await self._due.wait()
                continue
            try:
                await self._store(key)
            except CellulerError as error:
                log.debug("record_not_renewed error=%s", error)

    async def _store(self, key: Key) -> None:
        """Put one of our records, and note how it went. Raises CellulerError."""
        dht, stored, failure = self._host.dht, False, None
        self.puts += 1
        try:
            await (dht.provide(key) if isinstance(key, bytes) else dht.put(key, self._pinned_head(key)))
            stored = True
        except CellulerError as error:
            failure = error
            raise
        finally:
            self._renewal.done(key, trio.current_time(), reach=dht.routing_peers, stored=stored)
            self._wake()
            if isinstance(key, bytes):
                if key not in self._renewal:
                    dht.withdraw(key)  # taken back while it was being told
                self._end_turn(key, failure)

    def _pinned_head(self, key: str) -> bytes:
        _, _, author, name = key.split("/")
        best = self.heads.best(PeerId(author), name)
        assert best is not None, "only a head that was seen and pinned is put"
        return best.raw

    def _end_turn(self, digest: bytes, error: CellulerError | None) -> None:
        if (turn := self._turns.pop(digest, None)) is not None:
            turn.error = error
            turn.over.set()
