"""Models in a budget of memory: what goes when another is asked for, and what never goes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.errors import Busy, LocalError, Unavailable
from celluler.inference.memory import WORKER_BYTES, Room, bytes_served
from celluler.models.spec import parse_spec
from celluler.models.templates import TEMPLATES


def room(limit: int = 100, **sizes: int) -> Room[str]:
    """Models of those sizes, the first used longest ago."""
    made: Room[str] = Room(limit)
    for moment, (key, size) in enumerate(sizes.items()):
        assert made.take(key, size, float(moment)) == ()
    return made


def test_the_one_used_least_recently_makes_room() -> None:
    its = room(a=40, b=40)
    its.begin("a", 10.0)
    its.end("a", 11.0)
    assert its.take("c", 40, 12.0) == ("b",)
    assert its.used_bytes == 80


def test_what_is_at_work_or_kept_never_goes() -> None:
    its = room(a=40, b=40)
    its.begin("a", 10.0)
    its.keep("b", 20.0)
    with pytest.raises(Busy):
        its.take("c", 40, 12.0)
    assert its.used_bytes == 80
    assert its.of("c") is None
    assert its.take("c", 40, 20.0) == ("b",)


def test_each_who_keeps_a_model_lets_go_of_it_itself() -> None:
    its = room(a=60)
    its.keep("a", 50.0, "lease")
    its.keep("a", math.inf, "preload")
    its.let_go("a", "preload")
    with pytest.raises(Busy):
        its.take("b", 60, 45.0)
    its.keep("a", 40.0, "lease")
    assert its.take("b", 60, 45.0) == ("a",)


def test_no_more_go_than_must() -> None:
    its = room(small=10, large=80)
    assert its.take("new", 80, 5.0) == ("large",)


def test_what_never_fits_is_said_to() -> None:
    its = room(a=10)
    with pytest.raises(Unavailable, match="all models may take"):
        its.take("b", 101, 1.0)
    with pytest.raises(LocalError):
        its.take("a", 10, 1.0)


def test_idle_are_those_nobody_asked_for_and_nobody_keeps() -> None:
    its = room(a=10, b=10, c=10, d=10)
    its.begin("b", 3.0)
    its.keep("c", math.inf)
    its.begin("d", 9.0)
    its.end("d", 9.5)
    assert its.idle(10.0, 5.0) == ("a",)
    assert its.idle(10.0, 0.0) == ()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.integers(1, 60), st.sampled_from(["take", "begin", "end", "keep"])),
        max_size=40,
    )
)
def test_the_budget_holds_whatever_is_asked(steps: list[tuple[str, int, str]]) -> None:
    its: Room[str] = Room(100)
    held: set[str] = set()
    at_work: dict[str, int] = {}
    for moment, (key, size, what) in enumerate(steps):
        now = float(moment)
        if what == "take" and key not in held:
            try:
                going = its.take(key, size, now)
            except Busy:
                continue
            assert not any(at_work.get(one) for one in going)
            held = held - set(going) | {key}
        elif key in held and what == "begin":
            its.begin(key, now)
            at_work[key] = at_work.get(key, 0) + 1
        elif key in held and what == "end" and at_work.get(key):
            its.end(key, now)
            at_work[key] -= 1
        elif key in held and what == "keep":
            its.keep(key, now + 3)
        assert its.used_bytes <= 100
        assert {one for one in "abcdef" if its.of(one)} == held


def test_what_a_model_takes_is_known_from_its_body() -> None:
    body = parse_spec(TEMPLATES["transformer-lm"].document)
    bare, slots = bytes_served(body), bytes_served(body, slots=4)
    assert bare >= WORKER_BYTES + body.parameter_bytes
    assert slots > bare
    assert bytes_served(body, slots=4, length=8) < slots
    narrow = body.stored_as("bfloat16")
    assert bytes_served(narrow) < bare
