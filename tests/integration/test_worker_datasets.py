"""Datasets in a real worker, behind all its walls: tables are read there and nowhere else, hostile ones included."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import trio

from celluler.datasets.schema import Column, LabelCount, Selection, Summary
from celluler.errors import WorkerFailed
from celluler.models.spec import parse_spec
from celluler.models.weights import initial_weights
from celluler_node.processes.supervisor import Child, open_process
from celluler_node.processes.words import Limits
from celluler_node.processes.worker_words import WORKER, Evaluate, StartRun, Summarise, TrainRound
from tests.support.specs import MLP, as_bytes, digits, save_tensors
from tests.support.tables import digits_table, false_rows, save_table, unpacking_bomb, word_bomb

SPEC = as_bytes(MLP)
SEED, RUN = b"s" * 32, b"r" * 32
LIMITS = Limits(memory_bytes=2 << 30, file_bytes=1 << 30, threads=1)
PIXELS = Selection(("pixels",), key="writer")


@asynccontextmanager
async def open_worker(folder: Path) -> AsyncIterator[Child]:
    scratch = folder / "scratch"
    scratch.mkdir()
    with trio.fail_after(60):
        async with open_process(WORKER, limits=LIMITS, readable=[folder / "files"], scratch=scratch) as child:
            yield child


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    return folder


async def summary_of(child: Child, path: Path, form: str = "", label: str = "") -> Summary:
    found: Summary = (await child.call(Summarise(str(path), form, label))).record.summary
    return found


async def test_a_confined_worker_summarises_every_format(tmp_path: Path, files: Path) -> None:
    x, y = digits()
    tensors = save_tensors(files / "tensors", {"x": x, "y": y})
    tables = {form: save_table(files / form, digits_table(), form) for form in ("parquet", "arrow", "arrow-stream")}
    async with open_worker(tmp_path) as child:
        assert child.isolation.limited
        found = await summary_of(child, tensors)
        assert (found.format, found.rows, found.label, len(found.balance)) == ("safetensors", 1797, "y", 10)
        for form, path in tables.items():
            found = await summary_of(child, path, form.removesuffix("-stream"))
            assert found.schema == (
                Column("pixels", "float32", (64,)),
                Column("writer", "text", ()),
                Column("label", "int64", ()),
            )
            assert found.balance[3] == LabelCount("3", int((y == 3).sum()))
        with pytest.raises(WorkerFailed, match="format"):
            await summary_of(child, tensors, "parquet")


async def test_a_run_on_a_table_is_the_run_on_its_tensors(tmp_path: Path, files: Path) -> None:
    x, y = digits()
    writers = np.array([place % 30 for place in range(len(y))])
    save_tensors(files / "tensors", {"x": x, "y": y, "writer": writers})
    save_table(files / "parquet", digits_table())
    initial_weights(parse_spec(SPEC), SEED, files / "weights")
    async with open_worker(tmp_path) as child:
        for partition in ("iid", "shard", "by-label"):
            wires = set()
            for name, selection in (("tensors", Selection(key="writer")), ("parquet", PIXELS)):
                await child.call(start(files, name, selection, partition=partition))
                wires.add(bytes((await child.call(TrainRound(0, fresh=True))).blobs[0]))
            assert len(wires) == 1
        await child.call(start(files, "parquet", PIXELS, partition="by-key"))
        evaluated = (await child.call(Evaluate(str(files / "parquet"), PIXELS))).record
        assert evaluated.count == 1797
        refused: list[tuple[StartRun, str]] = [
            (start(files, "parquet", Selection(), partition="iid"), "dataset.writer"),
            (start(files, "parquet", Selection(("pixels",)), partition="by-key"), "keys"),
            (start(files, "parquet", PIXELS, partition="by-label", members=11), "10 distinct values"),
            (start(files, "parquet", PIXELS, partition="by-luck"), "no partition"),
        ]
        for request, reason in refused:
            with pytest.raises(WorkerFailed, match=reason):
                await child.call(request)


def start(files: Path, data: str, selection: Selection, **changes: Any) -> StartRun:
    base = StartRun(
        run=RUN,
        spec=SPEC,
        weights=str(files / "weights"),
        data=str(files / data),
        partition="iid",
        index=1,
        members=3,
        parts=3,
        inner_steps=5,
        batch=32,
        learning_rate=0.2,
        optimizer="sgd",
        outer_learning_rate=0.7,
        outer_momentum=0.4,
        selection=selection,
    )
    return replace(base, **changes)


async def test_hostile_tables_fail_their_call_only_and_take_no_memory(tmp_path: Path, files: Path) -> None:
    table = digits_table()
    whole = save_table(files / "whole", table).read_bytes()
    arrow = save_table(files / "arrow", table, "arrow", compression="zstd").read_bytes()
    (files / "cut").write_bytes(whole[: len(whole) // 2])
    (files / "cut-arrow").write_bytes(arrow[: len(arrow) // 2])
    (files / "noise").write_bytes(b"PAR1" + os.urandom(1 << 16) + b"PAR1")
    (files / "noise-arrow").write_bytes(b"ARROW1\0\0" + os.urandom(1 << 16) + b"ARROW1")
    (files / "noise-stream").write_bytes(b"\xff\xff\xff\xff\xf0\xff\xff\x7f" + os.urandom(1 << 16))
    (files / "footer").write_bytes(b"PAR1" + b"\xff\xff\xff\xffPAR1")
    save_table(files / "nested", pa.table({"odd": pa.array([{"a": [1]}])}))
    false_rows(files / "rows", table, 10**9)
    false_rows(files / "more-rows", table, 2**62)
    unpacking_bomb(files / "unpacks", 1 << 40)
    unpacking_bomb(files / "unpacks-to-less", -(1 << 40))
    word_bomb(files / "words")
    refused = [
        ("cut", "parquet"),
        ("cut-arrow", "arrow"),
        ("noise", "parquet"),
        ("noise-arrow", "arrow"),
        ("noise-stream", "arrow"),
        ("footer", "footer"),
        ("nested", "dataset.odd"),
        ("rows", "has not the 1000000000 rows"),
        ("more-rows", "the most is 1073741824"),
        ("unpacks", "memory limit of 2048 MiB"),
        ("unpacks-to-less", "arrow"),
    ]
    async with open_worker(tmp_path) as child:
        before = peak_bytes(child.pid)
        for name, reason in refused:
            with pytest.raises(WorkerFailed, match=reason):
                await summary_of(child, files / name)
        assert (await summary_of(child, files / "words")).rows == 200_000
        assert (await summary_of(child, files / "whole")).rows == 1797
        assert peak_bytes(child.pid) - before < 256 << 20


def peak_bytes(pid: int) -> int:
    """The most memory that the process ever had resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmHWM")
