"""The bucket: what is idle saves up little, what is taken is paid for, later takers wait behind earlier ones."""

from __future__ import annotations

import pytest

from celluler.content.rate import BURST_S, MIN_BURST_BYTES, Bucket
from celluler.errors import LocalError


def test_without_a_limit_nobody_waits() -> None:
    bucket = Bucket(0)
    assert not bucket.limited
    assert bucket.take(1 << 40, 0.0) == 0.0
    assert bucket.slice_bytes(1 << 18) == 1 << 18


def test_a_burst_passes_at_once_and_what_follows_waits_its_time() -> None:
    bucket = Bucket(1_000_000)
    assert bucket.take(int(BURST_S * 1_000_000), 10.0) == 0.0
    assert bucket.take(500_000, 10.0) == pytest.approx(0.5)
    assert bucket.take(500_000, 10.0) == pytest.approx(1.0)
    assert bucket.take(0, 10.25) == pytest.approx(0.75)


def test_idle_time_saves_up_no_more_than_a_burst() -> None:
    bucket = Bucket(1_000_000)
    bucket.take(0, 0.0)
    assert bucket.take(int(BURST_S * 1_000_000) + 100_000, 1e6) == pytest.approx(0.1)


def test_a_slow_limit_still_lets_a_message_pass() -> None:
    assert Bucket(1).take(MIN_BURST_BYTES, 0.0) == 0.0


def test_a_clock_that_steps_back_gives_nothing_away() -> None:
    bucket = Bucket(1_000_000)
    waits = [bucket.take(250_000, now) for now in (10.0, 5.0, 9.0, 10.0)]
    assert waits == pytest.approx([0.0, 0.25, 0.5, 0.75])


def test_what_is_taken_at_a_time_is_a_tenth_of_a_second() -> None:
    assert Bucket(1_000_000).slice_bytes(1 << 18) == 100_000
    assert Bucket(10).slice_bytes(1 << 18) == 1 << 12


def test_a_negative_rate_is_refused() -> None:
    with pytest.raises(LocalError):
        Bucket(-1)
