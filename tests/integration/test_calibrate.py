from __future__ import annotations

from pathlib import Path

import trio

from celluler_node.calibrate import HALF_BATCH, ONE_LESS, REUSED, Settings, Variation, measure
from celluler_node.calibrate_task import usual_tasks
from celluler_node.processes.words import Limits
from celluler_node.processes.worker_words import WORKER

LIMITS = Limits(memory_bytes=4 << 30, threads=1)


async def test_a_machine_repeats_itself_and_tells_laziness_from_it(tmp_path: Path) -> None:
    tasks = usual_tasks(tmp_path, steps=5, batch=16)
    told: list[str] = []
    kinds = (Variation("as this node", 1), Variation("another process", 1))
    with trio.fail_after(60):
        report = await measure(tasks, kinds, Settings(2), WORKER, LIMITS, tmp_path, on_step=told.append)
    assert told == ["as this node", "another process"]
    assert [row.task for row in report.measured] == ["mlp, sgd", "mlp, adam", "cnn, sgd", "cnn, adam"]
    assert all(row.same and row.worst == 0 and row.audit_class == report.own.audit_class for row in report.measured)
    assert all(set(row.lazy) == {ONE_LESS, HALF_BATCH, REUSED} for row in report.measured)
    assert report.others == ()
    assert report.own.tolerance is not None
    assert 0 < report.own.tolerance < report.own.laziness
