"""Workers that wait: confined before they wait, each for one model, warm when it comes."""

from __future__ import annotations

import errno
import os
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import trio

from celluler.errors import WorkerFailed
from celluler.models.spec import parse_spec
from celluler.models.weights import initial_weights
from celluler_node.processes import landlock
from celluler_node.processes.words import Limits, Program
from celluler_node.processes.worker_words import WORKER, LoadModel, Predict
from celluler_node.scratch import open_scratch
from celluler_node.serving import spares as module
from celluler_node.serving.spares import Spares
from tests.support.spare_child import READER
from tests.support.specs import MLP, as_bytes

LIMITS = Limits(memory_bytes=4 << 30, file_bytes=1 << 30, disk_bytes=1 << 30, call_s=60, threads=1)
SPEC = as_bytes(MLP)


@asynccontextmanager
async def a_pool(root: Path, program: Program = READER, wanted: int = 1):
    with trio.fail_after(60):
        async with open_scratch(root / "scratch") as scratch, trio.open_nursery() as nursery:
            yield Spares(program, LIMITS, scratch, nursery, wanted)
            nursery.cancel_scope.cancel()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "QUIET_S", 0.0)
    (tmp_path / "first").write_bytes(b"1")
    (tmp_path / "second").write_bytes(b"22")
    return tmp_path


async def read(pool: Spares, weights: Path) -> tuple[int, int, Path]:
    """(process, how much it read, where)"""
    async with pool.open(weights) as (child, (path,)):
        return child.pid, (await child.call(LoadModel(SPEC, str(path)))).record.parameters, path


async def until_waiting(pool: Spares, count: int) -> None:
    while pool.waiting != count:  # noqa: ASYNC110  the deadline of `a_pool` stands above it
        await trio.sleep(0.02)


async def test_a_spare_serves_one_model_and_is_gone(files):
    async with a_pool(files) as pool:
        assert pool.waiting == 0  # nobody has asked for a model yet
        first, size, path = await read(pool, files / "first")
        assert (size, path) == (1, files / "first")
        await until_waiting(pool, 1)
        second, size, path = await read(pool, files / "second")
        assert (size, path.name) == (2, module.WEIGHTS_NAME)
        assert not path.exists()
        await until_waiting(pool, 1)
        third, size, path = await read(pool, files / "first")
        assert (size, path.name) == (1, module.WEIGHTS_NAME)
    assert len({first, second, third}) == 3
    for pid in (first, second, third):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.skipif(not landlock.version(), reason="this kernel has no Landlock")
async def test_a_spare_reads_nothing_but_what_it_is_given_and_does_not_write_that(files):
    async with a_pool(files) as pool:
        assert await pool.start_one()
        spare = pool._idle[0]
        (spare.given / "link").symlink_to(files / "second")
        for path in (files / "first", spare.given / "link"):
            with pytest.raises(WorkerFailed, match="Permission denied"):
                await spare.child.call(LoadModel(SPEC, str(path)))
        assert spare.child.isolation.landlock


async def test_a_spare_that_dies_while_it_waits_is_not_handed_out(files):
    async with a_pool(files) as pool:
        assert await pool.start_one()
        dead = pool._idle[0].child
        os.kill(dead.pid, signal.SIGKILL)
        await dead.ended.wait()
        pid, size, path = await read(pool, files / "first")
        assert pid != dead.pid
        assert (size, path) == (1, files / "first")


async def test_where_no_link_can_be_made_and_where_none_is_wanted_a_worker_starts_cold(files, monkeypatch):
    async with a_pool(files, wanted=0) as pool:
        await read(pool, files / "first")
        await trio.sleep(0.1)
        assert pool.waiting == 0

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(module.os, "link", refuse)
    async with a_pool(files) as pool:
        assert await pool.start_one()
        assert (await read(pool, files / "first"))[2] == files / "first"


async def test_a_real_worker_that_waited_answers_at_once(files):
    initial_weights(parse_spec(SPEC), bytes(32), files / "weights")
    x = np.ones((1, 64), dtype=np.float32)
    async with a_pool(files, WORKER) as pool:
        assert await pool.start_one()
        pool._wanted = 0
        began = trio.current_time()
        async with pool.open(files / "weights") as (child, (path,)):
            await child.call(LoadModel(SPEC, str(path)))
            reply = await child.call(Predict("float32", x.shape, "raw"), x.tobytes())
            took_s = trio.current_time() - began
        assert reply.record.shape == (1, 10)
        assert took_s < 2.0  # 0.03 where nothing else runs; a cold one has torch to import
