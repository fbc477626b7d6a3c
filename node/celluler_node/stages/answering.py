"""Answers of a model that is split over peers: an `Answerer` that plans a line of stages and drives it.

Plans among the members that serve, by the memory they say they have, the speed they were measured at, and their way
from here. A line is kept while it is asked, for several answers at once, and let go when idle. A new question gets a
new line where that would be much faster than the one there is, or where the one there is has lost a stage for good.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog
import trio

from celluler.content.digest import Digest
from celluler.errors import CellulerError, InvalidSpec, NoPeers, PeerViolation, Unavailable
from celluler.identity import PeerId
from celluler.inference.hidden import BFLOAT16, FLOAT32, WIRES
from celluler.inference.memory import WORKER_BYTES
from celluler.inference.questions import Answering, Message, Prompt, Question
from celluler.inference.stages import blocks_of
from celluler.inference.stages_planning import Load, Part, loads_of, plan_stages, slowest_s
from celluler.models.manifest import OpenedManifest
from celluler.models.spec import Architecture
from celluler_node.bounded import bounded
from celluler_node.repository import Repository
from celluler_node.stages.answers import StagedAnswers, check_tokens
from celluler_node.stages.lines import Line, OpenAt
from celluler_node.stages.peers import StagePeers
from celluler_protocols.nursery import own_nursery

SLOTS = 4
"""Answers at once in a line."""
LINE_IDLE_S = 60.0
CHECK_S = 15.0
PLANS = 3
"""Tried, when peers refuse what they were to take."""
BETTER, SETTLED_S = 0.5, 60.0
"""Of the slowest stage's time: a plan so much faster is worth a new line, once the old one is that old."""
READ_S = 30.0

log = structlog.get_logger("celluler.stages")


@dataclass(frozen=True, slots=True)
class _Cut:
    """A model as it is to be planned with."""

    opened: OpenedManifest
    body: Architecture
    loads: tuple[Load, ...]


Key = tuple[Digest, int, str]


@dataclass(slots=True)
class _Lines:
    """Of one model, number of stages and wire. turn: for whoever opens one. moving: a better one is being opened."""

    current: Line | None = None
    moving: bool = False
    turn: trio.Lock = field(default_factory=trio.Lock)


class StagedAnswerer:
    """`nursery` carries the lines; `keep` must run."""

    def __init__(
        self,
        repository: Repository,
        open_at: OpenAt,
        peers: StagePeers,
        nursery: trio.Nursery,
    ) -> None:
        self._repository, self._open_at, self._peers, self._nursery = repository, open_at, peers, nursery
        self._lines: dict[Key, _Lines] = {}
        self._all: set[Line] = set()

    @asynccontextmanager
    async def __call__(
        self, model: str, question: Question, *, wire: str = "", hints: tuple[PeerId, ...] = ()
    ) -> AsyncIterator[Answering]:
        """In as many stages as the question says, 0 for as few as have the memory. wire: form of hidden states; empty
        for float32 where the likeliest tokens are drawn, so that they are those of the whole model, and bfloat16
        elsewhere.

        Raises InvalidSpec also for a model that cannot be split, NoPeers where not enough peers have the memory.
        """
        deadline_s = trio.current_time() + question.timeout_s
        if question.schema:
            raise InvalidSpec("schema", "cannot be followed by a model in stages")
        wire = wire or (FLOAT32 if question.sampling.temperature == 0.0 else BFLOAT16)
        if wire not in WIRES:
            raise InvalidSpec("wire", f"is {wire[:16]!r}, must be one of {', '.join(WIRES)}")
        with bounded(question.timeout_s, "beginning to write in stages"):
            cut = self._cut(await self._repository.resolve(model, hints=hints))
            line = await self._line(cut, question.stages, wire)
            prompt = await self._tokens(line, question.prompt)
        check_tokens(prompt + question.given, line)
        ends = cut.opened.interface.ends
        async with own_nursery() as nursery:
            answers = StagedAnswers(self._peers.measured, line, prompt, question, ends, cut.opened.digest, deadline_s)
            nursery.start_soon(answers.run)
            yield answers

    @property
    def lines(self) -> tuple[Line, ...]:
        """That are open, those too that new questions go past."""
        return tuple(self._all)

    async def keep(self) -> None:
        """Let go of lines that nobody asks; runs as long as the node."""
        while True:
            await trio.sleep(CHECK_S)
            for line in tuple(self._all):
                idle = trio.current_time() - line.used_at > LINE_IDLE_S
                if not line.busy and (idle or line.retired):
                    self._close(line)

    def needed(self, opened: OpenedManifest) -> bool:
        """No peer has the memory for its weights, and several together have it for all."""
        able = self._peers.candidates(doubted=True)
        room = max((one.memory_bytes for one in able), default=0) - WORKER_BYTES
        if opened.architecture.parameter_bytes <= room or len(able) < 2:
            return False
        try:
            return len(plan_stages(self._cut(opened).loads, able)) > 1
        except (InvalidSpec, NoPeers):
            return False

    def _cut(self, opened: OpenedManifest) -> _Cut:
        body = opened.architecture
        blocks = blocks_of(body)
        assert isinstance(body, Architecture)
        return _Cut(opened, body, loads_of(body, blocks, slots=SLOTS, length=body.input.shape[0]))

    async def _line(self, cut: _Cut, stages: int, wire: str) -> Line:
        lines = self._lines.setdefault((cut.opened.digest, stages, wire), _Lines())
        async with lines.turn:
            line = lines.current
            if line is not None and not line.retired and line.whole:
                if not lines.moving and self._worth_leaving(line, cut, stages):
                    lines.moving = True
                    self._nursery.start_soon(self._move, lines, line, cut, stages, wire)
                line.used_at = trio.current_time()
                return line
            if line is not None:
                line.retired = True
            lines.current = await self._open(cut, stages, wire)
            return lines.current

    async def _move(self, lines: _Lines, line: Line, cut: _Cut, stages: int, wire: str) -> None:
        """To a line that is better by now; what is under way ends where it is."""
        try:
            better = await self._open(cut, stages, wire)
        except CellulerError as error:
            log.info("line_kept", reason=str(error))
            line.opened_at = trio.current_time()
        else:
            lines.current, line.retired = better, True
        finally:
            lines.moving = False

    def _worth_leaving(self, line: Line, cut: _Cut, stages: int) -> bool:
        if trio.current_time() - line.opened_at < SETTLED_S:
            return False
        able = self._peers.candidates()
        try:
            better = slowest_s(cut.loads, able, plan_stages(cut.loads, able, stages=stages))
            return better < BETTER * slowest_s(cut.loads, able, line.parts)
        except (NoPeers, KeyError):  # nobody better, or one of its peers is not known any more: it is replaced if lost
            return False

    async def _open(self, cut: _Cut, stages: int, wire: str) -> Line:
        failure: CellulerError | None = None
        for attempt in range(PLANS):
            try:
                parts = self._plan(cut, stages)
            except NoPeers as error:
                raise (failure or error) from None
            line = Line(
                cut.opened.digest,
                cut.body,
                parts,
                cut.loads,
                slots=SLOTS,
                length=cut.body.input.shape[0],
                wire=wire,
                open_at=self._open_at,
                candidates=self._peers.candidates,
                doubt=self._peers.doubt,
                nursery=self._nursery,
            )
            try:
                await line.begin()
            except CellulerError as error:
                line.close()
                log.info("line_failed", attempt=attempt, reason=str(error))
                failure = error if isinstance(error, Unavailable) else Unavailable(str(error))
                if error.peer is not None:
                    self._peers.doubt(PeerId(error.peer), error)
                continue
            except BaseException:
                line.close()
                raise
            self._all.add(line)
            log.info("line_opened", parts=[(part.peer[-8:], part.first, part.until) for part in parts])
            return line
        assert failure is not None
        raise failure

    def _plan(self, cut: _Cut, stages: int) -> tuple[Part, ...]:
        """Without those that failed lately, where that can be."""
        try:
            return plan_stages(cut.loads, self._peers.candidates(), stages=stages)
        except NoPeers:
            return plan_stages(cut.loads, self._peers.candidates(doubted=True), stages=stages)

    async def _tokens(self, line: Line, prompt: Prompt) -> tuple[int, ...]:
        """By one of the two stages that have the model's tokenizer."""
        if not isinstance(prompt, str) and not any(isinstance(one, Message) for one in prompt):
            return tuple(one for one in prompt if isinstance(one, int))
        failure: CellulerError | None = None
        for place in (0, len(line.positions) - 1):
            opened, generation = await line.at(place)
            try:
                with bounded(READ_S, "reading a prompt", peer=line.positions[place].part.peer):
                    return await opened.read(prompt)
            except (Unavailable, PeerViolation) as error:
                failure = error
                await line.replace(place, generation, error)
        assert failure is not None
        raise failure

    def _close(self, line: Line) -> None:
        line.close()
        self._all.discard(line)
        self._lines = {key: one for key, one in self._lines.items() if one.current is not line or one.turn.locked()}
