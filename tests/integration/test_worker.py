from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import trio
from safetensors.numpy import load_file

from celluler.aggregation.q16 import part_slices
from celluler.aggregation.rules import rule_named
from celluler.errors import WorkerFailed
from celluler.learning.audit import TOLERANCE
from celluler.models.spec import parse_spec
from celluler.models.weights import initial_vector, initial_weights
from celluler_node.processes.supervisor import Child, open_process
from celluler_node.processes.words import Limits
from celluler_node.processes.worker_words import (
    WORKER,
    Applied,
    ApplyRound,
    Describe,
    Described,
    Evaluate,
    Evaluated,
    Export,
    Exported,
    GetState,
    Loaded,
    LoadModel,
    Predict,
    Predicted,
    RunReady,
    SetState,
    StartRun,
    State,
    Trained,
    TrainRound,
)
from celluler_node.training.trainer import Replayed, RunSetup
from celluler_node.training.worker_trainer import worker_trainer
from tests.support.specs import MLP, as_bytes, digits, save_tensors

SPEC = as_bytes(MLP)
ARCHITECTURE = parse_spec(SPEC)
SEED, RUN = b"s" * 32, b"r" * 32
LIMITS = Limits(memory_bytes=4 << 30, file_bytes=1 << 30, threads=1)
PARTS = 3
ROOT = Path(__file__).parents[2]
PYTHON_PATH = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "protocols", ROOT / "node")))}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with weights, a learning set, a held-out set and files that are neither."""
    folder = tmp_path / "files"
    folder.mkdir()
    x, y = digits()
    initial_weights(ARCHITECTURE, SEED, folder / "weights")
    save_tensors(folder / "learn", {"x": x[:-360], "y": y[:-360]})
    save_tensors(folder / "held-out", {"x": x[-360:], "y": y[-360:]})
    (folder / "garbage").write_bytes(os.urandom(4096))
    return folder


@asynccontextmanager
async def open_worker(files: Path, name: str = "scratch") -> AsyncIterator[Child]:
    scratch = files.parent / name
    scratch.mkdir()
    with trio.fail_after(60):
        async with open_process(WORKER, limits=LIMITS, readable=[files], scratch=scratch) as child:
            yield child


def start(files: Path, **changes: Any) -> StartRun:
    base = StartRun(
        run=RUN,
        spec=SPEC,
        weights=str(files / "weights"),
        data=str(files / "learn"),
        partition="iid",
        index=0,
        members=3,
        parts=PARTS,
        inner_steps=20,
        batch=32,
        learning_rate=0.2,
        optimizer="sgd",
        outer_learning_rate=0.7,
        outer_momentum=0.4,
    )
    return replace(base, **changes)


async def ask_digits(child: Child, x: npt.NDArray[np.float32], output: str) -> npt.NDArray[Any]:
    reply = await child.call(Predict("float32", x.shape, output), x.tobytes())
    assert isinstance(reply.record, Predicted)
    return np.frombuffer(reply.blobs[0], dtype=reply.record.dtype).reshape(reply.record.shape)


async def test_a_worker_says_how_it_computes_and_a_run_that_is_cut_in_pieces_says_so_too(files: Path) -> None:
    async with open_worker(files) as child:
        told = (await child.call(Describe())).record
        assert isinstance(told, Described)
        assert "-t1-" in told.audit_class
        assert (await child.call(start(files))).record.audit_class == told.audit_class
        wide = SPEC.replace(b"128", b"16384")
        initial_weights(parse_spec(wide), SEED, files / "wide")
        ready = (await child.call(start(files, spec=wide, weights=str(files / "wide"), batch=1 << 14))).record
        assert (ready.micro_batch, ready.audit_class) == (1 << 11, f"{told.audit_class}-m2048")


async def test_a_worker_loads_predicts_and_evaluates(files: Path) -> None:
    async with open_worker(files) as child:
        loaded = (await child.call(LoadModel(SPEC, str(files / "weights")))).record
        assert loaded == Loaded(ARCHITECTURE.parameter_count, ARCHITECTURE.parameter_bytes)
        x, y = digits()
        raw, labels = [await ask_digits(child, x[-360:], output) for output in ("raw", "labels")]
        assert raw.shape == (360, 10)
        assert (raw.argmax(axis=1) == labels).all()
        evaluated = (await child.call(Evaluate(str(files / "held-out")))).record
        assert isinstance(evaluated, Evaluated)
        assert evaluated.count == 360
        assert evaluated.accuracy == pytest.approx(float((labels == y[-360:]).mean()))


async def test_three_workers_train_one_model_together(files: Path) -> None:
    async with (
        open_worker(files, "a") as alice,
        open_worker(files, "b") as bob,
        open_worker(files, "c") as carol,
    ):
        members = (alice, bob, carol)
        roots = [(await child.call(start(files, index=index))).record for index, child in enumerate(members)]
        assert isinstance(roots[0], RunReady)
        assert roots[0].dimension == ARCHITECTURE.dimension
        assert (roots[0].micro_batch, len(set(roots))) == (32, 1)
        for number in range(10):
            trained = [await child.call(TrainRound(number, fresh=False)) for child in members]
            exponents, mantissas = reduce(trained)
            applied = [await child.call(ApplyRound(number, exponents), mantissas) for child in members]
            assert len({reply.record for reply in applied}) == 1
        evaluated = (await alice.call(Evaluate(str(files / "held-out")))).record
        assert evaluated.accuracy >= 0.9
        exported = (await bob.call(Export("trained.safetensors"))).record
        assert isinstance(exported, Exported)
        assert load_file(exported.path).keys() == {tensor.name for tensor in ARCHITECTURE.tensors}


def reduce(trained: list[Any]) -> tuple[tuple[int, ...], bytes]:
    assert all(isinstance(reply.record, Trained) for reply in trained)
    rows = [np.frombuffer(reply.blobs[0], dtype="<i2") for reply in trained]
    parts = []
    for place, piece in enumerate(part_slices(ARCHITECTURE.dimension, PARTS)):
        exponents = np.array([reply.record.exponents[place] for reply in trained], np.int16)
        parts.append(rule_named("nk")(exponents, np.stack([row[piece] for row in rows]), 1))
    return tuple(part.exponent for part in parts), b"".join(part.mantissas.tobytes() for part in parts)


async def test_a_member_left_behind_catches_up_and_then_sends_what_it_would_have_sent(files: Path) -> None:
    async with open_worker(files, "a") as alice, open_worker(files, "b") as bob:
        await alice.call(start(files))
        await bob.call(start(files))
        trained = await alice.call(TrainRound(0, fresh=True))
        applied = (await alice.call(ApplyRound(0, trained.record.exponents), trained.blobs[0])).record
        state = await alice.call(GetState())
        assert state.record == State(1)
        assert (await bob.call(SetState(1), state.blobs[0])).record == applied
        assert isinstance(applied, Applied)


async def test_the_last_rounds_can_be_done_again_and_their_states_be_handed_on(files: Path) -> None:
    limits, scratch = replace(LIMITS), files.parent
    for name in ("a", "b"):
        (scratch / name).mkdir()

    def opened(name: str, index: int) -> Any:
        setup = RunSetup(
            RUN, SPEC, files / "weights", files / "learn", "iid", index, 3, PARTS, 20, 32, 0.01, "adam", kept_states=4
        )
        return worker_trainer(WORKER, limits, scratch / name)(setup)

    with trio.fail_after(60):
        async with opened("a", 0) as alice, opened("b", 1) as bob:
            assert alice.audit_class == bob.audit_class != ""
            roots, sent = [], []
            for number in range(6):
                roots.append(alice.state_root)
                sent.append(await alice.train(number, fresh=False))
                for trainer in (alice, bob):
                    root = await trainer.apply(number, sent[-1].exponents, sent[-1].mantissas)
                assert root == alice.state_root == bob.state_root
            assert sorted(path.name for path in (scratch / "b").glob("state-*")) == [f"state-{n}" for n in range(2, 6)]
            sent.append(await alice.train(6, fresh=False))
            for number in range(2, 7):
                assert await again(bob, number, sent) == Replayed(True, (0.0,) * PARTS)
            for number in (1, 7):
                with pytest.raises(WorkerFailed, match="is not here; kept: \\(2, 3, 4, 5\\)"):
                    await again(bob, number, [*sent, sent[-1]])

            lazy = replace(sent[4], mantissas=sent[3].mantissas, exponents=sent[3].exponents)
            told = await again(bob, 4, [*sent[:4], lazy])
            assert not told.same
            assert min(told.deviations) > TOLERANCE

            number, state = await alice.state(4)
            assert (number, await bob.restore(4, state)) == (4, roots[4])
            assert await alice.state() == (6, (await alice.state(6))[1])
            assert list((scratch / "b").glob("state-*")) == []
            assert await again(bob, 4, sent) == Replayed(True, (0.0,) * PARTS)


async def again(trainer: Any, number: int, sent: list[Any]) -> Replayed:
    """A replay of alice's round, all parts."""
    now, before = sent[number], sent[number - 1]
    return await trainer.replay(
        number, 0, tuple(range(PARTS)), now.exponents, now.mantissas, before.exponents, before.mantissas
    )


async def test_what_cannot_be_done_is_answered_with_its_reason_and_the_worker_lives_on(files: Path) -> None:
    x = digits()[0][:1]
    async with open_worker(files) as child:
        refused: list[tuple[Any, tuple[bytes, ...], str]] = [
            (Predict("float32", (1, 64), "raw"), (x.tobytes(),), "no model is loaded"),
            (Evaluate(str(files / "held-out")), (), "no model is loaded"),
            (TrainRound(0, fresh=True), (), "no run is started"),
            (LoadModel(b"{}", str(files / "weights")), (), "is missing"),
            (LoadModel(b"[" * 60_000, str(files / "weights")), (), "not JSON"),
            (LoadModel(SPEC, str(files / "garbage")), (), "safetensors"),
            (LoadModel(SPEC, str(files / "learn")), (), "weights"),
            (LoadModel(SPEC, str(files / "absent")), (), "cannot be read"),
            (start(files, data=str(files / "garbage")), (), "dataset"),
            (start(files, data=str(files / "weights")), (), "dataset"),
            (start(files, parts=64, spec=SPEC.replace(b"128", b"0")), (), "layers"),
            (start(files, members=0), (), "member 0 of 0"),
            (start(files, optimizer="lion"), (), "no optimizer"),
        ]
        for request, blobs, reason in refused:
            with pytest.raises(WorkerFailed, match=reason):
                await child.call(request, *blobs)
        await child.call(LoadModel(SPEC, str(files / "weights")))
        await child.call(start(files))
        state_root = (await child.call(SetState(0), (await child.call(GetState())).blobs[0])).record
        refused = [
            (Predict("float32", (1, 63), "raw"), (x.tobytes(),), "input"),
            (Predict("float32", (1, 63), "raw"), (x.tobytes()[:252],), "input"),
            (Predict("float64", (1, 32), "raw"), (x.tobytes(),), "input"),
            (Predict("float32", (1 << 40, 1 << 40), "raw"), (x.tobytes(),), "input"),
            (Predict("float32", (1, 64), "raw"), (), "0 blobs"),
            (Predict("float32", (1, 64), "raw"), ((x * np.nan).tobytes(),), "finite"),
            (ApplyRound(0, (1, 2, 3)), (b"\0" * 10,), "aggregate"),
            (ApplyRound(0, (1, 2)), (b"\0" * 2 * ARCHITECTURE.dimension,), "aggregate"),
            (ApplyRound(0, (1, 2, 30000)), (b"\0" * 2 * ARCHITECTURE.dimension,), "exponent"),
            (SetState(1), (b"\xff" * 8 * ARCHITECTURE.dimension,), "finite"),
            (SetState(1), (b"",), "state"),
            (Export("../escape"), (), "file name"),
            (Export(".."), (), "file name"),
        ]
        for request, blobs, reason in refused:
            with pytest.raises(WorkerFailed, match=reason):
                await child.call(request, *blobs)
        assert (await child.call(SetState(0), (await child.call(GetState())).blobs[0])).record == state_root
        assert (await ask_digits(child, x, "raw")).shape == (1, 10)
        assert not (files.parent / "escape").exists()


async def test_a_worker_reads_no_file_that_it_was_not_given(files: Path) -> None:
    elsewhere = files.parent / "elsewhere"
    initial_weights(ARCHITECTURE, SEED, elsewhere)
    async with open_worker(files) as child:
        if not child.isolation.landlock:
            pytest.skip("this kernel has no Landlock")
        with pytest.raises(WorkerFailed, match="cannot be read"):
            await child.call(LoadModel(SPEC, str(elsewhere)))


def test_the_node_speaks_with_workers_without_torch() -> None:
    code = """
import sys
import celluler_node.processes.worker_words, celluler_node.processes.supervisor, celluler_protocols.inference
import celluler.models.manifest, celluler.models.weights, celluler.models.reference
sys.exit(any(name in sys.modules for name in ("torch", "celluler.engines", "hivemind", "libp2p")))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, env=os.environ | PYTHON_PATH).returncode == 0


async def test_a_killed_worker_says_so_to_whoever_waits(files: Path) -> None:
    async with open_worker(files) as child:
        await child.call(start(files, inner_steps=10_000))

        async def train() -> None:
            with pytest.raises(WorkerFailed, match="SIGKILL"):
                await child.call(TrainRound(0, fresh=True))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(train)
            await trio.testing.wait_all_tasks_blocked()
            os.kill(child.pid, signal.SIGKILL)


async def test_a_model_that_needs_more_memory_than_there_is_fails_its_call_only(files: Path) -> None:
    """Within the budget of a spec, but not within the worker's: the first prediction must not end the process."""
    layers = [{"kind": "dense", "width": 16_000}, {"kind": "dense", "width": 16_000}, {"kind": "dense", "width": 10}]
    architecture = parse_spec(MLP | {"layers": layers})
    assert initial_vector(ARCHITECTURE, SEED).size < architecture.dimension
    path = files / "large"
    with path.open("wb") as file:  # sparse: a gigabyte of zeros that takes no room on the disk
        header = header_of(architecture)
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + architecture.parameter_bytes)
    scratch = files.parent / "small"
    scratch.mkdir()
    limits = replace(LIMITS, memory_bytes=3 << 29)
    with trio.fail_after(60):
        async with open_process(WORKER, limits=limits, readable=[files], scratch=scratch) as child:
            with pytest.raises(WorkerFailed, match="memory"):
                await child.call(LoadModel(as_bytes(MLP | {"layers": layers}), str(path)))
            await child.call(LoadModel(SPEC, str(files / "weights")))


def header_of(architecture: Any) -> bytes:
    entries, start = {}, 0
    for tensor in architecture.tensors:
        end = start + 4 * tensor.elements
        entries[tensor.name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries).encode()
    return text + b" " * (-len(text) % 8)
