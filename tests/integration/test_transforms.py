"""A model with its transforms in a real, confined worker, and modules that misbehave there."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from celluler.errors import InvalidSpec, WorkerFailed
from celluler.models.spec import parse_spec
from celluler.models.transforms.document import canonical
from celluler.models.weights import initial_weights
from celluler_node.processes.supervisor import Child, open_process
from celluler_node.processes.words import Limits
from celluler_node.processes.worker_words import WORKER, LoadModel, Predict
from celluler_node.serving.server import blamed
from tests.support.specs import TINY, as_bytes

wasmtime = pytest.importorskip("wasmtime")

LIMITS = Limits(memory_bytes=4 << 30, file_bytes=1 << 30, threads=1)
SPEC = as_bytes(TINY)
SAME, LOOP = "local.get 1", "(loop br 0) i32.const 0"
GREEDY = "(loop (br_if 0 (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable"
WORDS = {"kind": "labels", "names": ["cat", "dog"]}
AFTER = canonical({"transforms": 1, "outputs": [{"name": "animal", "of": "labels", "steps": [WORDS]}]})


def before(run: str) -> bytes:
    text = f"""(module (memory (export "memory") 1)
      (func (export "alloc") (param i32) (result i32) i32.const 1024)
      (func (export "run") (param i32 i32) (result i32) {run}))"""
    module = base64.b64encode(wasmtime.wat2wasm(text)).decode()
    raw = {"name": "numbers", "dtype": "float32", "shape": [3]}
    steps = [{"kind": "wasm", "module": module, "dtype": "float32", "shape": [3]}]
    return canonical({"transforms": 1, "input": raw, "steps": steps})


async def ask(child: Child, output: str) -> Any:
    x = np.ones((2, 3), np.float32)
    reply = await child.call(Predict("float32", x.shape, output), x.tobytes())
    return np.frombuffer(reply.blobs[0], reply.record.dtype).reshape(reply.record.shape)


async def test_transforms_run_in_the_confined_worker_and_what_misbehaves_ends_in_an_error(tmp_path: Path) -> None:
    weights, scratch = tmp_path / "weights", tmp_path / "scratch"
    scratch.mkdir()
    initial_weights(parse_spec(SPEC), b"s" * 32, weights)
    with trio.fail_after(60):
        async with open_process(WORKER, limits=LIMITS, readable=[weights], scratch=scratch) as child:
            await child.call(LoadModel(SPEC, str(weights), "spec", before(SAME), AFTER))
            plain, named = await ask(child, "labels"), await ask(child, "animal")
            assert [bytes(row) for row in named] == [(b"cat", b"dog")[k] for k in plain]
            for run, problem in ((LOOP, "units of fuel"), (GREEDY, "unreachable")):
                await child.call(LoadModel(SPEC, str(weights), "spec", before(run), AFTER))
                with pytest.raises(WorkerFailed, match=problem) as told:
                    await ask(child, "animal")
                found = blamed(told.value)
                assert isinstance(found, InvalidSpec)
                assert found.path == "preprocess.steps[0]"
            await child.call(LoadModel(SPEC, str(weights), "spec", before(SAME), AFTER))
            assert (await ask(child, "animal")).shape == (2, 3)
