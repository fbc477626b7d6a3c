"""What a deployment is asked by, what may be done to it, and what is counted of its arms."""

from __future__ import annotations

import pytest

from celluler.content.digest import Codec, cid_of, digest_of
from celluler.errors import InvalidSpec, LocalError, NotFound
from celluler.inference.deployments import (
    CANARY,
    STABLE,
    Arm,
    Deployment,
    Scale,
    arm_of,
    arrive,
    bring_in,
    deployment_named,
    promote,
    read_keep_warm,
    read_share,
    roll_back,
    share_out,
    switch,
    try_out,
    with_trials,
)
from celluler.inference.deployments_counts import ArmCounts, Latencies, agreement
from celluler.models.names import parse_reference
from celluler.tensors import tensor_of

ONE, TWO, THREE = (cid_of(digest_of(bytes([place])), Codec.MANIFEST) for place in range(3))
DIGITS = Deployment("digits", with_trials(Arm(STABLE, "alice/digits:1.0.0", ONE), ()))
TRIAL = Arm(CANARY, "alice/digits:2.0.0", TWO, 1000)


def test_what_names_a_deployment_names_no_model() -> None:
    assert deployment_named("deploy:digits") == "digits"
    assert deployment_named("deploy/digits") is None  # of an author who is called so
    assert deployment_named(ONE) is None
    with pytest.raises(InvalidSpec):
        parse_reference("deploy:digits")
    for bad in ("deploy:", "deploy:a/b", "deploy:UPPER", "deploy:" + "x" * 65):
        with pytest.raises(InvalidSpec):
            deployment_named(bad)


def test_a_canary_is_promoted_and_what_was_before_can_come_back() -> None:
    tried = try_out(DIGITS, TRIAL, 5.0)
    assert [arm.share for arm in tried.arms] == [9000, 1000]
    after = promote(tried, "", 6.0)
    assert (after.stable.cid, len(after.arms), after.number) == (TWO, 1, 3)
    assert roll_back(after, 7.0).stable.cid == ONE
    assert roll_back(tried, 6.0).arms == DIGITS.arms


def test_nothing_tried_out_cannot_be_promoted_and_nothing_before_cannot_come_back() -> None:
    with pytest.raises(LocalError):
        promote(DIGITS, "", 1.0)
    with pytest.raises(LocalError):
        roll_back(DIGITS, 1.0)
    with pytest.raises(NotFound):
        promote(try_out(DIGITS, TRIAL, 1.0), "other", 1.0)
    with pytest.raises(LocalError):
        promote(try_out(DIGITS, TRIAL, 1.0), STABLE, 1.0)


def test_of_two_trials_one_must_be_named() -> None:
    both = try_out(try_out(DIGITS, TRIAL, 1.0), Arm("b", "alice/digits:3.0.0", THREE, 2000), 1.0)
    with pytest.raises(LocalError):
        promote(both, "", 1.0)
    assert promote(both, "b", 1.0).stable.cid == THREE


def test_what_is_brought_in_gets_nothing_until_it_arrives() -> None:
    coming = bring_in(DIGITS, "alice/digits:2.0.0", TWO, 1.0)
    assert {arm_of(coming, str(n)).cid for n in range(50)} == {ONE}
    with pytest.raises(LocalError):
        try_out(coming, Arm("b", "alice/digits:3.0.0", THREE, 2000), 2.0)
    here = arrive(coming, 3.0)
    assert here.stable.cid == TWO
    assert here.previous is not None
    assert here.previous.cid == ONE
    assert roll_back(coming, 3.0).incoming is None
    with pytest.raises(InvalidSpec):
        bring_in(DIGITS, "alice/digits:1.0.0", ONE, 1.0)


def test_the_same_version_again_keeps_what_was_before_it() -> None:
    twice = switch(switch(DIGITS, "a/b", TWO, 1.0), "a/b", TWO, 2.0)
    assert twice.previous is not None
    assert twice.previous.cid == ONE


def test_trials_leave_stable_something() -> None:
    with pytest.raises(InvalidSpec):
        try_out(DIGITS, Arm(CANARY, "a/b", TWO, 10_000), 1.0)
    with pytest.raises(InvalidSpec):
        share_out(try_out(DIGITS, TRIAL, 1.0), {STABLE: 10}, 1.0)


@pytest.mark.parametrize("text", ["10", "-1%", "101%", "nan%", "inf%", "%", "1%%", "ten%"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpec):
        read_share(text)


def test_a_scale_has_bounds() -> None:
    assert read_keep_warm("10m") == 600
    assert read_keep_warm("0") == 0
    for least, most in ((2, 1), (-1, 1), (0, 0), (0, 65)):
        with pytest.raises(InvalidSpec):
            Scale(least, most)


def test_a_quantile_is_at_most_a_step_too_high() -> None:
    latencies = Latencies()
    assert latencies.quantile(0.5) is None
    for ms in range(1, 1001):
        latencies.add(ms / 1000)
    for share in (0.5, 0.95, 0.99):
        told = latencies.quantile(share)
        assert told is not None
        assert share <= told <= share * 1.16
    latencies.add(1e9)
    assert latencies.quantile(1.0) is not None


def test_errors_are_counted_by_kind() -> None:
    counts = ArmCounts()
    counts.answered(0.1, samples=3, prompt=4, generated=5)
    counts.failed("Busy")
    assert (counts.requests, counts.errors["Busy"], counts.generated_tokens) == (2, 1, 5)


def test_answers_agree_by_what_they_mean() -> None:
    one, other = tensor_of([[0.1, 0.9], [0.8, 0.2]]), tensor_of([[0.3, 0.7], [0.4, 0.6]])
    assert agreement(one, other, "probabilities") == (2, 1)
    assert agreement(one, other, "embedding") == (2, 0)
    assert agreement(one, tensor_of([[0.1, 0.9001], [0.8, 0.2]]), "embedding") == (2, 2)
    assert agreement(tensor_of([1, 2], "int64"), tensor_of([1, 3], "int64"), "labels") == (2, 1)
    assert agreement(tensor_of(["yes", "no"]), tensor_of(["yes", "on"]), "answer") == (2, 1)
    assert agreement(one, tensor_of([[0.1, 0.9]]), "raw") == (2, 0)
