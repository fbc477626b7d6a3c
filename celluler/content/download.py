"""One content from many sources, as a machine without input or output.

    manifest  ->  leaves  ->  beginning  ->  chunks  ->  complete

The caller moves bytes and keeps them; the machine decides whom to ask for what, what to believe and whom to drop. Every
answer comes whole from one authenticated source, so the first false one names its liar; what was asked of a source that
lies, dies, stalls or has no time goes back to the queue for the others. A source that lacks something is asked for
other things, and for the same again a little later: what holds a part may be growing.

Sources pull from one shared queue, each as far as its window. Near the end an idle source is asked again for what a
slower one still owes, so that the slowest does not decide when the fetch ends.

A chunk comes in one of two ways: as bytes, which the caller hashes and keeps (`found`), or hashed and written already
by a mover (`placed`).

Knows nothing of streams, movers and stores. Time is an argument, in seconds on any monotonic clock.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from celluler.content.digest import Digest, digest_of
from celluler.content.manifest import MAX_TOTAL_BYTES, Manifest, Piece, parse_leaf, parse_manifest
from celluler.content.movers import Chunk
from celluler.content.progress import Progress, SourceProgress, Transport
from celluler.content.steps import Begin, KeepBlock, KeepChunk, KeepPlaced, Reason, Step
from celluler.content.window import Window
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

MAX_CHUNKS = 1 << 20
"""The most chunks of one content: 1 TiB in full ones. What is wanted is kept in memory, some 400 bytes a chunk."""
STALL_S = {Transport.STREAM: 30.0, Transport.BULK: 120.0}  # a mover notices itself when nothing comes
"""A source that owes answers and gives none for so long is left."""
HOPE_S = 6.0
"""Sources that all lack what is wanted are given up when nothing was kept for so long."""
MAX_ASKERS = 3
"""Sources that may owe the same digest at the same time, besides those that are overdue."""
OVERDUE_S = 3.0
"""A source that was silent for so long holds nobody back from asking for the same."""
ENDGAME_DIGESTS = 4
"""How many of the others' digests an idle source is asked for at a time."""
_BLOCK_ESTIMATE_BYTES = 1 << 17  # a full leaf is about as long
_MAX_SCAN = 4096  # of the queue, for a source that lacks much of it


class _Phase(Enum):
    MANIFEST = 0
    LEAVES = 1
    BEGINNING = 2
    CHUNKS = 3


@dataclass(slots=True)
class _Wanted:
    """A digest still to be kept. It is in the queue exactly while nobody owes it and no answer is being kept."""

    length: int | None  # None: a block, whose length is not known before
    places: dict[int, int]  # index -> offset
    askers: tuple[str, ...] = ()
    keeping: bool = False

    @property
    def cost_bytes(self) -> int:
        return _BLOCK_ESTIMATE_BYTES if self.length is None else self.length


class Download:
    """Decides one fetch. Not for several threads at once."""

    def __init__(self, root: bytes, *, limit_bytes: int = MAX_TOTAL_BYTES, start: float = 0.0) -> None:
        """limit_bytes: the largest content to accept, by the length its manifest claims.

        start: where in the file to begin to ask, 0 to 1: peers that fetch the same begin at different places, so that
        they soon have something for each other.
        """
        self.root = Digest(root)
        self._limit_bytes, self._start = limit_bytes, start
        self._phase = _Phase.MANIFEST
        self._manifest: Manifest | None = None
        self._wanted: dict[Digest, _Wanted] = {}
        self._queue: deque[Digest] = deque()
        self._sources: dict[str, Window] = {}
        self._left: dict[str, Reason] = {}
        self._received: Counter[str] = Counter()
        self._wanted_bytes = self._lacking_bytes = 0
        self._news_s = 0.0  # when something was kept, or somebody came who may have it
        self._want([(self.root, None, 0, 0)])

    # --- what is known -----------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Every chunk that is wanted is kept."""
        return self._phase is _Phase.CHUNKS and not self._wanted

    @property
    def manifest(self) -> Manifest | None:
        """None until it came."""
        return self._manifest

    @property
    def wanted(self) -> tuple[Digest, ...]:
        """Digests still to be kept, in the order of the file."""
        return tuple(self._wanted)

    @property
    def chunk_bytes_wanted(self) -> int:
        """Of chunks still to be kept; 0 before the content was begun."""
        return self._lacking_bytes

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

    def progress(self, now: float) -> Progress:
        sources = tuple(
            SourceProgress(name, self._received[name], window.rate_at(now), window.transport)
            for name, window in self._sources.items()
        )
        return Progress(self.root, self._wanted_bytes - self._lacking_bytes, self._wanted_bytes, sources)

    def asks(self, source: str) -> bool:
        """Whether this source is one that may be asked."""
        return source in self._sources

    def deadline(self, source: str) -> float | None:
        """When `expire` will leave this source; None while it owes nothing."""
        window = self._sources.get(source)
        return window.heard_s + STALL_S[window.transport] if window and window.asked else None

    def stuck(self) -> bool:
        """Whether every source there is lacked, when it was asked last, everything that is wanted."""
        if self._phase is _Phase.BEGINNING or not self._wanted:
            return False
        windows = self._sources.values()
        return not any(
            wanted.keeping or any(digest not in window.lacks for window in windows)
            for digest, wanted in self._wanted.items()
        )

    def failure(self, now: float) -> Unavailable | None:
        """Why this cannot go on: nobody is left, or those who are have nothing more. None while there is hope."""
        if self._sources and now - self._news_s < HOPE_S:
            return None
        return self._despair() if self.stuck() else None

    # --- sources -----------------------------------------------------------------------------------------------

    def join(self, source: str, now: float) -> None:
        """A source that may be asked from now on; one that was left may come again, unless it lied."""
        if self._left.get(source) is not Reason.LIED and source not in self._sources:
            self._left.pop(source, None)
            self._sources[source] = Window(heard_s=now, interval_start_s=now)
            self._news_s = now

    def leave(self, source: str, reason: Reason = Reason.GONE) -> None:
        """Ask this source no more; its debts go to the others. Leaving again changes nothing."""
        window = self._sources.pop(source, None)
        if window is not None:
            self._left[source] = reason
            for digest in window.asked:
                self._release(source, digest)

    def switch(self, source: str, transport: Transport) -> None:
        """What is asked of this source from now on goes another way."""
        if window := self._sources.get(source):
            window.switch(transport)

    def forgo(self, source: str, digests: Iterable[Digest]) -> None:
        """What carried these requests is gone, the source is not: others, or it again, may be asked for them."""
        window = self._sources.get(source)
        for digest in digests if window else ():
            assert window is not None
            if digest in window.asked:
                window.forgive(digest)
                self._release(source, digest)

    def alive(self, source: str, now: float) -> None:
        """Part of a long answer came."""
        if window := self._sources.get(source):
            window.heard_s = now

    def expire(self, now: float) -> tuple[str, ...]:
        """Leave the sources that owe answers and were silent for `STALL_S`. Returns them."""
        late = [name for name in self._sources if (at := self.deadline(name)) is not None and now >= at]
        for name in late:
            self.leave(name, Reason.STALLED)
        return tuple(late)

    def requests(self, source: str, now: float) -> tuple[Digest, ...]:
        """What to ask this source now: as much of the queue as its window allows. Nothing for one that was left."""
        window = self._sources.get(source)
        if window is None or now < window.rest_until_s:
            return ()
        digests = self._from_queue(window, now) or self._from_others(window, now)
        for digest in digests:
            wanted = self._wanted[digest]
            wanted.askers = (*wanted.askers, source)
            window.ask(digest, wanted.cost_bytes, now)
        return digests

    def chunk(self, digest: Digest) -> Chunk:
        """A digest out of `requests`, as a mover is asked for it."""
        wanted = self._wanted[digest]
        assert wanted.length is not None, "a block does not go by a mover"
        return Chunk(digest, wanted.length, tuple(wanted.places.values()))

    # --- answers -----------------------------------------------------------------------------------------------

    def found(self, source: str, digest: bytes, data: bytes, now: float) -> tuple[Step, ...]:
        """An answer in bytes. Returns what to do with it, in this order; nothing for one that is no longer needed.

        Raises PeerViolation naming the source, which is left: it sent what was not asked, or what is false.
        Raises ProtocolViolation naming nobody: the manifest itself lies, and no source can help.
        Raises QuotaExceeded: the content is larger than the limit.
        """
        window = self._sources.get(source)
        if window is None:
            return ()
        key = self._answered(source, window, digest, len(data), now)
        wanted = self._claim(source, key)
        if wanted is None:
            return ()
        if wanted.length is None:
            self._news_s = now
            return self._block(source, key, data)
        return self._chunk(source, window, key, data)

    def placed(self, source: str, chunk: Chunk, now: float) -> tuple[Step, ...]:
        """A mover has verified this chunk of the source's and written it. Returns and ignores as `found`."""
        window = self._sources.get(source)
        if window is None or chunk.digest not in window.asked:
            return ()
        window.answered(chunk.digest, chunk.length, now)
        wanted = self._claim(source, chunk.digest)
        if wanted is None:
            return ()
        written = frozenset(chunk.places)
        indices = tuple(index for index, offset in wanted.places.items() if offset in written)
        wanted.keeping = True
        window.keep(chunk.digest, chunk.length)
        return (KeepPlaced(source, chunk.digest, indices),)

    def absent(self, source: str, digest: bytes, now: float) -> None:
        """The source has not got it. Raises ProtocolViolation naming the source when it was not asked."""
        window = self._sources.get(source)
        if window is None:
            return
        key = self._answered(source, window, digest, 0, now)
        window.denied(key, now)
        self._release(source, key)
        if key == self.root:  # who has nothing of it cannot grow soon
            self.leave(source, Reason.ABSENT)

    def falsified(self, source: str, digest: Digest) -> PeerViolation:
        """A mover got something else under this digest: the source is left as a liar. Returns the accusation."""
        return self._lied(source, CorruptBlock(digest, peer=source))

    def violated(self, source: str, error: PeerViolation) -> PeerViolation:
        """The source broke the protocol in a way the caller saw: it is left as a liar. Returns the accusation."""
        return self._lied(source, error)

    # --- the store ---------------------------------------------------------------------------------------------

    def here(self, digest: bytes, data: bytes) -> tuple[Step, ...]:
        """A wanted manifest or leaf that the store holds already. Returns steps and raises as `found` does."""
        return tuple(step for step in self._accept(Digest(digest), data) if not isinstance(step, KeepBlock))

    def begun(self, missing: Iterable[Piece], wanted_bytes: int | None = None) -> None:
        """The store has begun the content and lacks these pieces. Told again, it adds to them.

        wanted_bytes: of the pieces that are wanted, here or not; None: the whole content.
        """
        assert self._phase in (_Phase.BEGINNING, _Phase.CHUNKS)
        assert self._manifest is not None
        self._phase = _Phase.CHUNKS
        self._wanted_bytes = self._manifest.total_len if wanted_bytes is None else wanted_bytes
        pieces = list(missing)
        turn = int(len(pieces) * self._start)
        self._want((piece.digest, piece.length, piece.index, piece.offset) for piece in pieces[turn:] + pieces[:turn])

    def kept(self, step: KeepChunk | KeepPlaced, now: float) -> None:
        """The store has accepted this chunk."""
        self._settle(step)
        self._news_s = now
        wanted = self._wanted[step.digest]
        assert wanted.length is not None
        for index in step.indices:
            del wanted.places[index]
        self._lacking_bytes -= wanted.length * len(step.indices)
        self._received[step.source] += wanted.length
        if wanted.places:  # wanted at one more place since it was asked for
            wanted.keeping = False
            self._requeue(step.digest)
        else:
            del self._wanted[step.digest]
            for window in self._sources.values():
                window.lacks.pop(step.digest, None)

    def corrupt(self, step: KeepChunk) -> PeerViolation:
        """The store has found this chunk false: its source lied and is left. Returns the accusation."""
        self._settle(step)
        self._wanted[step.digest].keeping = False
        self._requeue(step.digest)
        return self._lied(step.source, CorruptBlock(step.digest, peer=step.source))

    # --- believing ---------------------------------------------------------------------------------------------

    def _answered(self, source: str, window: Window, digest: bytes, received: int, now: float) -> Digest:
        key = Digest(bytes(digest))
        if key not in window.asked:
            raise self._lied(source, ProtocolViolation("an answer to nothing that was asked", peer=source))
        window.answered(key, received, now)
        return key

    def _claim(self, source: str, digest: Digest) -> _Wanted | None:
        """What this answer pays for; None when somebody else was faster."""
        wanted = self._wanted.get(digest)
        if wanted is None or source not in wanted.askers:
            return None
        wanted.askers = tuple(asker for asker in wanted.askers if asker != source)
        return None if wanted.keeping else wanted

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
            self._want((Digest(leaf), None, at, 0) for at, leaf in enumerate(self._manifest.leaves))
        else:
            for at in self._wanted[digest].places:
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
        if manifest.n_chunks > MAX_CHUNKS:
            raise QuotaExceeded(f"content of {manifest.n_chunks} chunks, at most {MAX_CHUNKS} are accepted")
        return manifest

    def _chunk(self, source: str, window: Window, digest: Digest, data: bytes) -> tuple[Step, ...]:
        wanted = self._wanted[digest]
        if len(data) != wanted.length:
            if digest_of(data) == digest:
                raise ProtocolViolation(f"manifest: a chunk of {len(data)} bytes where it says {wanted.length}")
            self._requeue(digest)
            raise self._lied(source, CorruptBlock(digest, peer=source))
        wanted.keeping = True
        window.keep(digest, len(data))
        return (KeepChunk(source, digest, tuple(wanted.places), data),)

    def _lied(self, source: str, error: PeerViolation) -> PeerViolation:
        self.leave(source, Reason.LIED)
        self._left[source] = Reason.LIED  # also when it had gone before its lie was found
        return error

    def _despair(self) -> Unavailable:
        reasons = set(self._left.values())
        if self._sources or Reason.ABSENT in reasons or reasons == {Reason.LIED}:
            return BlockAbsent(next(iter(self._wanted)))
        if Reason.BUSY in reasons:
            return Busy("every source is busy")
        if Reason.STALLED in reasons:
            return TimedOut("the sources stopped answering")
        return NoPeers(f"none of {len(self._left)} sources could be reached")

    # --- the queue ---------------------------------------------------------------------------------------------

    def _want(self, entries: Iterable[tuple[Digest, int | None, int, int]]) -> None:
        for digest, length, index, offset in entries:
            wanted = self._wanted.get(digest)
            if wanted is None:
                wanted = self._wanted[digest] = _Wanted(length, {})
                self._queue.append(digest)
            elif wanted.length != length:  # else an honest source would be blamed for what the manifest says
                raise ProtocolViolation(f"manifest: one chunk of {wanted.length} and of {length} bytes")
            if index not in wanted.places:
                wanted.places[index] = offset
                self._lacking_bytes += length or 0

    def _from_queue(self, window: Window, now: float) -> tuple[Digest, ...]:
        room_bytes, room_digests = window.room()
        taken: list[Digest] = []
        for _ in range(min(len(self._queue), _MAX_SCAN)):
            if room_bytes <= 0 or len(taken) >= room_digests:
                break
            digest = self._queue.popleft()
            if not window.may_have(digest, now):
                self._queue.append(digest)
                continue
            taken.append(digest)
            room_bytes -= self._wanted[digest].cost_bytes
        if room_bytes > 0 and self._queue and not taken:
            window.rest(now)  # it lacks what is there: to look again at once would find the same
        return tuple(taken)

    def _from_others(self, window: Window, now: float) -> tuple[Digest, ...]:
        """For a source with nothing to do: what the most silent of the others owe for longest."""
        if window.asked or window.keeping:
            return ()
        taken: dict[Digest, None] = {}
        for other in sorted(self._sources.values(), key=lambda each: each.heard_s):
            for digest in other.asked:
                if window.may_have(digest, now) and self._open_to_more(digest, now):
                    taken[digest] = None
                if len(taken) == ENDGAME_DIGESTS:
                    return tuple(taken)
        return tuple(taken)

    def _open_to_more(self, digest: Digest, now: float) -> bool:
        wanted = self._wanted.get(digest)
        if wanted is None or wanted.keeping:
            return False
        prompt = (asker for asker in wanted.askers if now - self._sources[asker].heard_s < OVERDUE_S)
        return sum(1 for _ in prompt) < MAX_ASKERS

    def _release(self, source: str, digest: Digest) -> None:
        wanted = self._wanted.get(digest)
        if wanted is not None and source in wanted.askers:
            wanted.askers = tuple(asker for asker in wanted.askers if asker != source)
            self._requeue(digest)

    def _requeue(self, digest: Digest) -> None:
        wanted = self._wanted[digest]
        if not wanted.askers and not wanted.keeping:
            self._queue.append(digest)

    def _forget(self, digest: Digest) -> None:
        wanted = self._wanted.pop(digest)
        if not wanted.askers and digest in self._queue:  # found in our own store
            self._queue.remove(digest)

    def _settle(self, step: KeepChunk | KeepPlaced) -> None:
        if window := self._sources.get(step.source):
            window.kept(step.digest)
