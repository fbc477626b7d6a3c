"""Dynamic batching: every prediction is answered once, together with what goes with it, and nobody waits in vain."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from celluler.errors import Busy
from celluler.inference.windows import ALONE_AFTER, Ask, Window, WindowLimits

LIMITS = WindowLimits(samples=8, batch_bytes=64, wait_s=1.0, queue=20, client_queue=12, queue_bytes=400)


class Batching(RuleBasedStateMachine):
    """Clients ask, leave, and a worker computes, fails or goes, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.window, self.now = Window(LIMITS), 0.0
        self.open: dict[int, Ask] = {}
        self.left: set[int] = set()
        self.flight: tuple[Ask, ...] | None = None
        self.poisoned: set[int] = set()
        self.numbers = 0

    @rule(
        client=st.sampled_from("abc"),
        group=st.sampled_from([None, 1, 2]),
        samples=st.integers(1, 10),
        bad=st.booleans(),
    )
    def submit(self, client: str, group: int | None, samples: int, bad: bool) -> None:
        self.numbers += 1
        ask = Ask(self.numbers, client, group, samples, 8 * samples)
        waiting = self.window.waiting
        try:
            self.window.submit(ask, self.now)
        except Busy:
            assert self.window.waiting == waiting
            return
        self.open[ask.number] = ask
        if bad:
            self.poisoned.add(ask.number)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.open)))
        self.window.cancel(number)
        if self.flight is not None and number in {one.number for one in self.flight}:
            self.left.add(number)
        else:
            del self.open[number]

    @rule(step=st.floats(0, 2))
    def plan(self, step: float) -> None:
        self.now += step
        batch = self.window.plan(self.now)
        if self.flight is not None:
            assert batch is None
        elif batch is None and self.open:
            deadline = self.window.deadline
            assert deadline is not None
            assert self.now < deadline <= self.now + LIMITS.wait_s
            batch = self.window.plan(deadline)
            self.now = deadline
            assert batch is not None, "a free worker waits no longer than it said"
        elif batch is None:
            assert self.window.deadline is None
        if batch is not None:
            self._check(batch)
            self.flight = batch

    def _check(self, batch: tuple[Ask, ...]) -> None:
        assert batch
        assert all(self.open[one.number] is one for one in batch)
        assert len({one.number for one in batch}) == len(batch)
        if len(batch) > 1:
            assert {one.group for one in batch} == {batch[0].group} != {None}
            assert sum(one.samples for one in batch) <= LIMITS.samples
            assert sum(one.byte_count for one in batch) <= LIMITS.batch_bytes

    @precondition(lambda self: self.flight is not None)
    @rule(took=st.floats(0, 3))
    def compute(self, took: float) -> None:
        self.now += took
        assert self.flight is not None
        batch, self.flight = self.flight, None
        over = batch
        if any(one.number in self.poisoned for one in batch):
            over = self.window.failed(self.now)
            assert over == (batch if len(batch) == 1 else ())
        else:
            self.window.done(self.now)
        gone = {one.number for one in over} | (self.left & {one.number for one in batch})
        self.left -= gone
        for number in gone:
            del self.open[number]

    @rule()
    def crash(self) -> None:
        assert {one.number for one in self.window.clear()} == set(self.open)
        self.open, self.left, self.flight = {}, set(), None

    @invariant()
    def everything_is_somewhere(self) -> None:
        assert self.window.waiting + self.window.flying == len(self.open)

    def teardown(self) -> None:
        """Left alone, the worker answers everything that is asked for."""
        for _ in range(4 * len(self.open) + 4):
            if self.flight is None:
                self.plan(0.0)
            if self.flight is not None:
                self.compute(0.1)
        assert not self.open
        assert not self.window.waiting


TestBatching = Batching.TestCase
TestBatching.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def asks(*clients: str, group: int | None = 1) -> list[Ask]:
    return [Ask(number, client, group, 1, 4) for number, client in enumerate(clients)]


def run_closed(
    clients: int, rounds: int, *, COMPUTE_S: float = 0.001, THINK_S: float = 0.0001
) -> tuple[list[int], list[float]]:
    """(batch sizes, latencies) of clients that each ask again as soon as they are answered."""
    window, now = Window(), 0.0
    sizes: list[int] = []
    latencies: list[float] = []
    coming = [(0.0, str(client)) for client in range(clients)]
    since: dict[int, tuple[str, float]] = {}
    numbers = 0
    while len(sizes) < rounds:
        while coming and coming[0][0] <= now:
            at, client = coming.pop(0)
            numbers += 1
            window.submit(Ask(numbers, client, 1, 1, 4), at)
            since[numbers] = (client, at)
        batch = window.plan(now)
        if batch is None:
            events = [at for at, _ in coming[:1]] + ([window.deadline] if window.deadline is not None else [])
            now = max(now, min(events))
            continue
        arrived = [one for one in coming if one[0] <= now + COMPUTE_S]
        for one in arrived:  # these ask while the batch is at work
            coming.remove(one)
            numbers += 1
            window.submit(Ask(numbers, one[1], 1, 1, 4), one[0])
            since[numbers] = (one[1], one[0])
        now += COMPUTE_S
        window.done(now)
        sizes.append(len(batch))
        for one_ask in batch:
            client, at = since.pop(one_ask.number)
            latencies.append(now - at)
            coming.append((now + THINK_S, client))
        coming.sort()
    return sizes, latencies


def test_who_asks_alone_never_waits() -> None:
    sizes, latencies = run_closed(1, 50)
    assert set(sizes) == {1}
    assert max(latencies) == pytest.approx(0.001)


def test_clients_that_ask_again_at_once_are_computed_together() -> None:
    sizes, latencies = run_closed(32, 50)
    assert sum(sizes[5:]) / len(sizes[5:]) > 31
    assert max(latencies[200:]) < 0.004


def test_no_batch_is_larger_than_it_may_be() -> None:
    sizes, _ = run_closed(100, 60)
    assert max(sizes) == 32


def test_a_client_with_many_asks_does_not_keep_another_waiting() -> None:
    window = Window(WindowLimits(samples=4))
    for one in asks(*"aaaaaaaaaaaa"):
        window.submit(one, 0.0)
    window.submit(Ask(100, "b", 1, 1, 4), 0.0)
    window.submit(Ask(101, "c", None, 1, 4), 0.0)
    first = window.plan(9.0)
    assert first is not None
    assert 100 in {one.number for one in first}
    window.done(9.1)
    second = window.plan(9.2)
    assert second is not None
    assert {one.number for one in second} == {101}


def test_nobody_answers_for_anothers_sample() -> None:
    window = Window()
    for one in asks("a", "b", "c"):
        window.submit(one, 0.0)
    batch = window.plan(1.0)
    assert len(batch or ()) == 3
    assert window.failed(1.1) == ()
    window.cancel(2)
    outcomes = Counter[str]()
    while (alone := window.plan(2.0)) is not None:
        assert len(alone) == 1
        if alone[0].client == "a":
            assert window.failed(2.1) == alone
            outcomes["failed"] += 1
        else:
            window.done(2.1)
            outcomes["done"] += 1
    assert outcomes == {"failed": 1, "done": 1}


def test_a_client_whose_sample_failed_goes_alone_for_a_while() -> None:
    window = Window()
    for one in asks("a", "b"):
        window.submit(one, 0.0)
    window.plan(1.0)
    window.failed(1.1)
    assert window.plan(2.0) == (asks("a")[0],)
    window.done(2.1)
    window.plan(3.0)
    window.failed(3.1)
    seen = []
    for turn in range(ALONE_AFTER + 2):
        window.submit(Ask(10 + 2 * turn, "a", 1, 1, 4), 5.0 + turn)
        window.submit(Ask(11 + 2 * turn, "b", 1, 1, 4), 5.0 + turn)
        batches = []
        while (batch := window.plan(5.0 + turn)) is not None:
            batches.append({one.client for one in batch})
            window.done(5.0 + turn)
        seen.append(batches)
    assert all({"b"} in batches for batches in seen[:ALONE_AFTER])
    assert seen[-1] == [{"a", "b"}]


def test_what_waits_is_bounded() -> None:
    window = Window(WindowLimits(queue=4, client_queue=3, queue_bytes=100))
    for one in asks("a", "a", "a"):
        window.submit(one, 0.0)
    with pytest.raises(Busy, match="3 of them of this client"):
        window.submit(Ask(9, "a", 1, 1, 4), 0.0)
    with pytest.raises(Busy, match="bytes"):
        window.submit(Ask(9, "b", 1, 1, 99), 0.0)
    window.submit(Ask(9, "b", 1, 1, 4), 0.0)
    with pytest.raises(Busy):
        window.submit(Ask(10, "c", 1, 1, 4), 0.0)
    assert window.waiting == 4
