"""Jobs hold for any input: random walks through the states, any spec, any bytes."""

from __future__ import annotations

import contextlib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.errors import InvalidSpec, LocalError, PeerViolation, Unavailable
from celluler.jobs.spec import canonical_job, check_job, parse_canonical_job, parse_job
from celluler.jobs.states import NEEDS_REASON, TRANSITIONS, JobLife, JobState
from celluler_protocols.jobs import Ask
from celluler_protocols.jobs_messages import Event, Events, Facts, Watch, frames
from tests.support.jobs import DATA_CID

few = settings(max_examples=60, deadline=None)
STEPS = st.lists(
    st.tuples(st.sampled_from(JobState), st.integers(0, 9), st.sampled_from(["", "why"]), st.booleans()), max_size=25
)


@few
@given(STEPS)
def test_no_walk_leaves_the_table_and_every_life_can_be_told_again(steps: list[tuple[JobState, int, str, bool]]) -> None:  # fmt: skip  # noqa: E501
    life = JobLife(0.0)
    for state, now, reason, measured in steps:
        before = life.events
        try:
            life.measure(now, {"loss": now}) if measured else life.move(state, now, reason)
        except LocalError:
            assert life.events == before
            legal = state in TRANSITIONS[before[-1].state] and (reason or state not in NEEDS_REASON)
            assert life.ended or not (legal and not measured)
        assert life.events[: len(before)] == before
    cursors, times = [e.cursor for e in life.events], [e.at_s for e in life.events]
    assert cursors == sorted(set(cursors))
    assert times == sorted(times)
    assert JobLife.restore(life.events).events == life.events


def test_every_state_can_be_reached_and_the_ended_ones_are_left_by_nobody() -> None:
    reached, edge = {JobState.PENDING}, {JobState.PENDING}
    while edge:
        edge = {target for state in edge for target in TRANSITIONS[state]} - reached
        reached |= edge
    assert reached == set(JobState)
    assert {state for state in JobState if state.ended} == {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def base() -> dict[str, Any]:
    return {
        "apiVersion": "celluler/v1",
        "kind": "TrainJob",
        "name": "digits",
        "model": "alice/digits",
        "data": {"cid": DATA_CID},
        "train": {"rounds": 3},
    }


@few
@given(st.sampled_from(["name", "model", "data", "train", "resources", "policy", "result", "kind", "extra"]), PLAIN)
def test_any_value_in_any_place_is_a_job_or_an_invalid_spec(key: str, value: Any) -> None:
    try:
        job = check_job({**base(), key: value})
    except InvalidSpec:
        return
    assert parse_canonical_job(canonical_job(job)) == job


@few
@given(
    st.integers(1, 1024),
    st.integers(1, 64),
    st.floats(1e-9, 100, allow_subnormal=False),
    st.sampled_from(["nk", "median", "mean"]),
    st.integers(1, 1 << 50),
)
def test_the_canonical_form_comes_back(rounds: int, peers: int, rate: float, rule: str, memory: int) -> None:
    document = base()
    document["train"] = {"rounds": rounds, "learning_rate": rate, "aggregator": rule}
    document["resources"] = {"peers": {"min": 1, "max": peers}, "memory": memory}
    job = check_job(document)
    assert parse_canonical_job(canonical_job(job)) == job
    assert canonical_job(parse_job(canonical_job(job))) == canonical_job(job)


@few
@given(st.binary(max_size=200))
def test_garbage_is_no_spec_and_no_answer(data: bytes) -> None:
    for parse in (parse_job, parse_canonical_job):
        try:
            parse(data)
        except (InvalidSpec, PeerViolation):
            continue
        raise AssertionError("garbage was taken for a job")
    with contextlib.suppress(PeerViolation, Unavailable):
        assert Ask(Watch(bytes(32), 0, 0)).receive(data) is None


@few
@given(st.lists(st.integers(1, 40), min_size=0, max_size=12))
def test_an_answer_is_the_same_however_it_is_cut(sizes: list[int]) -> None:
    answer = Events((Event(1, 0.5, 0, "why", ()), Event(2, 0.5, 2, "", ())), Facts())
    data, asking, got = frames().encode(answer), Ask(Watch(bytes(32), 0, 0)), None
    for size in [*sizes, len(data)]:
        chunk, data = data[:size], data[size:]
        if chunk:
            got = asking.receive(chunk) or got
    assert got == answer
