"""Workers that wait: none is forgotten."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from celluler.errors import LocalError
from celluler_node.processes.words import Limits
from celluler_node.processes.worker_words import WORKER
from celluler_node.scratch import open_scratch
from celluler_node.serving.spares import Spares, _Spare


async def test_a_worker_that_is_taken_by_a_call_that_is_cancelled_is_ended(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"1")
    child: Any = SimpleNamespace(ended=trio.Event())
    unused: Any = None
    async with trio.open_nursery() as nursery:
        pool = Spares(WORKER, Limits(), unused, nursery, 0)
        spare = _Spare(child, tmp_path, trio.CancelScope())
        pool._idle.append(spare)
        with trio.CancelScope() as scope:
            scope.cancel()
            async with pool.open(tmp_path / "weights"):
                pytest.fail("cancelled before it began")
    assert not pool.waiting
    assert spare.scope.cancel_called


async def test_a_disk_without_room_for_a_spare_ends_no_node(tmp_path: Path) -> None:
    async with open_scratch(tmp_path / "scratch") as scratch, trio.open_nursery() as nursery:
        (tmp_path / "scratch").rmdir()
        pool = Spares(WORKER, Limits(), scratch, nursery, 1)
        assert not await pool.start_one()
        with pytest.raises(LocalError, match="no folder can be made"):
            async with pool.open(tmp_path / "weights"):
                pytest.fail("there is no folder to work in")
        nursery.cancel_scope.cancel()
