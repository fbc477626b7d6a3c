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


def walks(watch: Watch, times: int = 1) -> list[str | None]:
    told = [watch.look(IDLE, 0.0) for _ in range(times * watching.LOOKS_A_WALK)]
    return [end and end.limit for end in told[watching.LOOKS_A_WALK - 1 :: watching.LOOKS_A_WALK]]


def test_what_lies_in_the_scratch_folder_is_counted_by_what_it_takes(tmp_path: Path) -> None:
    watch = Watch(1, Limits(disk_bytes=1 << 20), tmp_path)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    (tmp_path / "link").symlink_to("/usr")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(bytes(1 << 19))
    assert walks(watch) == [None]
    (tmp_path / "a" / "more").write_bytes(bytes(1 << 20))
    assert walks(watch) == ["disk"]


def test_a_disk_that_grows_full_ends_who_was_there_when_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [10 * watching.LEAST_FREE_BYTES]
    monkeypatch.setattr(watching, "_free_bytes", lambda _: free[0])
    before = Watch(1, Limits(disk_bytes=1 << 40), tmp_path)
    assert walks(before) == [None]
    free[0] = watching.LEAST_FREE_BYTES - 1
    assert walks(before) == ["disk"]
    assert walks(Watch(1, Limits(disk_bytes=1 << 40), tmp_path)) == [None]  # it came when there was no more
