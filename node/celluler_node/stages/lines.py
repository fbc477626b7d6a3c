"""A line of stages over several peers: opened together, each replaced by another peer when it is lost.

A line has places for some sequences at once. Whoever has one sends it from stage to stage itself; when a stage fails,
whoever notices first finds another peer for its blocks, the others wait for that, and each then gives its own sequence
to the new peer again (`stages_sequences`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog
import trio

from celluler.content.digest import Digest
from celluler.errors import Busy, CellulerError, NoPeers, TimedOut, Unavailable
from celluler.identity import PeerId, short
from celluler.inference.stages import Stage, stage_of
from celluler.inference.stages_planning import Candidate, Load, Part, plan_stages
from celluler.models.spec import Architecture
from celluler_node.bounded import bounded, plain
from celluler_protocols.stages import Widths
from celluler_protocols.stages_messages import OpenStage
from celluler_protocols.stages_serving import Stage as OpenedStage

OPEN_S = 120.0
"""For a peer to fetch, load and test its layers."""
REPLACEMENTS = 4
"""Of one stage, tried one after another when it is lost."""
MAX_QUEUE = 64

log = structlog.get_logger("celluler.stages")

OpenAt = Callable[[PeerId, OpenStage, Widths], AbstractAsyncContextManager[OpenedStage]]
"""Opens a stage at a peer, ourselves included."""
FindCandidates = Callable[[], Sequence[Candidate]]


@dataclass(slots=True)
class Position:
    """One stage of a line. generation: counts its peers. opened: None once it was lost and no other is found. mended:
    while another is looked for."""

    part: Part
    stage: Stage
    generation: int = 0
    opened: OpenedStage | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    mended: trio.Event | None = None

    @property
    def widths(self) -> Widths:
        stage = self.stage
        return Widths(stage.given, 0 if stage.is_last else stage.gives, stage.body.vocabulary)


class Line:
    """Use `open_line`."""

    def __init__(
        self,
        model: Digest,
        body: Architecture,
        parts: Sequence[Part],
        loads: Sequence[Load],
        *,
        slots: int,
        length: int,
        wire: str,
        open_at: OpenAt,
        candidates: FindCandidates,
        doubt: Callable[[PeerId, CellulerError], None],
        nursery: trio.Nursery,
    ) -> None:
        self.model, self.body, self.length, self.wire = model, body, length, wire
        self.positions = tuple(Position(part, stage_of(body, part.first, part.until)) for part in parts)
        self._loads, self._slots, self._open_at = loads, slots, open_at
        self._candidates, self._doubt, self._nursery = candidates, doubt, nursery
        self._free: list[int] = []
        self._begun = self._closed = False
        self._waiting = 0
        self._freed = trio.Condition()
        self.retired = False
        self.opened_at = self.used_at = trio.current_time()
        self.replaced = 0

    @property
    def parts(self) -> tuple[Part, ...]:
        """As it is now."""
        return tuple(one.part for one in self.positions)

    @property
    def whole(self) -> bool:
        """No stage is lost for good."""
        return all(one.opened is not None or one.mended is not None for one in self.positions)

    @property
    def busy(self) -> int:
        """Sequences under way, and those that wait."""
        return self._slots - len(self._free) + self._waiting

    async def begin(self) -> None:
        """Open all stages side by side. Raises what the first that failed does."""
        try:
            async with trio.open_nursery() as nursery:
                for one in self.positions:
                    nursery.start_soon(self._open, one, one.part.peer)
        except BaseExceptionGroup as group:
            raise plain(group) from None
        # A peer may have room for fewer than asked; all stages have the same ones.
        self._slots = min(one.opened.ready.slots for one in self.positions if one.opened is not None)
        self._free, self._begun = list(range(self._slots)), True

    @asynccontextmanager
    async def sequence(self) -> AsyncIterator[int]:
        """A number that is free at all stages. Raises Busy while too many wait for one."""
        if self._waiting >= MAX_QUEUE:
            raise Busy(f"{self._waiting} answers wait for a place in a line of stages")
        self._waiting += 1
        try:
            async with self._freed:
                while not self._free:
                    await self._freed.wait()
                number = self._free.pop(0)
        finally:
            self._waiting -= 1
        try:
            yield number
        finally:
            self._free.append(number)
            self.used_at = trio.current_time()
            with trio.CancelScope(shield=True):
                async with self._freed:
                    self._freed.notify()

    async def at(self, place: int) -> tuple[OpenedStage, int]:
        """The stage as it is now, and its generation; waits while it is being replaced. Raises NoPeers."""
        position = self.positions[place]
        while position.mended is not None:
            await position.mended.wait()
        if position.opened is None:
            raise NoPeers(f"nobody takes layers {position.part.first}:{position.part.until} over")
        return position.opened, position.generation

    async def replace(self, place: int, generation: int, error: CellulerError) -> None:
        """Its peer has failed, or is as good as that: find another, unless somebody has. Returns when that is over.

        It is looked for whether or not whoever noticed goes on waiting: others may wait for it too.
        """
        position = self.positions[place]
        if position.mended is None and position.generation == generation and position.opened is not None:
            position.mended, position.opened = trio.Event(), None
            position.scope.cancel()
            self._nursery.start_soon(self._mend, position, error)
        if position.mended is not None:
            await position.mended.wait()

    async def _mend(self, position: Position, error: CellulerError) -> None:
        lost = PeerId(position.part.peer)
        log.info("stage_lost", peer=short(lost), first=position.part.first, reason=str(error))
        self._doubt(lost, error)
        try:
            for _ in range(REPLACEMENTS):
                if self._closed:
                    return
                peer = self._other(position)
                try:
                    await self._open(position, peer)
                except CellulerError as failure:
                    self._doubt(peer, failure)
                    continue
                if self._closed:  # nobody lets go of it any more
                    position.scope.cancel()
                    position.opened = None
                    return
                self.replaced += 1
                log.info("stage_replaced", peer=short(peer), first=position.part.first)
                return
        except NoPeers as none:
            log.info("stage_not_replaced", first=position.part.first, reason=str(none))
        finally:
            mended, position.mended = position.mended, None
            assert mended is not None
            mended.set()

    def close(self) -> None:
        """Let go of all stages."""
        self.retired = self._closed = True
        for one in self.positions:
            one.scope.cancel()
            one.opened = None

    def _other(self, position: Position) -> PeerId:
        """The best peer for its blocks; one that has other stages of this line only where nobody else is. Raises
        NoPeers."""
        able = self._candidates()
        theirs = {one.part.peer for one in self.positions}
        loads = self._loads[position.part.first : position.part.until]
        for some in ([one for one in able if one.peer not in theirs], able):
            try:
                return PeerId(plan_stages(loads, some, stages=1)[0].peer)
            except NoPeers:
                continue
        raise NoPeers(f"nobody takes layers {position.part.first}:{position.part.until} over")

    async def _open(self, position: Position, peer: PeerId) -> None:
        first, until = position.part.first, position.part.until
        request = OpenStage(self.model, first, until, self._slots, self.length, self.wire)
        with bounded(OPEN_S, "opening a stage", peer=peer):
            error: CellulerError | None = await self._nursery.start(self._keep, position, peer, request)
        if error is not None:
            raise error

    async def _keep(
        self,
        position: Position,
        peer: PeerId,
        request: OpenStage,
        task_status: Any = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """The life of a stage at one peer. Started with None when it is open, or with why it is not."""
        started = False
        try:
            with trio.CancelScope() as scope:
                async with self._open_at(peer, request, position.widths) as opened:
                    if self._begun and opened.ready.slots < self._slots:
                        raise Busy(f"room for {opened.ready.slots} sequences, the line has {self._slots}", peer=peer)
                    position.part = Part(peer, position.part.first, position.part.until)
                    position.opened, position.scope = opened, scope
                    position.generation += 1
                    started = True
                    task_status.started(None)
                    await trio.sleep_forever()
        except CellulerError as error:
            error.peer = error.peer or peer
            if not started:
                task_status.started(error)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            if not started:
                task_status.started(Unavailable("the stream to a stage broke", peer=peer))
        else:
            if not started:
                task_status.started(TimedOut("a stage was not opened", peer=peer))
