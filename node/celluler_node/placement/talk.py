"""A question, answered by one peer after the other until all is told: the journal's legs, asked of whom is best.

    Talk.run ── legs of the journal ── _Leg: attempts at one peer or two side by side until a token comes
                                         └── fails in the middle: what is left becomes legs again, at others

Of an attempt nothing is told before it is the only one: a second peer is asked only while there is no token yet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field

import trio

from celluler.errors import (
    Busy,
    CellulerError,
    InvalidSpec,
    NoPeers,
    NotFound,
    PeerViolation,
    ProtocolViolation,
    TimedOut,
    Unavailable,
)
from celluler.identity import PeerId
from celluler.inference.journal import Journal, Leg
from celluler.inference.placement import Load
from celluler.inference.questions import Answering, Begun, Event, Question, Said
from celluler.models.manifest import OpenedManifest
from celluler_node.bounded import bounded, plain
from celluler_node.placement.chooser import Chooser, final, gravest
from celluler_node.placement.race import LATE_S, MAX_ASKED
from celluler_protocols.nursery import own_nursery

ROUNDS, ROUNDS_BEGUN = 2, 6
"""How often all peers are gone through: for an answer of which nothing is told yet, and for one that has begun."""
BACK_OFF_S = 0.2
SETTLE_S = 2.0
"""How long the sums of a server are waited for when all of its answers are over."""
MAX_UNTOLD = 256
"""Events that wait for the user before those who answer are read no further."""

AskPeer = Callable[[PeerId, Question], AbstractAsyncContextManager[Answering]]


class Told:
    """What the user has not heard yet, bounded: whoever puts something waits for room."""

    def __init__(self) -> None:
        self._waiting: deque[Event] = deque()
        self._changed = trio.Event()
        self._closed = False
        self.failure: CellulerError | None = None

    def put(self, *events: Event) -> None:
        self._waiting.extend(events)
        self._wake()

    def close(self, failure: CellulerError | None = None) -> None:
        self._closed, self.failure = True, failure
        self._wake()

    async def room(self) -> None:
        while len(self._waiting) >= MAX_UNTOLD:
            await self._changed.wait()

    async def next(self) -> Event | None:
        """None at the end. Raises what it ended with."""
        while not self._waiting:
            if self._closed:
                if self.failure is not None:
                    raise self.failure
                return None
            await self._changed.wait()
        event = self._waiting.popleft()
        self._wake()
        return event

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


@dataclass(eq=False, slots=True)
class _Attempt:
    """At one peer, for one leg. spoke: it is the one that is listened to."""

    peer: PeerId
    leg: Leg
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    answering: Answering | None = None
    spoke: bool = False
    stopped: set[int] = field(default_factory=set)
    load: Load | None = None


@dataclass(frozen=True, slots=True)
class _Failure:
    peer: PeerId
    error: CellulerError


@dataclass(slots=True)
class _Ended:
    attempt: _Attempt
    failure: CellulerError | None


class Talk:
    """One question of one user. begun: set with the first tokens that somebody began from, or with the failure.

    answered: peers of which something was told, in order.
    """

    def __init__(
        self,
        chooser: Chooser,
        opened: OpenedManifest,
        question: Question,
        ask: AskPeer,
        only: PeerId | None = None,
    ) -> None:
        """ask: one peer, or this node's own server. only: to ask nobody else."""
        self._chooser, self._opened, self._ask, self._only = chooser, opened, ask, only
        self._deadline_s = trio.current_time() + question.timeout_s
        self.journal = Journal(question, self._deadline_s)
        self._live: set[_Attempt] = set()
        self.told, self.begun = Told(), trio.Event()
        self.answered: list[PeerId] = []

    async def run(self) -> None:
        """Until all is told; what it fails with is told too, and never raised."""
        failure: CellulerError | None = None
        try:
            with trio.move_on_at(self._deadline_s):
                await self._all(self.journal.left(trio.current_time()))
        except Exception as error:
            failure = _ours(plain(error))
        if failure is None and not self.journal.over:
            if self.journal.begun is None:
                failure = TimedOut("no answer has begun in the time there was")
            else:
                self.told.put(*self.journal.expire())
        self.told.put(*self.journal.close())
        self.told.close(failure)
        self.begun.set()

    def stop(self, choice: int) -> None:
        """The user wants no more of this answer."""
        self.told.put(*self.journal.stop(choice))
        for attempt in self._live:
            self._stop_unwanted(attempt)

    # --- legs --------------------------------------------------------------------------------------------------------

    async def _all(self, legs: tuple[Leg, ...], failed: tuple[_Failure, ...] = ()) -> None:
        if len(legs) == 1:
            await self._leg(legs[0], failed)
        elif legs:
            async with trio.open_nursery() as nursery:
                for leg in legs:
                    nursery.start_soon(self._leg, leg, failed)

    async def _leg(self, leg: Leg, failed: tuple[_Failure, ...]) -> None:
        """Ask until nothing of it is left. failed: whose failures led to it; they are not asked again in this round."""
        rounds = 0
        while True:
            waiting = await self._waiting({one.peer for one in failed})
            if not waiting:
                rounds += 1
                if self._exhausted(rounds, [one.error for one in failed]):
                    self._give_up(leg, [one.error for one in failed])
                    return
                await trio.sleep(BACK_OFF_S * 2 ** (rounds - 1))
                failed = ()
                continue
            ended = await self._contest(leg, waiting)
            failed += tuple(_Failure(one.attempt.peer, one.failure) for one in ended if one.failure is not None)
            left = self.journal.left(trio.current_time(), leg)
            if len(left) != 1:
                await self._all(left, failed[-1:])
                return
            if left[0].question.given != leg.question.given:  # it went on: whoever failed before may try again
                rounds, failed = 0, failed[-1:]
            leg = left[0]

    async def _waiting(self, failed: set[PeerId]) -> list[PeerId]:
        try:
            order = await self._chooser.ranked(self._opened, self._only)
        except NoPeers:
            return []
        return [peer for peer in order if peer not in failed][:MAX_ASKED]

    def _exhausted(self, rounds: int, errors: list[CellulerError]) -> bool:
        """Nobody is left to ask, or nobody has been there at all. An answer that has begun waits longer for room."""
        said = self.journal.said
        return rounds >= (ROUNDS_BEGUN if said else ROUNDS) or not any(_passes(one, said) for one in errors)

    def _give_up(self, leg: Leg, errors: list[CellulerError]) -> None:
        """Raises what is gravest; an answer of which whoever has room says that it takes no more tokens is complete."""
        refused = any(isinstance(one, InvalidSpec) for one in errors)
        if not refused or any(isinstance(one, Busy) for one in errors):
            raise gravest(errors)
        self.told.put(*self.journal.full(leg))

    # --- attempts ----------------------------------------------------------------------------------------------------

    async def _contest(self, leg: Leg, waiting: list[PeerId]) -> list[_Ended]:
        """The first peer, and another beside it when it is late; whoever speaks first goes on alone. Returns who has
        ended, failed or not. Raises what nobody else would answer otherwise."""
        hedging, model = self._chooser.hedging, self._opened.digest
        send, receive = trio.open_memory_channel[_Ended](2)
        attempts: list[_Attempt] = []
        ended: list[_Ended] = []
        hedging.asked()
        hedge_at = trio.current_time() + (hedging.hedge_after(model) or LATE_S)
        async with own_nursery() as nursery:

            def start() -> None:
                attempts.append(_Attempt(waiting[len(attempts)], leg))
                nursery.start_soon(self._attempt, attempts[-1], attempts, send)

            start()
            while len(ended) < len(attempts):
                news: _Ended | None = None
                late = len(attempts) == 1 and len(waiting) > 1 and not attempts[0].spoke
                with trio.move_on_at(hedge_at if late else float("inf")):
                    news = await receive.receive()
                if news is not None:
                    ended.append(news)
                    if news.failure is not None and final(news.failure) and not self.journal.goes_on(leg):
                        raise news.failure
                    if news.attempt.spoke:
                        break
                elif attempts[0].spoke or not hedging.spend():
                    hedge_at = float("inf")
                else:
                    start()
        return ended

    async def _attempt(self, attempt: _Attempt, rivals: list[_Attempt], ended: trio.MemorySendChannel[_Ended]) -> None:
        failure: CellulerError | None = None
        try:
            with attempt.scope, self._chooser.attempt(attempt.peer, self._opened):
                await self._hear(attempt, rivals)
        except CellulerError as error:
            failure = error
        finally:
            self._live.discard(attempt)
        with suppress(trio.WouldBlock):
            ended.send_nowait(_Ended(attempt, failure))

    async def _hear(self, attempt: _Attempt, rivals: list[_Attempt]) -> None:
        began = trio.current_time()
        left_s = max(0.0, self._deadline_s - began) + SETTLE_S
        with bounded(left_s, "an answer", peer=attempt.peer):
            async with self._ask(attempt.peer, attempt.leg.question) as answering:
                self._begin(attempt, answering)
                events = aiter(answering)
                while not self.journal.settled(attempt.leg):
                    asked_at = trio.current_time()
                    event = await anext(events, None)
                    waited_s = trio.current_time() - asked_at
                    if event is None:
                        break
                    if any(rival.spoke for rival in rivals if rival is not attempt):
                        return  # it was first, and this one has not heard yet that it is cancelled
                    self._note(attempt, event, trio.current_time() - began, waited_s, rivals)
                    self.told.put(*self.journal.take(attempt.leg, event, trio.current_time()))
                    self._stop_unwanted(attempt)
                    await self.told.room()
                with trio.move_on_after(SETTLE_S):
                    while (event := await anext(events, None)) is not None:
                        self.journal.take(attempt.leg, event, trio.current_time())
        if not self.journal.settled(attempt.leg):
            raise Unavailable("the answers ended before they were over", peer=attempt.peer)

    def _begin(self, attempt: _Attempt, answering: Answering) -> None:
        try:
            first = self.journal.begin(answering.begun)
        except ProtocolViolation as error:  # one of the two is wrong, and which one is not known
            raise Unavailable(str(error), peer=attempt.peer) from error
        if first:
            self.answered.append(attempt.peer)
            self.begun.set()
        attempt.answering = answering
        self._live.add(attempt)
        self._stop_unwanted(attempt)

    def _note(self, attempt: _Attempt, event: Event, since_s: float, waited_s: float, rivals: list[_Attempt]) -> None:
        """The first to speak is the only one from then on."""
        if not attempt.spoke:
            attempt.spoke = True
            for rival in rivals:
                if rival is not attempt:
                    rival.scope.cancel()
            if self.answered[-1:] != [attempt.peer]:
                self.answered.append(attempt.peer)
            self._chooser.answered(attempt.peer, self._opened, since_s)
        elif isinstance(event, Said):
            self._chooser.hedging.paused(self._opened.digest, waited_s)
        load = getattr(attempt.answering, "load", None)
        if isinstance(load, Load) and load is not attempt.load:
            attempt.load = load
            self._chooser.told(attempt.peer, self._opened, load)

    def _stop_unwanted(self, attempt: _Attempt) -> None:
        for place in self.journal.unwanted(attempt.leg):
            if place not in attempt.stopped and attempt.answering is not None:
                attempt.stopped.add(place)
                attempt.answering.stop(place)


def _passes(failure: CellulerError, said: bool) -> bool:
    """Asking the same peers again may help. Who has heard nothing yet is told that they are busy instead."""
    if isinstance(failure, Busy):
        return said
    return isinstance(failure, Unavailable | PeerViolation) and not isinstance(failure, NotFound)


def _ours(error: BaseException) -> CellulerError:
    if isinstance(error, CellulerError):
        return error
    raise error


@dataclass(slots=True)
class Heard:
    """`celluler.inference.questions.Generated` of a talk that has begun."""

    _talk: Talk
    model: str
    cid: str
    begun: Begun

    @property
    def peer(self) -> PeerId:
        """Who answers now."""
        return self._talk.answered[-1]

    @property
    def peers(self) -> tuple[PeerId, ...]:
        """Who has answered so far, in order, each as often as it took over."""
        return tuple(self._talk.answered)

    def __aiter__(self) -> Heard:
        return self

    async def __anext__(self) -> Event:
        event = await self._talk.told.next()
        if event is None:
            raise StopAsyncIteration
        return event

    def stop(self, choice: int) -> None:
        self._talk.stop(choice)
