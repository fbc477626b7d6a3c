"""A private share of the answers that other peers gave, checked behind the user's back and never in his way.

    an answer is complete → drawn, or not → waits in a bounded queue → judged → the liar loses placement

Which answers are checked no peer can know: the draws come from the system's randomness, and nobody is told. One check
is at work at a time; what finds no room in the queue is not checked. This node's own worker judges where it serves and
holds the model; else others are asked, and one who says that a peer lied is believed only after this node has looked
for itself, or another says the same. What this node has seen with its own worker, of an answer with a receipt, becomes
evidence: kept as content, announced, noted in the swarm.
"""

from __future__ import annotations

import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

import structlog
import trio

from celluler.content.digest import Digest
from celluler.errors import CellulerError, PeerViolation
from celluler.identity import PeerId, short
from celluler.inference.checking import Verdict
from celluler.inference.questions import Answering, Event, Finished, Question
from celluler.models.manifest import OpenedManifest
from celluler_node.checks.judging import Bench, judged
from celluler_protocols.answer_evidence import AnswerCase, answer_evidence
from celluler_protocols.inference import Predict, Predicted
from celluler_protocols.receipts import (
    AskedText,
    Heard,
    PredictedAnswer,
    TextAnswer,
    asked_prediction,
    check_receipt,
    predicted_answer,
)

MAX_WAITING, MAX_WAITING_BYTES = 32, 32 << 20
MAX_CAUGHT = 256
CHECK_S = 120.0
"""For one check, whoever does it."""
SCORERS = 3
"""Peers that are asked about one answer, at most."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Complete:
    """One complete answer of another peer. receipt: empty for none; answers: all that it is of."""

    case: AnswerCase
    receipt: bytes
    answers: tuple[TextAnswer | PredictedAnswer, ...]

    @property
    def byte_count(self) -> int:
        """Of what it holds, about."""
        asked, answer = self.case.asked, self.case.answer
        if isinstance(asked, AskedText):
            told = sum(len(one.tokens) for one in self.answers if isinstance(one, TextAnswer))
            return len(asked.prompt) + len(asked.given) + 64 * told
        return len(asked.data) + (len(answer.data) if isinstance(answer, PredictedAnswer) else 0)


@dataclass(frozen=True, slots=True)
class Caught:
    """A peer that answered wrongly. certain: this node's own worker found it. file: evidence for others, empty where
    there was no receipt or others found it. at_s: Unix time."""

    peer: PeerId
    model: Digest
    why: str
    certain: bool
    file: bytes
    at_s: int


@dataclass(frozen=True, slots=True)
class Judges:
    """Who may look at an answer. own: this node's worker, None where there is none. first: whether it is asked before
    others, for this model. others: peers that serve the model, whom to ask first first."""

    resolve: Callable[[Digest], Awaitable[OpenedManifest]]
    own: Bench | None
    first: Callable[[OpenedManifest], bool]
    others: Callable[[OpenedManifest], Awaitable[Iterable[tuple[PeerId, Bench]]]]


class SpotChecks:
    """share: of answers that are checked, 0 for none. caught: told of every liar."""

    def __init__(
        self,
        judges: Judges,
        share: float,
        caught: Callable[[Caught], Awaitable[None]],
        *,
        draws: random.Random | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._judges, self._share, self._tell, self._clock = judges, share, caught, clock
        self._draws = draws or random.SystemRandom()
        self._send, self._receive = trio.open_memory_channel[Complete](MAX_WAITING)
        self._known: OrderedDict[PeerId, Caught] = OrderedDict()
        self._waiting_bytes = 0
        self.checked = self.dropped = self.undecided = 0

    @property
    def caught(self) -> tuple[Caught, ...]:
        """The latest of each liar, of the latest liars."""
        return tuple(self._known.values())

    # --- what is heard -----------------------------------------------------------------------------------------------

    def predicted(self, peer: PeerId, request: Predict, answer: Predicted, *, suspected: bool = False) -> None:
        """An answer has come; it may go on to the user. suspected: checked whatever is drawn, if ever."""
        if not (self._drawn() or (suspected and self._share > 0.0)):
            return
        told = predicted_answer(answer)
        case = AnswerCase(peer, Digest(answer.model), asked_prediction(request), told, 0, False, 0)
        self._put(Complete(case, answer.receipt, (told,)))

    def watched(self, peer: PeerId, question: Question, answering: Answering) -> Answering:
        """The same answer, passed on as it comes, and perhaps checked when it is complete."""
        return _Watched(self, peer, question, answering) if self._drawn() else answering

    def _drawn(self) -> bool:
        return self._share > 0.0 and self._draws.random() < self._share

    def completed(self, peer: PeerId, heard: Heard, receipt: bytes) -> None:
        """Of several answers to one question one is checked."""
        answers = heard.answers
        choice = self._draws.randrange(len(answers))
        ended = bool(heard.ended >> choice & 1)
        case = AnswerCase(peer, heard.model, heard.asked, answers[choice], choice, ended, 0)
        self._put(Complete(case, receipt, answers))

    def _put(self, one: Complete) -> None:
        if self._waiting_bytes + one.byte_count > MAX_WAITING_BYTES:
            self.dropped += 1
            return
        try:
            self._send.send_nowait(one)
            self._waiting_bytes += one.byte_count
        except trio.WouldBlock:
            self.dropped += 1

    # --- what is checked ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """As long as the node."""
        async for one in self._receive:
            self._waiting_bytes -= one.byte_count
            try:
                with trio.move_on_after(CHECK_S) as limit:
                    await self._check(one)
                self.undecided += limit.cancelled_caught
            except CellulerError as error:
                self.undecided += 1
                log.info("spot_check_failed", peer=short(one.case.peer), reason=str(error))

    async def _check(self, one: Complete) -> None:
        case = one.case
        try:
            if one.receipt:
                check_receipt(one.receipt, case.peer, case.model, case.asked, one.answers)
        except PeerViolation as error:
            await self._convict(one, f"its receipt is of something else: {error}", certain=True, signed=False)
            return
        opened = await self._judges.resolve(case.model)
        verdict, certain = await self._verdict(case, opened)
        if verdict is None:
            self.undecided += 1
            return
        self.checked += 1
        log.info("spot_checked", peer=short(case.peer), outcome=verdict.outcome.value, tokens=verdict.tokens)
        if verdict.wrong:
            await self._convict(one, verdict.why, certain=certain, signed=bool(one.receipt))

    async def _verdict(self, case: AnswerCase, opened: OpenedManifest) -> tuple[Verdict | None, bool]:
        """(verdict, whether this node found it by itself)."""
        own = self._judges.own
        if own is not None and self._judges.first(opened):
            return await judged(case, opened.interface, own), True
        accusers: list[Verdict] = []
        asked = 0
        for peer, bench in await self._judges.others(opened):
            if peer == case.peer or asked == SCORERS:
                continue
            asked += 1
            try:
                verdict = await judged(case, opened.interface, bench)
            except CellulerError as error:
                log.info("scorer_failed", peer=short(peer), reason=str(error))
                continue
            if verdict is None or not verdict.wrong:
                return verdict, False
            if own is not None:  # somebody lies, and here it can be seen who
                return await judged(case, opened.interface, own), True
            accusers.append(verdict)
            if len(accusers) == 2:
                return verdict, False
        if own is not None and not asked:
            return await judged(case, opened.interface, own), True
        return None, False

    async def _convict(self, one: Complete, why: str, *, certain: bool, signed: bool) -> None:
        case, file = one.case, b""
        if certain and signed:
            file = answer_evidence(one.receipt, case.asked, case.answer, case.choice)
        found = Caught(case.peer, case.model, why, certain, file, int(self._clock()))
        self._known.pop(case.peer, None)
        self._known[case.peer] = found
        if len(self._known) > MAX_CAUGHT:
            self._known.popitem(last=False)
        log.warning("wrong_answer", peer=short(case.peer), model=case.model.hex()[:16], why=why, certain=certain)
        await self._tell(found)


class _Watched:
    """An answer that is listened to."""

    def __init__(self, checks: SpotChecks, peer: PeerId, question: Question, answering: Answering) -> None:
        self._checks, self._peer, self._answering = checks, peer, answering
        self._events, self.begun = aiter(answering), answering.begun
        self._heard = Heard(answering.begun, question)

    @property
    def load(self) -> object:
        """What its server last said of itself, if it does."""
        return getattr(self._answering, "load", None)

    def __aiter__(self) -> _Watched:
        return self

    async def __anext__(self) -> Event:
        event = await anext(self._events)
        self._heard.take(event)
        if isinstance(event, Finished):
            self._checks.completed(self._peer, self._heard, event.receipt)
        return event

    def stop(self, choice: int) -> None:
        self._heard.stop(choice)
        self._answering.stop(choice)
