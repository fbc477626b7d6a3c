"""What a process takes is held against what it was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from celluler_node.processes import watching
from celluler_node.processes.watching import UNASKED_S, Usage, Watch, Work
from celluler_node.processes.words import Limits

IDLE = Work(3, pending=False)


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """look(work, processor time so far, clock) of a process that takes what the test says."""
    watch = Watch(1, Limits(threads=1), tmp_path)

    def look(work: Work, cpu_s: float, now: float, threads: int = 10):
        monkeypatch.setattr(watching, "usage_of", lambda _: Usage(threads, cpu_s))
        return watch.look(work, now)

    return look


def test_work_that_was_asked_for_is_not_counted(watch) -> None:
    for second in range(100):
        assert watch(Work(second, pending=False), float(second), float(second)) is None  # a call within each second
    for second in range(100, 200):
        assert watch(Work(100, pending=True), float(second), float(second)) is None


def test_work_that_nobody_asked_for_is(watch) -> None:
    told = [watch(IDLE, float(second), float(second)) for second in range(30)]
    first = next(place for place, end in enumerate(told) if end is not None)
    assert UNASKED_S < first < UNASKED_S + 2
    assert told[first].limit == "processor"


def test_a_little_now_and_then_is_nobodys_harm(watch) -> None:
    assert all(watch(IDLE, hour * 36.0, hour * 3600.0) is None for hour in range(240))  # one in a hundred, ten days


def test_threads_are_counted_whatever_they_do(watch) -> None:
    assert watch(IDLE, 0.0, 0.0, threads=80) is None
    assert watch(IDLE, 0.0, 1.0, threads=81).limit == "threads"
