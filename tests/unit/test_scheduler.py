"""Continuous batching as decisions: whose turn it is, which slot, and that every request ends exactly once."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.errors import Busy, InvalidSpec, LocalError, WorkerFailed
from celluler.inference.requests import Done, Drawn, Ended, Event, Request, Stepped, Tick, Told
from celluler.inference.sampling import Chosen, Sampling
from celluler.inference.scheduler import Limits, Scheduler

VOCABULARY, LENGTH = 11, 12
LIMITS = Limits(slots=3, length=LENGTH, vocabulary=VOCABULARY, chunk=4, queue=40, client_queue=20)


def request(number: int, client: str = "alice", prompt: tuple[int, ...] = (1, 2, 3), **fields: Any) -> Request:
    return Request(number, client, prompt, **{"max_tokens": 4, "deadline_s": 1000.0, **fields})


def next_token(tokens: list[int], choice: int) -> int:
    """What the worker of these tests says; told by all that stands before and the choice."""
    return (sum(tokens) * 7 + len(tokens) * 3 + choice) % VOCABULARY


def answer(asked: Request, choice: int) -> tuple[list[int], str]:
    """All tokens of an answer, by itself."""
    tokens, told = list(asked.prompt), list[int]()
    while True:
        token = next_token(tokens, asked.sampling.choice + choice)
        if token in asked.ends:
            return told, "stop"
        told.append(token)
        ends = [len(stop) for stop in asked.stops if tuple(told[-len(stop) :]) == stop]
        if ends:
            return told[: -max(ends)], "stop"
        if len(told) == asked.max_tokens or len(tokens) == LENGTH:
            return told, "length"
        tokens.append(token)


@dataclass
class Slots:
    """A worker that holds tokens in slots, and refuses what a worker refuses."""

    held: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    left: dict[int, list[int]] = field(default_factory=dict)
    choice: dict[int, int] = field(default_factory=dict)
    token: dict[int, int] = field(default_factory=dict)
    read: int = 0

    def do(self, tick: Tick) -> Stepped:
        for slot in tick.releases:
            del self.choice[slot]
            self.token.pop(slot, None)
        for one in tick.admissions:
            assert one.slot not in self.choice, "a slot was used twice"
            assert 0 <= one.slot < LIMITS.slots
            kept = [] if one.source is None else self.held[one.source][: one.shared]
            assert kept == list(one.prompt[: one.shared])
            assert one.shared < len(one.prompt)
            self.held[one.slot], self.left[one.slot] = kept, list(one.prompt[one.shared :])
            self.choice[one.slot] = one.sampling.choice
        drawn, left = [], 0
        assert list(tick.decode) == sorted(set(tick.decode) - {tick.prefill})
        if tick.prefill is not None:
            some, rest = self.left[tick.prefill][: tick.count], self.left[tick.prefill][tick.count :]
            assert some
            self.held[tick.prefill] += some
            self.left[tick.prefill], left = rest, len(rest)
            self.read += len(some)
            drawn += [] if rest else [self.draw(tick.prefill)]
        for slot in tick.decode:
            self.held[slot].append(self.token.pop(slot))
            drawn.append(self.draw(slot))
        assert all(len(held) <= LENGTH for held in self.held.values())
        return Stepped(left, tuple(drawn))

    def draw(self, slot: int) -> Drawn:
        self.token[slot] = next_token(self.held[slot], self.choice[slot])
        return Drawn(slot, Chosen(self.token[slot]))


@dataclass
class Seen:
    """What clients were told."""

    tokens: dict[tuple[int, int], list[int]] = field(default_factory=lambda: defaultdict(list))
    ended: dict[tuple[int, int], Ended] = field(default_factory=dict)
    done: dict[int, Done] = field(default_factory=dict)

    def take(self, events: tuple[Event, ...]) -> None:
        for event in events:
            match event:
                case Told(number, choice, tokens):
                    assert (number, choice) not in self.ended, "told after its end"
                    assert tokens
                    self.tokens[number, choice] += [one.token for one in tokens]
                case Ended(number, choice):
                    assert (number, choice) not in self.ended, "ended twice"
                    self.ended[number, choice] = event
                case Done(number):
                    assert number not in self.done, "done twice"
                    self.done[number] = event


def run(scheduler: Scheduler, worker: Slots, seen: Seen, *, ticks: int = 10_000) -> int:
    """Until there is nothing to do; the number of ticks."""
    for count in range(ticks):
        tick = scheduler.plan(0.0)
        seen.take(scheduler.events())
        if tick is None:
            return count
        scheduler.stepped(worker.do(tick))
        seen.take(scheduler.events())
    raise AssertionError("no end")


def test_an_answer_that_goes_on_behind_given_tokens_is_the_rest_of_the_whole_one() -> None:
    whole = request(0, prompt=(1, 2), max_tokens=8)
    tokens, reason = answer(whole, 0)
    assert len(tokens) == 8
    for split in range(1, len(tokens)):
        scheduler, seen = Scheduler(LIMITS), Seen()
        scheduler.submit(replace(whole, given=tuple(tokens[:split])))
        run(scheduler, Slots(), seen)
        assert seen.tokens[0, 0] == tokens[split:]
        assert seen.ended[0, 0] == Ended(0, 0, reason, 8)
        assert seen.done[0].prompt == 2
    for wrong in ({"n": 2}, {"stops": ((1,),)}, {"max_tokens": 2}):
        with pytest.raises(InvalidSpec, match="given"):
            replace(whole, given=(1, 2), **wrong)
    with pytest.raises(InvalidSpec, match="holds 13 tokens"):
        Scheduler(LIMITS).submit(replace(whole, max_tokens=99, given=(1,) * 11))
    with pytest.raises(InvalidSpec, match="not below"):
        Scheduler(LIMITS).submit(replace(whole, given=(VOCABULARY,)))


def test_an_answer_behind_which_nothing_may_come_is_over_with_its_last_token() -> None:
    scheduler, seen = Scheduler(LIMITS), Seen()
    scheduler.submit(request(0, schema=b"{}"))
    tick = scheduler.plan(0.0)
    assert tick is not None
    assert tick.admissions[0].schema == b"{}"
    scheduler.stepped(Stepped(0, (Drawn(0, Chosen(7), last=True),)))
    seen.take(scheduler.events())
    assert seen.tokens[0, 0] == [7]
    assert seen.ended[0, 0] == Ended(0, 0, "stop", 1)
    assert scheduler.running == 0


OPERATIONS = ("submit", "submit", "tick", "tick", "tick", "cancel", "stop", "late", "fail")


def any_request(draw: Random, number: int, now: int) -> Request:
    return request(
        number,
        draw.choice(("alice", "bob", "carol")),
        tuple(draw.randrange(3) for _ in range(draw.randint(1, LENGTH))),
        max_tokens=draw.randint(1, 20),
        deadline_s=now + draw.randint(1, 60),
        n=draw.randint(1, 4),
        sampling=Sampling(choice=draw.randrange(4)),
        stops=tuple(tuple(draw.randrange(11) for _ in range(draw.randint(1, 2))) for _ in range(draw.randrange(3))),
        ends=frozenset(draw.sample(range(11), draw.randrange(2))),
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(OPERATIONS), max_size=40), st.integers(0, 1 << 30))
def test_whatever_comes_in_whatever_order_every_answer_is_right_and_ends_once(operations: list[str], seed: int) -> None:
    draw = Random(seed)
    scheduler, worker, seen = Scheduler(LIMITS), Slots(), Seen()
    asked: dict[int, Request] = {}
    stopped: set[tuple[int, int]] = set()
    now, flight = 0, None
    for operation in operations:
        match operation:
            case "submit":
                one = any_request(draw, len(asked), now)
                try:
                    scheduler.submit(one)
                    asked[one.number] = one
                except Busy:
                    assert scheduler.waiting + one.n > min(LIMITS.queue, LIMITS.client_queue)
            case "tick" if flight is None:
                flight = scheduler.plan(now)
            case "tick" if flight is not None:
                scheduler.stepped(worker.do(flight))
                flight = None
            case "cancel" if asked:
                scheduler.cancel(draw.randrange(len(asked)))
            case "stop" if asked:
                number = draw.randrange(len(asked))
                scheduler.stop(number, 0)
                stopped.add((number, 0))
            case "late":
                now += draw.randint(1, 20)
                scheduler.expire(now)
            case "fail" if draw.random() < 0.25:
                scheduler.fail()
                worker, flight = Slots(), None
        seen.take(scheduler.events())
    if flight is not None:
        scheduler.stepped(worker.do(flight))
    run(scheduler, worker, seen)
    assert scheduler.running == scheduler.waiting == 0
    assert scheduler.next_deadline_s is None
    assert set(seen.done) == set(asked)
    assert set(seen.ended) == {(number, choice) for number, one in asked.items() for choice in range(one.n)}
    for (number, choice), end in seen.ended.items():
        wanted, reason = answer(asked[number], choice)
        told = seen.tokens[number, choice]
        if (number, choice) in stopped or end.reason in ("cancelled", "deadline", "error"):
            # What was held back as the beginning of a stop sequence is told when it cannot become one any more.
            longer = answer(replace(asked[number], stops=()), choice)[0]
            assert longer[: len(told)] == told
        else:
            assert (told, end.reason) == (wanted, reason)
    for number, done in seen.done.items():
        assert done.generated == sum(end.generated for (one, _), end in seen.ended.items() if one == number)
        assert done.prompt == len(asked[number].prompt)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=6), st.integers(1, 4))
def test_nobody_starves_while_others_ask_without_end(waiting: list[str], flood: int) -> None:
    scheduler, worker, seen = Scheduler(replace(LIMITS, queue=10_000, client_queue=10_000)), Slots(), Seen()
    number = 0

    def ask(client: str) -> int:
        nonlocal number
        number += 1
        scheduler.submit(request(number, client, prompt=(number % 11,) * 6))
        return number

    for _ in range(30):
        ask("greedy")
    wanted = {ask(client) for client in waiting}
    for turn in range(60 + 40 * len(waiting)):
        for one in range(flood):  # of one client, and of ever new ones
            ask("greedy" if one % 2 else f"new {turn}.{one}")
        tick = scheduler.plan(0.0)
        assert tick is not None
        scheduler.stepped(worker.do(tick))
        seen.take(scheduler.events())
        if wanted <= set(seen.done):
            return
    raise AssertionError(f"{wanted - set(seen.done)} starved")


def test_clients_share_the_slots_however_much_one_of_them_asks() -> None:
    scheduler, worker, seen = Scheduler(LIMITS), Slots(), Seen()
    for number in range(20):
        scheduler.submit(request(number, "greedy", prompt=(number % 11,), max_tokens=8))
    for number in range(20, 24):
        scheduler.submit(request(number, "alice", prompt=(number % 11,), max_tokens=8))
    run(scheduler, worker, seen, ticks=1000)
    order = list(seen.done)
    assert sum(number >= 20 for number in order[:8]) >= 3


def test_a_cancelled_answer_frees_its_slot_at_once_and_what_was_on_its_way_is_dropped() -> None:
    scheduler, worker, seen = Scheduler(replace(LIMITS, slots=1)), Slots(), Seen()
    scheduler.submit(request(1, max_tokens=9))
    scheduler.submit(request(2, prompt=(5, 5)))
    first = scheduler.plan(0.0)
    assert first is not None
    assert [one.prompt for one in first.admissions] == [(1, 2, 3)]
    scheduler.cancel(1)
    assert (scheduler.running, scheduler.waiting) == (0, 1)
    seen.take(scheduler.events())
    assert seen.ended[1, 0].reason == "cancelled"
    scheduler.stepped(worker.do(first))
    assert scheduler.events() == ()
    second = scheduler.plan(0.0)
    assert second is not None
    assert second.releases == (0,)
    assert [one.prompt for one in second.admissions] == [(5, 5)]


def test_a_long_prompt_is_read_by_chunks_while_others_go_on_and_short_ones_get_between() -> None:
    scheduler, worker = Scheduler(LIMITS), Slots()
    scheduler.submit(request(1, prompt=(1,), max_tokens=10))
    tick = scheduler.plan(0.0)
    assert tick is not None
    scheduler.stepped(worker.do(tick))
    scheduler.submit(request(2, "bob", prompt=(2,) * 12))
    scheduler.submit(request(3, "carol", prompt=(3,) * 2))
    told = []
    for _ in range(4):
        tick = scheduler.plan(0.0)
        assert tick is not None
        assert 0 in tick.decode
        told.append(tick.prefill)
        scheduler.stepped(worker.do(tick))
    assert told == [1, 2, 1, 1]


def test_answers_of_one_request_read_its_prompt_once_and_so_does_a_client_that_goes_on() -> None:
    scheduler, worker, seen = Scheduler(LIMITS), Slots(), Seen()
    prompt = (1, 2, 3, 4, 5, 6, 7, 8)
    scheduler.submit(request(1, prompt=prompt, n=3, max_tokens=3))
    run(scheduler, worker, seen)
    assert worker.read == 8 + 1 + 1
    assert seen.done[1] == Done(1, 8, 9, 14)
    longer = (*prompt, seen.tokens[1, 0][0], 9)
    scheduler.submit(request(2, prompt=longer))
    run(scheduler, worker, seen)
    assert seen.done[2].shared == 9
    scheduler.submit(request(3, "bob", prompt=longer))
    run(scheduler, worker, seen)
    assert seen.done[3].shared == 0, "what a client asks must not show in how fast others are answered"


def test_what_waits_is_bounded_and_a_full_queue_is_a_typed_answer() -> None:
    scheduler = Scheduler(replace(LIMITS, queue=5, client_queue=3))
    scheduler.submit(request(1, n=3))
    with pytest.raises(Busy):
        scheduler.submit(request(2))
    scheduler.submit(request(3, "bob", n=2))
    with pytest.raises(Busy):
        scheduler.submit(request(4, "carol"))
    scheduler.cancel(1)
    scheduler.submit(request(4, "carol"))
    assert Counter(type(one) for one in scheduler.events()) == {Ended: 3, Done: 1}


def test_requests_that_no_model_could_do_are_refused() -> None:
    scheduler = Scheduler(LIMITS)
    impossible: list[dict[str, Any]] = [{"prompt": ()}, {"max_tokens": 0}, {"n": 0}, {"n": 17}]
    for wrong in (*impossible, {"n": 2, "sampling": Sampling(choice=15)}):
        with pytest.raises(InvalidSpec):
            request(1, **wrong)
    misfits: list[dict[str, Any]] = [{"prompt": (1,) * 13}, {"prompt": (VOCABULARY,)}, {"prompt": (-1,)}]
    for wrong in (*misfits, {"stops": ((),)}):
        with pytest.raises(InvalidSpec):
            scheduler.submit(request(1, **wrong))
    scheduler.submit(request(1))
    with pytest.raises(LocalError, match="under way"):
        scheduler.submit(request(1))
    assert scheduler.waiting == 1


def test_a_deadline_ends_what_waits_and_what_runs_with_what_there_is() -> None:
    scheduler, worker, seen = Scheduler(replace(LIMITS, slots=1)), Slots(), Seen()
    scheduler.submit(request(1, deadline_s=5.0, max_tokens=9))
    scheduler.submit(request(2, deadline_s=4.0))
    assert scheduler.next_deadline_s == 4.0
    tick = scheduler.plan(0.0)
    assert tick is not None
    scheduler.stepped(worker.do(tick))
    assert scheduler.plan(5.0) is None
    seen.take(scheduler.events())
    assert {number: end.reason for (number, _), end in seen.ended.items()} == {1: "deadline", 2: "deadline"}
    assert len(seen.tokens[1, 0]) == 1


@pytest.mark.parametrize(
    "outcome",
    [
        Stepped(1, ()),
        Stepped(0, ()),
        Stepped(0, (Drawn(1, Chosen(1)),)),
        Stepped(0, (Drawn(0, Chosen(VOCABULARY)),)),
        Stepped(0, (Drawn(0, Chosen(1)), Drawn(0, Chosen(1)))),
    ],
)
def test_an_outcome_that_no_worker_can_have_is_refused_and_its_failure_ends_all(outcome: Stepped) -> None:
    scheduler, seen = Scheduler(LIMITS), Seen()
    scheduler.submit(request(1))
    scheduler.submit(request(2))
    assert scheduler.plan(0.0) is not None
    with pytest.raises(LocalError, match="on its way"):
        scheduler.plan(0.0)
    with pytest.raises(WorkerFailed):
        scheduler.stepped(outcome)
    scheduler.fail()
    seen.take(scheduler.events())
    assert [end.reason for end in seen.ended.values()] == ["error", "error"]
    assert scheduler.plan(0.0) is None


def test_a_model_without_logits_ends_that_answer_alone() -> None:
    scheduler, worker, seen = Scheduler(LIMITS), Slots(), Seen()
    scheduler.submit(request(1))
    tick = scheduler.plan(0.0)
    assert tick is not None
    worker.do(tick)
    scheduler.stepped(Stepped(0, (Drawn(0, None),)))
    scheduler.submit(request(2))
    run(scheduler, worker, seen)
    assert {number: end.reason for (number, _), end in seen.ended.items()} == {1: "error", 2: "length"}
