"""Continuous batching as a state machine: admit into free slots, one chunk of one prompt, one token of each answer.

    plan(now) → Tick, which a worker does → stepped(outcome) → plan(now) → …

One tick is on its way at a time; requests come, are cancelled and expire in between. A slot is free as soon as its
answer has ended, whatever the tick on its way still brings for it.

Fair: a free slot goes to the client with the fewest answers under way, among those to whoever has waited longest; so
who has none waits at most for those who came before. Prompts that are being read take turns, chunk by chunk. Knows no
clock, no worker and no text.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from celluler.errors import Busy, InvalidSpec, LocalError, WorkerFailed
from celluler.inference.requests import (
    CANCELLED,
    DEADLINE,
    ERROR,
    LENGTH,
    STOP,
    Admission,
    Done,
    Ended,
    Event,
    Request,
    Stepped,
    Tick,
    Told,
)
from celluler.inference.sampling import Chosen
from celluler.inference.slots import SlotBook
from celluler.inference.stops import StopFilter


@dataclass(frozen=True, slots=True)
class Limits:
    """slots, length, vocabulary: of the worker. chunk: tokens of a prompt in one tick. queue: answers that wait, of all
    clients; client_queue: of one."""

    slots: int
    length: int
    vocabulary: int
    chunk: int = 64
    queue: int = 256
    client_queue: int = 64


@dataclass(eq=False, slots=True)
class _Answer:
    """One choice of a request. left: tokens of its prompt, and given, to be read. token: drawn, not yet given to the
    model. turn: of prompts that are read the one with the lowest is next."""

    request: Request
    choice: int
    arrived: int
    stops: StopFilter[tuple[int, ...]]
    held: list[Chosen] = field(default_factory=list)
    generated: int = 0
    slot: int | None = None
    left: int = 0
    token: int | None = None
    turn: int = 0


@dataclass(slots=True)
class _Live:
    """A request that is not over. open: its answers that have not ended."""

    request: Request
    open: dict[int, _Answer]
    generated: int = 0
    shared: int = 0


class Scheduler:
    """Every answer of a request ends exactly once, and then the request is done, once."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._live: dict[int, _Live] = {}
        self._waiting: dict[str, list[_Answer]] = {}
        self._running: dict[int, _Answer] = {}
        self._book = SlotBook(limits.slots)
        self._releases: list[int] = []
        self._flight: tuple[Tick, dict[int, _Answer]] | None = None
        self._events: list[Event] = []
        self._arrivals = self._turns = 0

    @property
    def running(self) -> int:
        """Answers that have a slot."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Answers that have none."""
        return sum(map(len, self._waiting.values()))

    @property
    def next_deadline_s(self) -> float | None:
        """When `expire` has something to do."""
        return min((live.request.deadline_s for live in self._live.values()), default=None)

    def events(self) -> tuple[Event, ...]:
        """What has come of it since this was last asked, in order."""
        told, self._events = tuple(self._events), []
        return told

    def submit(self, request: Request) -> None:
        """Raises Busy while too much is waiting, InvalidSpec for a prompt that the model cannot take, LocalError for a
        number in use."""
        limits = self._limits
        if request.number in self._live:
            raise LocalError(f"request {request.number} is under way")
        if len(request.read) > limits.length:
            raise InvalidSpec("prompt", f"holds {len(request.read)} tokens, this model takes {limits.length}")
        if not all(0 <= token < limits.vocabulary for token in request.read):
            raise InvalidSpec("prompt", f"holds a token that is not below {limits.vocabulary}")
        filters = [StopFilter[tuple[int, ...]](request.stops, ()) for _ in range(request.n)]
        queue = self._waiting.get(request.client, [])
        if self.waiting + request.n > limits.queue or len(queue) + request.n > limits.client_queue:
            raise Busy(f"{self.waiting} answers wait for a slot, {len(queue)} of them of this client")
        answers = {}
        for choice, stops in enumerate(filters):
            self._arrivals += 1
            answers[choice] = _Answer(request, choice, self._arrivals, stops, generated=len(request.given))
        self._waiting.setdefault(request.client, []).extend(answers.values())
        self._live[request.number] = _Live(request, answers)

    def cancel(self, number: int) -> None:
        """Nobody waits for this request any more; of one that is over, nothing."""
        self._end_all(number, CANCELLED)

    def stop(self, number: int, choice: int) -> None:
        """An answer has come to a stop that only its text shows; of one that has ended, nothing."""
        if (live := self._live.get(number)) and (answer := live.open.get(choice)):
            self._end(answer, STOP)

    def expire(self, now: float) -> None:
        """End what has no time left."""
        late = [number for number, live in self._live.items() if live.request.deadline_s <= now]
        for number in late:
            self._end_all(number, DEADLINE)

    def fail(self) -> None:
        """The worker is gone and what it held with it: all that was asked of it ends."""
        for number in list(self._live):
            self._end_all(number, ERROR)
        self._flight, self._releases = None, []
        self._book.clear()

    def plan(self, now: float) -> Tick | None:
        """The next tick, None while there is nothing to do. Raises LocalError while one is on its way."""
        if self._flight is not None:
            raise LocalError("a tick is on its way")
        self.expire(now)
        admissions = self._admit()
        reading = min((one for one in self._running.values() if one.left), key=lambda one: one.turn, default=None)
        decode = tuple(sorted(slot for slot, one in self._running.items() if one.token is not None))
        if reading is None and not decode:
            return None
        releases, self._releases = tuple(self._releases), []
        prefill = None if reading is None else reading.slot
        tick = Tick(releases, admissions, prefill, self._limits.chunk, decode)
        self._flight = tick, {slot: self._running[slot] for slot in (*decode, *(() if prefill is None else (prefill,)))}
        return tick

    def stepped(self, outcome: Stepped) -> None:
        """The tick is done. Raises WorkerFailed for an outcome that it cannot have: the worker is not to be used."""
        if self._flight is None:
            raise LocalError("no tick is on its way")
        tick, answers = self._flight
        self._check(tick, answers, outcome)
        self._flight = None
        if tick.prefill is not None:
            its = answers[tick.prefill]
            self._book.extend(tick.prefill, _read(its, outcome.left))
            its.left = outcome.left
            self._turns += 1
            its.turn = self._turns
        for slot in tick.decode:
            fed = answers[slot].token
            assert fed is not None
            self._book.extend(slot, (fed,))
        for one in outcome.drawn:
            if self._running.get(one.slot) is answers[one.slot]:  # else it has ended meanwhile
                self._draw(answers[one.slot], one.chosen, one.last)

    # --- whose turn it is --------------------------------------------------------------------------------------------

    def _admit(self) -> tuple[Admission, ...]:
        admissions = []
        while free := [slot for slot in range(self._limits.slots) if slot not in self._running]:
            if (answer := self._next()) is None:
                break
            queue = self._waiting[answer.request.client]
            queue.remove(answer)
            if not queue:
                del self._waiting[answer.request.client]
            admissions.append(self._begin(answer, free))
        return tuple(admissions)

    def _next(self) -> _Answer | None:
        """Who gets the next slot."""
        running = Counter(answer.request.client for answer in self._running.values())
        reading = {answer.request.number for answer in self._running.values() if answer.left}
        heads = [
            head
            for queue in self._waiting.values()
            # What is being read for one answer of a request need not be read again for the others: they wait for it.
            if (head := next((one for one in queue if one.request.number not in reading), None))
        ]
        return min(heads, key=lambda one: (running[one.request.client], one.arrived), default=None)

    def _begin(self, answer: _Answer, free: list[int]) -> Admission:
        request = answer.request
        place = self._book.place(request.client, request.read, free)
        self._turns += 1
        answer.slot, answer.left, answer.turn = place.slot, len(request.read) - place.shared, self._turns
        self._running[place.slot] = answer
        self._live[request.number].shared += place.shared
        sampling = replace(request.sampling, choice=request.sampling.choice + answer.choice)
        given, schema = len(request.given), request.schema
        return Admission(place.slot, request.read, sampling, place.source, place.shared, given, schema)

    # --- what comes of it --------------------------------------------------------------------------------------------

    def _check(self, tick: Tick, answers: dict[int, _Answer], outcome: Stepped) -> None:
        wanted = list(tick.decode)
        if tick.prefill is not None:
            left = max(0, answers[tick.prefill].left - tick.count)
            if outcome.left != left:
                raise WorkerFailed(f"the worker has {outcome.left} tokens left to read, not {left}")
            wanted += [] if left else [tick.prefill]
        if sorted(one.slot for one in outcome.drawn) != sorted(wanted):
            raise WorkerFailed("the worker drew for other slots than it was asked to")
        if not all(one.chosen is None or 0 <= one.chosen.token < self._limits.vocabulary for one in outcome.drawn):
            raise WorkerFailed("the worker drew a token that the model does not know")

    def _draw(self, answer: _Answer, chosen: Chosen | None, last: bool) -> None:
        if chosen is None:
            self._end(answer, ERROR)
            return
        answer.generated += 1
        answer.token = chosen.token
        if chosen.token in answer.request.ends:
            self._end(answer, STOP)
            return
        answer.held.append(chosen)
        passed = answer.stops.feed((chosen.token,))
        self._tell(answer, len(passed.told))
        assert answer.slot is not None
        if passed.stopped or last:
            self._end(answer, STOP)
        elif answer.generated >= answer.request.max_tokens or self._book.held(answer.slot) >= self._limits.length:
            self._end(answer, LENGTH)

    def _tell(self, answer: _Answer, count: int) -> None:
        if count:
            told, answer.held = tuple(answer.held[:count]), answer.held[count:]
            self._events.append(Told(answer.request.number, answer.choice, told))

    def _end_all(self, number: int, reason: str) -> None:
        if live := self._live.get(number):
            for answer in list(live.open.values()):
                self._end(answer, reason)

    def _end(self, answer: _Answer, reason: str) -> None:
        request = answer.request
        self._tell(answer, len(answer.stops.end()))
        if answer.slot is not None:
            del self._running[answer.slot]
            self._releases.append(answer.slot)
        else:
            queue = self._waiting[request.client]
            queue.remove(answer)
            if not queue:
                del self._waiting[request.client]
        live = self._live[request.number]
        del live.open[answer.choice]
        live.generated += answer.generated
        self._events.append(Ended(request.number, answer.choice, reason, answer.generated))
        if not live.open:
            del self._live[request.number]
            self._events.append(Done(request.number, len(request.prompt), live.generated, live.shared))


def _read(answer: _Answer, left: int) -> tuple[int, ...]:
    """The tokens of the prompt, and given behind it, that a tick has read."""
    prompt = answer.request.read
    return prompt[len(prompt) - answer.left : len(prompt) - left]
