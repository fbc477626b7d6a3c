"""One content from many sources, as a machine without input or output.

    manifest  ->  leaves  ->  beginning  ->  chunks  ->  complete

The caller moves bytes and keeps them; the machine decides whom to ask for what, what to believe and whom to drop. Every
answer comes whole from one authenticated source, so the first false one names its liar; what was asked of a source that
lies, dies, stalls or has no time goes back to the queue for the others.

Sources pull from one shared queue, each as far as its window: what it delivered lately in `WINDOW_S`. Near the end an
idle source is asked again for what a slower one still owes, so that the slowest does not decide when the fetch ends.

Knows nothing of streams and stores. Time is an argument, in seconds on any monotonic clock.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from celluler.content.digest import Digest, digest_of
from celluler.content.manifest import MAX_TOTAL_BYTES, Manifest, Piece, parse_leaf, parse_manifest
from celluler.errors import (
    BlockAbsent,
    Busy,
    CorruptBlock,
    NoPeers,
    PeerViolation,
    ProtocolViolation,
    QuotaExceeded,
    TimedOut,
    Unavailable,
)

WINDOW_S = 0.25
FIRST_WINDOW_BYTES = 4 << 20
MIN_WINDOW_BYTES = 2 << 20
MAX_WINDOW_BYTES = 16 << 20
MAX_ASKED = 128
"""Digests asked of one source and not yet kept."""
STALL_S = 30.0
"""A source that owes answers and gives none for so long is left."""
MAX_ABSENT_IN_A_ROW = 256
MAX_ASKERS = 3
"""Sources that may owe the same digest at the same time."""
ENDGAME_DIGESTS = 4
"""How many of the others' digests an idle source is asked for at a time."""
_BLOCK_ESTIMATE_BYTES = 1 << 17  # a full leaf is about as long


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


Step = KeepBlock | Begin | KeepChunk


class Reason(Enum):
    """Why a source is no longer asked."""

    ABSENT = "has not got it"
    BUSY = "has no time"
    GONE = "could not be reached or went away"
    STALLED = "owed answers for too long"
    LIED = "sent something false"


class _Phase(Enum):
    MANIFEST = 0
    LEAVES = 1
    BEGINNING = 2
    CHUNKS = 3


@dataclass(slots=True)
class _Wanted:
    """A digest still to be kept. It is in the queue exactly while nobody owes it and no answer is being kept."""

    indices: list[int]
    length: int | None  # None: a block, whose length is not known before
    askers: set[str] = field(default_factory=set)
    keeping: bool = False

    @property
    def cost_bytes(self) -> int:
        return _BLOCK_ESTIMATE_BYTES if self.length is None else self.length


@dataclass(slots=True)
class _Source:
    heard_s: float
    asked: dict[Digest, int] = field(default_factory=dict)  # digest -> bytes expected, until answered
    keeping: dict[Digest, int] = field(default_factory=dict)  # the same, until kept
    lacks: set[Digest] = field(default_factory=set)
    absent_in_a_row: int = 0
    rate: float | None = None  # bytes a second over the latest intervals
    interval_start_s: float = 0.0
    interval_bytes: int = 0

    def room_bytes(self) -> int:
        """What may be asked now: nothing until half the window is free, so that requests go out in batches."""
        window = FIRST_WINDOW_BYTES if self.rate is None else int(self.rate * WINDOW_S)
        window = max(MIN_WINDOW_BYTES, min(MAX_WINDOW_BYTES, window))
        room = window - sum(self.asked.values()) - sum(self.keeping.values())
        return room if room >= window // 2 else 0

    def room_digests(self) -> int:
        room = MAX_ASKED - len(self.asked) - len(self.keeping)
        return room if room >= MAX_ASKED // 2 else 0

    def wake(self, now: float) -> None:
        """It owed nothing until now: idle time is not slowness."""
        self.heard_s = self.interval_start_s = now
        self.interval_bytes = 0

    def heard(self, received: int, now: float) -> None:
        self.heard_s = now
        self.interval_bytes += received
        elapsed = now - self.interval_start_s
        if elapsed >= WINDOW_S:
            rate = self.interval_bytes / elapsed
            self.rate = rate if self.rate is None else (self.rate + rate) / 2
            self.interval_start_s, self.interval_bytes = now, 0


class Download:
    """Decides one fetch. Not for several threads at once."""

    def __init__(self, root: bytes, *, limit_bytes: int = MAX_TOTAL_BYTES) -> None:
        """limit_bytes: the largest content to accept, by the length its manifest claims."""
        self.root = Digest(root)
        self._limit_bytes = limit_bytes
        self._phase = _Phase.MANIFEST
        self._manifest: Manifest | None = None
        self._wanted: dict[Digest, _Wanted] = {}
        self._queue: deque[Digest] = deque()
        self._sources: dict[str, _Source] = {}
        self._left: dict[str, Reason] = {}
        self._received: Counter[str] = Counter()
        self._have_bytes = 0
        self._want([(self.root, 0, None)])

    # --- what is known -----------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Every chunk is kept."""
        return self._phase is _Phase.CHUNKS and not self._wanted

    @property
    def wanted(self) -> tuple[Digest, ...]:
        """Digests still to be kept, in the order of the file."""
        return tuple(self._wanted)

    @property
    def progress(self) -> tuple[int, int]:
        """(bytes kept, bytes in all); (0, 0) until the manifest is known."""
        return self._have_bytes, 0 if self._manifest is None else self._manifest.total_len

    @property
    def received(self) -> Mapping[str, int]:
        """Bytes kept, by the source that gave them."""
        return dict(self._received)

    @property
    def left(self) -> Mapping[str, Reason]:
        """Sources no longer asked, and why."""
        return dict(self._left)

    @property
    def liars(self) -> tuple[str, ...]:
        return tuple(source for source, reason in self._left.items() if reason is Reason.LIED)

    def asks(self, source: str) -> bool:
        """Whether this source is one that may be asked."""
        return source in self._sources

    def deadline(self, source: str) -> float | None:
        """When `expire` will leave this source; None while it owes nothing."""
        peer = self._sources.get(source)
        return peer.heard_s + STALL_S if peer and peer.asked else None

    def failure(self) -> Unavailable | None:
        """Why this cannot go on: nothing is owed and nobody left has what is wanted. None while there is hope."""
        if self._phase is _Phase.BEGINNING or len(self._queue) < len(self._wanted) or not self._wanted:
            return None
        peers = self._sources.values()
        if any(digest not in peer.lacks for digest in self._queue for peer in peers):
            return None
        return self._despair()

    # --- sources -----------------------------------------------------------------------------------------------

    def join(self, source: str, now: float) -> None:
        """A source that may be asked from now on. One that was left stays so."""
        if source not in self._left:
            self._sources.setdefault(source, _Source(heard_s=now, interval_start_s=now))

    def leave(self, source: str, reason: Reason = Reason.GONE) -> None:
        """Ask this source no more; its debts go to the others. Leaving again changes nothing."""
        peer = self._sources.pop(source, None)
        if peer is not None:
            self._left[source] = reason
            for digest in peer.asked:
                self._release(source, digest)

    def expire(self, now: float) -> tuple[str, ...]:
        """Leave the sources that owe answers and were silent for `STALL_S`. Returns them."""
        late = [name for name in self._sources if (at := self.deadline(name)) is not None and now >= at]
        for name in late:
            self.leave(name, Reason.STALLED)
        return tuple(late)

    def requests(self, source: str, now: float) -> tuple[Digest, ...]:
        """What to ask this source now: as much of the queue as its window allows. Nothing for one that was left."""
        peer = self._sources.get(source)
        if peer is None:
            return ()
        digests = self._from_queue(peer) or self._from_others(peer)
        if digests and not peer.asked:
            peer.wake(now)
        for digest in digests:
            wanted = self._wanted[digest]
            wanted.askers.add(source)
            peer.asked[digest] = wanted.cost_bytes
        return digests

    # --- answers -----------------------------------------------------------------------------------------------

    def found(self, source: str, digest: bytes, data: bytes, now: float) -> tuple[Step, ...]:
        """An answer. Returns what to do with it, in this order; nothing for one that is no longer needed.

        Raises PeerViolation naming the source, which is left: it sent what was not asked, or what is false.
        Raises ProtocolViolation naming nobody: the manifest itself lies, and no source can help.
        Raises QuotaExceeded: the content is larger than the limit.
        """
        peer = self._sources.get(source)
        if peer is None:
            return ()
        key = self._answered(source, peer, digest, len(data), now)
        peer.absent_in_a_row = 0
        wanted = self._wanted.get(key)
        if wanted is None or source not in wanted.askers:
            return ()
        wanted.askers.discard(source)
        if wanted.keeping:
            return ()
        if wanted.length is None:
            return self._block(source, key, data)
        return self._chunk(source, peer, key, data)

    def absent(self, source: str, digest: bytes, now: float) -> None:
        """The source has not got it. Raises ProtocolViolation naming the source when it was not asked."""
        peer = self._sources.get(source)
        if peer is None:
            return
        key = self._answered(source, peer, digest, 0, now)
        peer.lacks.add(key)
        peer.absent_in_a_row += 1
        self._release(source, key)
        if key == self.root or peer.absent_in_a_row >= MAX_ABSENT_IN_A_ROW:
            self.leave(source, Reason.ABSENT)

    def violated(self, source: str, error: PeerViolation) -> PeerViolation:
        """The source broke the protocol in a way the caller saw: it is left as a liar. Returns the accusation."""
        return self._lied(source, error)

    # --- the store ---------------------------------------------------------------------------------------------

    def here(self, digest: bytes, data: bytes) -> tuple[Step, ...]:
        """A wanted manifest or leaf that the store holds already. Returns steps and raises as `found` does."""
        return tuple(step for step in self._accept(Digest(digest), data) if not isinstance(step, KeepBlock))

    def begun(self, missing: Iterable[Piece]) -> None:
        """The store has begun the content and lacks these pieces."""
        assert self._phase is _Phase.BEGINNING
        assert self._manifest is not None
        self._phase = _Phase.CHUNKS
        pieces = tuple(missing)
        self._have_bytes = self._manifest.total_len - sum(piece.length for piece in pieces)
        self._want((piece.digest, piece.index, piece.length) for piece in pieces)

    def kept(self, step: KeepChunk) -> None:
        """The store has accepted this chunk."""
        self._settle(step)
        if self._wanted.pop(step.digest, None) is not None:
            self._have_bytes += len(step.data) * len(step.indices)
            self._received[step.source] += len(step.data)

    def corrupt(self, step: KeepChunk) -> PeerViolation:
        """The store has found this chunk false: its source lied and is left. Returns the accusation."""
        self._settle(step)
        self._wanted[step.digest].keeping = False
        self._requeue(step.digest)
        return self._lied(step.source, CorruptBlock(step.digest, peer=step.source))

    # --- believing ---------------------------------------------------------------------------------------------

    def _answered(self, source: str, peer: _Source, digest: bytes, received: int, now: float) -> Digest:
        key = Digest(bytes(digest))
        if key not in peer.asked:
            raise self._lied(source, ProtocolViolation("an answer to nothing that was asked", peer=source))
        del peer.asked[key]
        peer.heard(received, now)
        return key

    def _block(self, source: str, digest: Digest, data: bytes) -> tuple[Step, ...]:
        if digest_of(data) != digest:
            self._requeue(digest)
            raise self._lied(source, CorruptBlock(digest, peer=source))
        return self._accept(digest, data)

    def _accept(self, digest: Digest, data: bytes) -> tuple[Step, ...]:
        """A manifest or leaf of the right digest. What is wrong with it now is its author's lie, not its source's."""
        if self._manifest is None:
            self._manifest = self._read_manifest(data)
            self._phase = _Phase.LEAVES
            self._forget(digest)
            self._want((Digest(leaf), at, None) for at, leaf in enumerate(self._manifest.leaves))
        else:
            for at in self._wanted[digest].indices:
                parse_leaf(data, self._manifest, at)
            self._forget(digest)
        if self._wanted:
            return (KeepBlock(data),)
        self._phase = _Phase.BEGINNING
        return KeepBlock(data), Begin()

    def _read_manifest(self, data: bytes) -> Manifest:
        manifest = parse_manifest(data)
        if manifest.total_len > self._limit_bytes:
            raise QuotaExceeded(f"content of {manifest.total_len} bytes, at most {self._limit_bytes} are accepted")
        return manifest

    def _chunk(self, source: str, peer: _Source, digest: Digest, data: bytes) -> tuple[Step, ...]:
        wanted = self._wanted[digest]
        if len(data) != wanted.length:
            if digest_of(data) == digest:
                raise ProtocolViolation(f"manifest: a chunk of {len(data)} bytes where it says {wanted.length}")
            self._requeue(digest)
            raise self._lied(source, CorruptBlock(digest, peer=source))
        wanted.keeping = True
        peer.keeping[digest] = len(data)
        return (KeepChunk(source, digest, tuple(wanted.indices), data),)

    def _lied(self, source: str, error: PeerViolation) -> PeerViolation:
        self.leave(source, Reason.LIED)
        self._left[source] = Reason.LIED  # also when it had gone before its lie was found
        return error

    def _despair(self) -> Unavailable:
        reasons = set(self._left.values())
        if self._sources or Reason.ABSENT in reasons or reasons == {Reason.LIED}:
            return BlockAbsent(self._queue[0])
        if Reason.BUSY in reasons:
            return Busy("every source is busy")
        if Reason.STALLED in reasons:
            return TimedOut("the sources stopped answering")
        return NoPeers(f"none of {len(self._left)} sources could be reached")

    # --- the queue ---------------------------------------------------------------------------------------------

    def _want(self, entries: Iterable[tuple[Digest, int, int | None]]) -> None:
        for digest, index, length in entries:
            if digest in self._wanted:
                self._wanted[digest].indices.append(index)
            else:
                self._wanted[digest] = _Wanted([index], length)
                self._queue.append(digest)

    def _from_queue(self, peer: _Source) -> tuple[Digest, ...]:
        room_bytes, room_digests = peer.room_bytes(), peer.room_digests()
        taken: list[Digest] = []
        for _ in range(len(self._queue)):
            if room_bytes <= 0 or len(taken) >= room_digests:
                break
            digest = self._queue.popleft()
            if digest in peer.lacks:
                self._queue.append(digest)
                continue
            taken.append(digest)
            room_bytes -= self._wanted[digest].cost_bytes
        return tuple(taken)

    def _from_others(self, peer: _Source) -> tuple[Digest, ...]:
        """For a source with nothing to do: what the most silent of the others owe for longest."""
        if peer.asked or peer.keeping:
            return ()
        taken: list[Digest] = []
        for other in sorted(self._sources.values(), key=lambda each: each.heard_s):
            for digest in other.asked:
                wanted = self._wanted.get(digest)
                if wanted is None or wanted.keeping or len(wanted.askers) >= MAX_ASKERS or digest in peer.lacks:
                    continue
                if len(taken) == ENDGAME_DIGESTS:
                    return tuple(taken)
                if digest not in taken:
                    taken.append(digest)
        return tuple(taken)

    def _release(self, source: str, digest: Digest) -> None:
        wanted = self._wanted.get(digest)
        if wanted is not None and source in wanted.askers:
            wanted.askers.discard(source)
            self._requeue(digest)

    def _requeue(self, digest: Digest) -> None:
        wanted = self._wanted[digest]
        if not wanted.askers and not wanted.keeping:
            self._queue.append(digest)

    def _forget(self, digest: Digest) -> None:
        wanted = self._wanted.pop(digest)
        if not wanted.askers and digest in self._queue:  # found in our own store
            self._queue.remove(digest)

    def _settle(self, step: KeepChunk) -> None:
        peer = self._sources.get(step.source)
        if peer is not None:
            peer.keeping.pop(step.digest, None)
