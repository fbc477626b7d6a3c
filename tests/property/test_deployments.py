"""Which arm a session gets, whatever the shares become; what is written down is read back, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.content.digest import Codec, cid_of, digest_of
from celluler.errors import CellulerError, InvalidSpec
from celluler.inference.deployments import (
    STABLE,
    WHOLE,
    Arm,
    Deployment,
    Scale,
    arm_of,
    arrive,
    bring_in,
    promote,
    read_share,
    roll_back,
    share_out,
    switch,
    try_out,
    with_trials,
)
from celluler.inference.deployments_file import read_deployments, write_deployments

quick = settings(max_examples=40, deadline=None)
CIDS = [cid_of(digest_of(bytes([place])), Codec.MANIFEST) for place in range(8)]
sessions = [f"session {place}" for place in range(400)]
shares = st.lists(st.integers(1, WHOLE // 4), min_size=0, max_size=3)


def arms_of(trials: list[int]) -> tuple[Arm, ...]:
    stable = Arm(STABLE, "alice/digits:1.0.0", CIDS[0])
    others = (Arm(f"arm{n}", f"alice/digits:2.{n}.0", CIDS[n + 1], share) for n, share in enumerate(trials))
    return with_trials(stable, tuple(others))


@quick
@given(shares, shares)
def test_a_session_moves_only_to_an_arm_that_has_gained_on_its_own(before: list[int], after: list[int]) -> None:
    size = min(len(before), len(after))
    old, new = (Deployment("digits", arms_of(trials[:size])) for trials in (before, after))
    for session in sessions[:100]:
        left, got = arm_of(old, session).name, arm_of(new, session).name
        if left != got:
            gained = new.arm(got).share * old.arm(left).share
            lost = new.arm(left).share * old.arm(got).share
            assert gained > lost


@quick
@given(st.integers(1, WHOLE - 2), st.integers(1, WHOLE - 2))
def test_a_canary_that_is_given_more_keeps_all_that_it_had(one: int, other: int) -> None:
    small, large = sorted((one, other))
    few, many = (Deployment("digits", arms_of([])) for _ in range(2))
    few = try_out(few, Arm("canary", "alice/digits:2.0.0", CIDS[1], small), 1.0)
    many = try_out(many, Arm("canary", "alice/digits:2.0.0", CIDS[1], large), 1.0)
    had = {session for session in sessions if arm_of(few, session).name == "canary"}
    has = {session for session in sessions if arm_of(many, session).name == "canary"}
    assert had <= has


@pytest.mark.parametrize("share", [100, 1000, 2500, 5000])
def test_an_arm_gets_its_share_of_many_sessions(share: int) -> None:
    deployment = Deployment("digits", arms_of([share]))
    got = sum(arm_of(deployment, f"user-{n}").name != STABLE for n in range(20_000))
    spread = (20_000 * share / WHOLE * (1 - share / WHOLE)) ** 0.5
    assert abs(got - 20_000 * share / WHOLE) < 4 * spread


steps = st.lists(
    st.one_of(
        st.tuples(st.just("try"), st.integers(1, 7), st.integers(1, WHOLE)),
        st.tuples(st.just("share"), st.integers(1, 7), st.integers(0, WHOLE)),
        st.tuples(st.just("switch"), st.integers(0, 7), st.just(0)),
        st.tuples(st.just("bring"), st.integers(0, 7), st.just(0)),
        st.tuples(st.just("arrive"), st.just(0), st.just(0)),
        st.tuples(st.just("promote"), st.integers(0, 7), st.just(0)),
        st.tuples(st.just("back"), st.just(0), st.just(0)),
    ),
    max_size=12,
)


def changed(old: Deployment, step: tuple[str, int, int]) -> Deployment:
    kind, which, share = step
    match kind:
        case "try":
            return try_out(old, Arm(f"arm{which}", f"alice/digits:2.{which}.0", CIDS[which], share), 2.0)
        case "share":
            return share_out(old, {f"arm{which}": share}, 2.0)
        case "switch":
            return switch(old, "alice/digits:3.0.0", CIDS[which], 2.0)
        case "bring":
            return bring_in(old, "alice/digits:3.0.0", CIDS[which], 2.0)
        case "arrive":
            return arrive(old, 2.0) if old.incoming else old
        case "promote":
            return promote(old, f"arm{which}" if which else "", 2.0)
        case _:
            return roll_back(old, 2.0)


@quick
@given(steps)
def test_whatever_is_done_every_session_has_an_arm_and_the_file_holds_it(done: list[tuple[str, int, int]]) -> None:
    deployment = Deployment("digits", arms_of([]), Scale(0, 3), ("eu-west",), 100)
    for step in done:
        try:
            after = changed(deployment, step)
        except CellulerError:
            continue
        assert after is deployment or after.number == deployment.number + 1
        deployment = after
        assert sum(arm.share for arm in deployment.arms) == WHOLE
        assert arm_of(deployment, "somebody") in deployment.arms
        assert read_deployments(write_deployments([deployment])) == {"digits": deployment}


document = json.loads(write_deployments([Deployment("digits", arms_of([1000]), previous=arms_of([])[0])]))
leaves = st.sampled_from([None, True, -1, 1 << 60, 2.5, "", "x" * 300, [], {}, ["a"], {"name": 1}])


def paths(value: object, before: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [before, *(path for key, one in inside for path in paths(one, (*before, key)))]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([path for path in paths(document) if path]), leaves)
def test_a_damaged_file_is_refused_or_means_what_it_says(path: tuple[object, ...], leaf: object) -> None:
    damaged = json.loads(json.dumps(document))
    at = damaged
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = leaf
    try:
        found = read_deployments(json.dumps(damaged).encode())
    except InvalidSpec:
        return
    assert json.loads(write_deployments(found.values())) == damaged


@given(st.integers(0, WHOLE))
def test_a_share_is_read_as_it_is_written(share: int) -> None:
    assert read_share(f"{share / 100}%") == share


def test_a_name_of_two_arms_is_refused() -> None:
    twice = replace(arms_of([1000])[1], name=STABLE)
    with pytest.raises(InvalidSpec):
        Deployment("digits", (arms_of([1000])[0], twice))
