"""What a node keeps of a training: parts for those who lag, and its jobs over a restart."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from celluler.content.digest import Digest
from celluler.jobs.states import JobLife, JobState
from celluler_node.training import drive
from celluler_node.training.archive import JobArchive
from celluler_node.training.drive import LEAST_KEPT, Reductions
from celluler_node.training.record import JobRecord
from celluler_node.training.remembering import FIGURES_S, Remembering
from celluler_protocols.jobs_orders import ChangeOrder, open_order
from tests.support.jobs import NOW_S, sealed_order


def test_parts_of_old_rounds_are_kept_as_long_as_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive, "KEPT_BYTES", 100)
    reduced = Reductions()
    for number in range(10):
        reduced.keep(number, bytes([number]) * 32, bytes(20))
        reduced.trim()
    assert [number for number in range(10) if reduced.find(bytes([number]) * 32) is not None] == [5, 6, 7, 8, 9]
    reduced.keep(10, bytes([10]) * 32, bytes(1000))
    reduced.trim()
    kept = [number for number in range(11) if reduced.find(bytes([number]) * 32) is not None]
    assert kept == [9, 10]
    assert len(kept) == LEAST_KEPT


def record() -> JobRecord:
    order = open_order(sealed_order())
    life = JobLife(NOW_S)
    life.move(JobState.QUEUED, NOW_S + 1, "waiting")
    return JobRecord(order, life, coordinated=True)


async def test_a_change_is_written_down_at_once_and_figures_now_and_then(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    job, archive = record(), JobArchive(tmp_path)
    records: dict[Digest, JobRecord] = {job.job: job}
    memory = Remembering(archive, records)

    async def written() -> list[int]:
        await memory.save(figures_s=FIGURES_S)
        return [len(kept.events) for kept in archive.load()]

    assert await written() == [2]
    job.move(JobState.FETCHING, NOW_S + 2, "fetching")
    assert await written() == [3]
    job.measure(NOW_S + 3, {"loss": 0.5})
    assert await written() == [3]
    mock_clock.jump(FIGURES_S)
    assert await written() == [4]
    records.clear()
    assert await written() == []
    records[job.job] = job
    assert await written() == [4]
    [restored] = await Remembering(archive, {}).restore()
    assert (restored.job, restored.life.state, restored.life.metrics) == (job.job, JobState.FETCHING, {"loss": 0.5})


async def test_a_node_that_ends_writes_the_last_figures_down(tmp_path: Path) -> None:
    job, archive = record(), JobArchive(tmp_path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Remembering(archive, {job.job: job}).run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [len(kept.events) for kept in archive.load()] == [2]


async def test_what_the_disk_does_not_take_is_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, archive = record(), JobArchive(tmp_path)
    memory = Remembering(archive, {job.job: job})

    def full(_archive: JobArchive, _job: Digest, _kept: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(JobArchive, "save", full)
        await memory.save(figures_s=0.0)
    assert archive.load() == []
    await memory.save(figures_s=0.0)
    assert len(archive.load()) == 1


async def test_a_submitter_moves_the_deadline_and_an_older_wish_counts_no_more(autojump_clock: object) -> None:
    job = record()
    with job.within_deadline(NOW_S + 10) as outer, job.within_deadline(NOW_S + 10) as scope:
        job.change(ChangeOrder(bytes(job.job), NOW_S + 10, NOW_S + 40, 20, None), NOW_S + 10)
        job.change(ChangeOrder(bytes(job.job), NOW_S + 5, NOW_S + 99, None, 7), NOW_S + 10)
        assert (job.expires_s, job.max_peers, job.priority) == (NOW_S + 40, 20, 5)
        for each in (outer, scope):
            assert each.deadline == pytest.approx(trio.current_time() + 30)
        await trio.sleep(31)
    assert outer.cancelled_caught or scope.cancelled_caught
