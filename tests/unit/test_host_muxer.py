"""A stream's window is opened anew half a window at a time, and never closes on a reader that keeps up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import celluler_protocols.host  # noqa: F401  # imports libp2p as it may be imported
from celluler_protocols.host.muxer import _Stream

WINDOW = 256 * 1024


class Counted(_Stream):
    """updates: what the sender was told it may send more."""

    updates: list[int]

    async def send_window_update(self, increment: int, skip_lock: bool = False) -> None:
        self.updates.append(increment)


async def read(stream: Counted, sizes: list[int]) -> int:
    """Let so many bytes arrive and be read, one lot after the other. Returns the least that a sender had left."""
    left = least = WINDOW
    for size in sizes:
        told = len(stream.updates)
        stream.recv_window -= size
        left -= size
        await stream._auto_tune_and_send_window_update(bytes_read=size)
        left += sum(stream.updates[told:])
        least = min(least, left)
    return least


def opened() -> Counted:
    connection: Any = SimpleNamespace(stream_buffers={}, rtt=lambda: 0.0)
    stream = Counted(1, connection, True)
    stream.updates = []
    return stream


async def test_small_reads_write_no_frame_each() -> None:
    stream = opened()
    assert await read(stream, [100] * 2000) >= WINDOW // 2
    assert len(stream.updates) <= 2


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, WINDOW // 4), max_size=60))
@pytest.mark.trio
async def test_whoever_is_read_always_may_send_a_quarter_of_a_window(sizes: list[int]) -> None:
    assert await read(opened(), sizes) >= WINDOW // 4
