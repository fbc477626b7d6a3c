"""A sample of what `make fuzz` does for longer: whatever strangers' bytes reach first takes them, or refuses them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutations import inputs
from tests.fuzz.targets import TARGETS, Target


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_bytes_of_a_stranger_are_taken_or_refused(name: str, data: Any) -> None:
    target = TARGETS[name]
    target.feed(data.draw(inputs(target)))


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_begins_with_something_that_it_takes(name: str) -> None:
    target = TARGETS[name]
    assert any(target.feed(seed) for seed in target.seeds())


def test_an_error_of_ours_is_no_refusal() -> None:
    with pytest.raises(ValueError):
        Target(json.loads, lambda: [b"{}"], "json").feed(b"[")
