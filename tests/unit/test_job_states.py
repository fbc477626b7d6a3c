"""A job goes through its states by the table, and says why."""

from __future__ import annotations

import math

import pytest

from celluler.errors import LocalError
from celluler.jobs.states import MAX_EVENTS, MAX_REASON_BYTES, JobLife, JobState, match_job


def test_a_job_that_goes_well_passes_through_all_states() -> None:
    life = JobLife(10.0)
    life.move(JobState.QUEUED, 11.0, "waiting for 2 more peers")
    life.move(JobState.FETCHING, 12.0)
    life.move(JobState.RUNNING, 13.0)
    life.measure(14.0, {"round": 1, "loss": 2.0})
    life.measure(15.0, {"round": 2, "loss": 0.5})
    life.move(JobState.VERIFYING, 16.0)
    life.move(JobState.SUCCEEDED, 17.0)
    assert life.ended
    assert life.metrics == {"round": 2.0, "loss": 0.5}
    assert [event.cursor for event in life.events] == list(range(1, 9))
    assert (life.created_s, life.updated_s) == (10.0, 17.0)


def test_a_cursor_reads_on_from_where_it_stopped() -> None:
    life = JobLife(0.0)
    seen = life.since(0)
    life.move(JobState.QUEUED, 1.0, "no peers")
    assert [event.state for event in life.since(seen[-1].cursor)] == [JobState.QUEUED]
    assert life.since(life.cursor) == ()


def test_an_illegal_move_is_refused_and_changes_nothing() -> None:
    life = JobLife(0.0)
    with pytest.raises(LocalError, match="Pending cannot become Succeeded"):
        life.move(JobState.SUCCEEDED, 1.0)
    assert life.state is JobState.PENDING
    assert len(life.events) == 1


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.FAILED])
def test_waiting_and_failing_need_a_reason(state: JobState) -> None:
    with pytest.raises(LocalError, match="needs a reason"):
        JobLife(0.0).move(state, 1.0)


def test_the_reason_stays_while_figures_come_in() -> None:
    life = JobLife(0.0)
    life.move(JobState.QUEUED, 1.0, "waiting for peers")
    life.measure(2.0, {"peers": 2})
    assert life.reason == "waiting for peers"
    life.move(JobState.FETCHING, 3.0)
    assert life.reason == ""


def test_figures_must_be_finite_few_and_before_the_end() -> None:
    life = JobLife(0.0)
    for wrong in ({"loss": math.nan}, {}, {f"m{n}": 0.0 for n in range(40)}, {"": 1.0}, {"x" * 65: 1.0}):
        with pytest.raises(LocalError):
            life.measure(1.0, wrong)
    life.move(JobState.CANCELLED, 1.0)
    with pytest.raises(LocalError):
        life.measure(2.0, {"loss": 1.0})


def test_a_clock_set_back_does_not_turn_history_around() -> None:
    life = JobLife(100.0)
    life.move(JobState.QUEUED, 50.0, "no peers")
    assert life.events[1].at_s == 100.0


def test_a_long_life_forgets_figures_before_changes_of_state() -> None:
    life = JobLife(0.0)
    life.move(JobState.FETCHING, 1.0)
    life.move(JobState.RUNNING, 2.0)
    for step in range(MAX_EVENTS + 10):
        life.measure(3.0 + step, {"round": step})
    assert len(life.events) == MAX_EVENTS
    assert [event.state for event in life.events if not event.metrics] == [
        JobState.PENDING,
        JobState.FETCHING,
        JobState.RUNNING,
    ]
    assert JobLife.restore(life.events).events == life.events


def test_a_long_reason_is_cut() -> None:
    life = JobLife(0.0)
    life.move(JobState.FAILED, 1.0, "ä" * 2000)
    assert len(life.reason.encode()) == MAX_REASON_BYTES


def test_events_that_make_no_life_are_refused() -> None:
    life = JobLife(0.0)
    life.move(JobState.FETCHING, 1.0)
    life.move(JobState.RUNNING, 2.0)
    events = life.events
    for wrong in ((), events[1:], (events[0], events[2], events[1]), (*events, events[0])):
        with pytest.raises(LocalError):
            JobLife.restore(wrong)


def test_an_ending_names_a_job_when_it_names_only_one() -> None:
    ids = ["bafkr4iaaaaaa111111", "bafkr4iaaaaaa222222", "bafkr4ibbbbbb222222"]
    assert match_job(ids, "111111") == ids[0]
    assert match_job(ids, ids[1]) == ids[1]
    assert match_job(ids, "222222") is None
    assert match_job(ids, "11111") is None
