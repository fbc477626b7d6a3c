"""The requester's half of /celluler/content/1 for a whole content, or for some pieces of it.

One task a source (`talk.py`), one that keeps what came: sources never wait for the disk. Several callers may share one
transfer: each has a wish, and what no wish names is not asked for.

Knows nothing of where sources are found.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType

import trio

from celluler.content.download import Download
from celluler.content.manifest import MAX_TOTAL_BYTES, Manifest, Piece
from celluler.content.movers import Meter, OpenMover
from celluler.content.progress import Progress
from celluler.content.steps import Begin, KeepBlock, KeepChunk, KeepPlaced, Step
from celluler.content.store import Store
from celluler.errors import (
    BlockAbsent,
    CellulerError,
    CorruptBlock,
    IntegrityError,
    LocalError,
    PeerViolation,
    Unavailable,
)
from celluler.identity import PeerId
from celluler_protocols.content.talk import OnViolation, OpenStream, Talk, Ways

MAX_SOURCES = 8
"""Sources asked at the same time, as long as they have something to give."""
MAX_CONNECTED = 24
"""With those that hold a part of which nothing more is wanted now."""
MAX_OFFERED = 256
REJOIN_S = 30.0
"""A source that went away may be offered again after so long."""
TICK_S = 0.1

_BATCH_STEPS = 64  # kept by one visit to a thread

Select = Callable[[Manifest], Collection[int]]
"""Which pieces are wanted, by index. Runs in a thread. May raise any of our errors, which is then the wish's."""
OnProgress = Callable[[Progress], None]
"""Called whenever something was kept."""


@dataclass(frozen=True, slots=True)
class FetchReport:
    """received: bytes kept, by the source that gave them; empty when all was here before. liars: to be penalised."""

    root: bytes
    received: Mapping[PeerId, int]
    liars: tuple[PeerId, ...]


@dataclass(slots=True, eq=False)
class Wish:
    """What one caller wants of a content. select: None for all. `done` is set when it is here, or cannot be had."""

    select: Select | None
    done: trio.Event = field(default_factory=trio.Event)
    failure: CellulerError | None = None
    indices: frozenset[int] | None = None  # once known
    lacking: set[int] = field(default_factory=set)

    def fail(self, error: CellulerError) -> None:
        self.failure = error
        self.done.set()


@dataclass(frozen=True, slots=True)
class _Begun:
    """What the store said when it began the content, for these wishes."""

    wishes: tuple[tuple[Wish, frozenset[int]], ...]
    failed: tuple[tuple[Wish, CellulerError], ...]
    missing: tuple[Piece, ...]
    wanted_bytes: int


async def fetch(
    root: bytes,
    store: Store,
    sources: Sequence[PeerId],
    open_stream: OpenStream,
    *,
    more: AsyncIterator[PeerId] | None = None,
    select: Select | None = None,
    open_mover: OpenMover | None = None,
    meter: Meter | None = None,
    limit_bytes: int = MAX_TOTAL_BYTES,
    on_progress: OnProgress | None = None,
    on_violation: OnViolation | None = None,
) -> FetchReport:
    """Bring a content into the store, from all sources at once. What the store has already is not asked for.

    more: further sources, as they are found. select: the pieces wanted; a header is always one of them. limit_bytes:
    the largest content to accept. The deadline is the caller's; what was kept until then stays, and the next fetch goes
    on from there.

    Raises BlockAbsent when the sources lack something, Busy, TimedOut or NoPeers when they would not or could not
    answer; ProtocolViolation naming no peer when the manifest itself lies; QuotaExceeded; what `select` raises.
    """
    transfer = Transfer(
        root,
        store,
        open_stream,
        open_mover=open_mover,
        meter=meter,
        limit_bytes=limit_bytes,
        on_progress=on_progress,
        on_violation=on_violation,
    )
    wish = transfer.want(select)
    for source in sources:
        transfer.offer(source)
    report = await transfer.run(more)
    if wish.failure is not None:
        raise wish.failure
    return report


class Transfer:
    """One content on its way. Wishes and sources may be added until it is over."""

    def __init__(
        self,
        root: bytes,
        store: Store,
        open_stream: OpenStream,
        *,
        open_mover: OpenMover | None = None,
        meter: Meter | None = None,
        limit_bytes: int = MAX_TOTAL_BYTES,
        on_progress: OnProgress | None = None,
        on_violation: OnViolation | None = None,
        on_begun: Callable[[Progress], None] | None = None,
        last_resort: Callable[[], Iterable[PeerId]] = tuple,
    ) -> None:
        """on_begun: called once, when the store has begun the content: from then on we can serve parts of it.

        last_resort: whom to ask when nobody else helps; called once at most.
        """
        self.download = Download(root, limit_bytes=limit_bytes, start=random.random())  # noqa: S311 - only to differ
        self._store = store
        self._ways = Ways(open_stream, open_mover, lambda: store.part(root), meter)
        self._on_progress, self._on_violation, self._on_begun = on_progress, on_violation, on_begun
        self._last_resort: Callable[[], Iterable[PeerId]] | None = last_resort
        self._wishes: list[Wish] = []
        self._candidates: deque[PeerId] = deque()
        self._offered: dict[PeerId, float] = {}
        self._awaiting_more = False
        self._talks: dict[PeerId, Talk] = {}
        self._accused: set[str] = set()
        self._failure: CellulerError | None = None
        self._over = self._begun = False
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        # Unbounded on purpose: the windows bound what is asked, and what was not asked never gets here.
        self._arrived, self._to_keep = trio.open_memory_channel[Step](math.inf)

    @property
    def over(self) -> bool:
        """Nothing can be wanted of it any more."""
        return self._over

    @property
    def progress(self) -> Progress:
        return self.download.progress(trio.current_time())

    @property
    def received(self) -> Mapping[PeerId, int]:
        """Bytes kept, by the source that gave them."""
        return MappingProxyType({PeerId(source): count for source, count in self.download.received.items()})

    def want(self, select: Select | None = None) -> Wish:
        """Join in. Raises nothing: what goes wrong with this wish stands in it."""
        assert not self._over
        wish = Wish(select)
        self._wishes.append(wish)
        if self._begun:
            self._arrived.send_nowait(Begin())
        return wish

    def offer(self, source: PeerId) -> None:
        """A source to ask when its turn comes; one that was offered lately or is being asked is not asked twice."""
        now = trio.current_time()
        known = source in self._talks or source in self._candidates or len(self._offered) >= MAX_OFFERED
        if not known and now >= self._offered.get(source, -math.inf) + REJOIN_S:
            self._offered[source] = now
            self._candidates.append(source)
            self.settle()

    async def run(self, more: AsyncIterator[PeerId] | None = None) -> FetchReport:
        """Until every wish is fulfilled or failed. To be called once. Raises what `fetch` does."""
        try:
            with self._store.hold(self.download.root):
                await self._take_stock()
                if not self._fulfilled():
                    await self._gather(more)
        except CellulerError as error:
            self._failure = error
        finally:
            self._over = True
            for wish in self._wishes:
                if not wish.done.is_set():
                    wish.fail(self._failure or Unavailable("the transfer was stopped"))
        if self._failure is not None:
            raise self._failure
        return FetchReport(self.download.root, self.received, tuple(PeerId(liar) for liar in self.download.liars))

    async def _gather(self, more: AsyncIterator[PeerId] | None) -> None:
        with self._scope:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._keep)
                self._nursery.start_soon(self._tick)
                if more is not None:
                    self._awaiting_more = True
                    self._nursery.start_soon(self._await_more, more)
                self.settle()

    # --- sources -----------------------------------------------------------------------------------------------

    async def _await_more(self, more: AsyncIterator[PeerId]) -> None:
        with suppress(Unavailable):
            async for source in more:
                self.offer(source)
        self._awaiting_more = False
        self.settle()

    def _admit(self, nursery: trio.Nursery) -> None:
        """Those who lack everything now keep nobody out."""
        while self._candidates and (
            len(self._talks) < MAX_SOURCES or (len(self._talks) < MAX_CONNECTED and self.download.stuck())
        ):
            source = self._candidates.popleft()
            self.download.join(source, trio.current_time())
            if self.download.asks(source):
                self._talks[source] = Talk(source, self, self._ways)
                nursery.start_soon(self._visit, source)

    async def _visit(self, source: PeerId) -> None:
        try:
            await self._talks[source].run()
        finally:
            del self._talks[source]
        self.download.leave(source)
        self.settle()

    async def _tick(self) -> None:
        """What time alone brings about: silence is noticed, what was lacking is asked for again, hope ends."""
        while True:
            await trio.sleep(TICK_S)
            now = trio.current_time()
            for source, talk in self._talks.items():
                if talk.metered:
                    self.download.alive(source, now)
            for late in self.download.expire(now):
                self._talks[PeerId(late)].close()
            self.settle()

    # --- what talks tell ---------------------------------------------------------------------------------------

    def take(self, steps: Iterable[Step]) -> None:
        for step in steps:
            self._arrived.send_nowait(step)

    def fail(self, error: CellulerError) -> None:
        self._failure = self._failure or error
        self.settle()

    def accuse(self, source: PeerId, error: PeerViolation) -> None:
        """Once a source: more of its lies may already be on their way to the store."""
        if self._on_violation is not None and source not in self._accused:
            self._on_violation(source, error)
        self._accused.add(source)

    def settle(self) -> None:
        """After every event: over, beyond hope, or perhaps something new to ask."""
        if self._nursery is None or self._over:
            return
        self._admit(self._nursery)
        fulfilled = self._fulfilled()
        if not (fulfilled or self._failure or self._candidates or self._awaiting_more):
            self._despair()
        if fulfilled or self._failure is not None:
            self._over = True
            self._scope.cancel()
        for talk in self._talks.values():
            talk.ring()

    def _despair(self) -> None:
        failure = self.download.failure(trio.current_time())
        if failure is not None and self._last_resort is not None:
            others, self._last_resort = self._last_resort(), None
            for source in others:
                self.offer(source)
        elif failure is not None:
            self._failure = failure

    def _fulfilled(self) -> bool:
        return all(wish.done.is_set() for wish in self._wishes)

    # --- the store ---------------------------------------------------------------------------------------------

    async def _take_stock(self) -> None:
        """Believe what the store holds: a fetch asks only for what an earlier one did not bring."""
        begun = await trio.to_thread.run_sync(self._read_what_is_here)
        if begun is not None:
            self._apply(begun)

    def _read_what_is_here(self) -> _Begun | None:
        """Runs in a thread."""
        while here := [digest for digest in self.download.wanted if self._store.has(digest)]:
            for digest in here:
                with suppress(BlockAbsent, IntegrityError):
                    if Begin() in self.download.here(digest, self._store.get(digest)):
                        return self._begin()
        return None

    async def _keep(self) -> None:
        async for step in self._to_keep:
            steps = [step]
            with suppress(trio.WouldBlock):
                while len(steps) < _BATCH_STEPS:
                    steps.append(self._to_keep.receive_nowait())
            try:
                false, begun = await trio.to_thread.run_sync(self._perform, steps)
                if begun is not None:  # before the rest is booked: it counts some of that as missing
                    self._apply(begun)
            except CellulerError as error:  # ours, or of a manifest that lies: no source can help
                self.fail(error)
                return
            for each in steps:
                if isinstance(each, KeepChunk | KeepPlaced):
                    self._book(each, false)
            if self._on_progress is not None:
                self._on_progress(self.progress)
            self.settle()

    def _book(self, step: KeepChunk | KeepPlaced, false: Collection[KeepChunk]) -> None:
        if isinstance(step, KeepChunk) and step in false:
            return self.accuse(PeerId(step.source), self.download.corrupt(step))
        self.download.kept(step, trio.current_time())
        for wish in self._wishes:
            wish.lacking.difference_update(step.indices)
            if wish.indices is not None and not wish.lacking:
                wish.done.set()
        return None

    def _perform(self, steps: Sequence[Step]) -> tuple[list[KeepChunk], _Begun | None]:
        """(chunks that are false, what came of beginning the content). Runs in a thread."""
        false: list[KeepChunk] = []
        begun, placed = None, list[int]()
        for step in steps:
            match step:
                case KeepBlock(data):
                    self._store.put_block(data)
                case Begin():
                    begun = self._begin()
                case KeepPlaced():
                    placed += step.indices
                case KeepChunk():
                    try:
                        for index in step.indices:
                            self._store.put_chunk(self.download.root, index, step.data)
                    except CorruptBlock:
                        false.append(step)
        if placed:
            self._store.placed(self.download.root, placed)
        return false, begun

    # --- wishes ------------------------------------------------------------------------------------------------

    def _begin(self) -> _Begun:
        """Begin the content for the wishes that are not known to the store yet. Runs in a thread."""
        manifest, root = self.download.manifest, self.download.root
        assert manifest is not None
        wishes, failed = list[tuple[Wish, frozenset[int]]](), list[tuple[Wish, CellulerError]]()
        for wish in [each for each in self._wishes if each.indices is None and not each.done.is_set()]:
            try:
                indices = _selected(manifest, wish.select)
            except CellulerError as error:
                failed.append((wish, error))
                continue
            try:
                self._store.begin(root) if wish.select is None else self._store.begin(root, indices)
            except LocalError as error:  # no room for this one; what the others wish goes on
                failed.append((wish, error))
                continue
            wishes.append((wish, indices))
        known = [each.indices for each in self._wishes if each.indices is not None]
        wanted = frozenset[int]().union(*known, *(indices for _, indices in wishes))
        missing = self._store.missing(root) if wanted else ()
        lengths = manifest.lengths()
        return _Begun(
            tuple(wishes),
            tuple(failed),
            tuple(piece for piece in missing if piece.index in wanted),
            sum(length for index, length in enumerate(lengths) if index in wanted),
        )

    def _apply(self, begun: _Begun) -> None:
        self.download.begun(begun.missing, begun.wanted_bytes)
        for wish, error in begun.failed:
            wish.fail(error)
        for wish, indices in begun.wishes:
            wish.indices, wish.lacking = indices, {piece.index for piece in begun.missing if piece.index in indices}
            if not wish.lacking:
                wish.done.set()
        if not self._begun and self._on_begun is not None:
            self._on_begun(self.progress)
        self._begun = True
        if any(wish.indices is None and not wish.done.is_set() for wish in self._wishes):
            self._arrived.send_nowait(Begin())  # wanted while the store was busy with the others


def _selected(manifest: Manifest, select: Select | None) -> frozenset[int]:
    """Raises LocalError for a piece that is none, and what `select` raises."""
    pieces = manifest.n_chunks + (manifest.header is not None)
    if select is None:
        return frozenset(range(pieces))
    indices = frozenset(select(manifest))
    if any(not 0 <= index < pieces for index in indices):
        raise LocalError(f"no such piece of a content of {pieces}")
    return indices | ({0} if manifest.header is not None else set())
