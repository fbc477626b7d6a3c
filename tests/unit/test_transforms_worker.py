"""Transforms in a worker: programs as steps, and a model between its documents."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from celluler.engines.transforms.served import programs_of
from celluler.errors import InvalidSpec
from celluler.models.layers import Signal
from celluler.models.transforms.document import Chain, parse_postprocess, parse_preprocess
from celluler.models.transforms.run import raw_input, run_chain

wasmtime = pytest.importorskip("wasmtime")

DOUBLED = """
(module
  (memory (export "memory") 1)
  (func (export "alloc") (param i32) (result i32) i32.const 1024)
  (func (export "run") (param $n i32) (param $p i32) (result i32) (local $i i32)
    (loop $next
      (f32.store (i32.add (local.get $p) (local.get $i))
        (f32.mul (f32.const 2) (f32.load (i32.add (local.get $p) (local.get $i)))))
      (local.set $i (i32.add (local.get $i) (i32.const 4)))
      (br_if $next (i32.lt_u (local.get $i) (i32.mul (local.get $n) (i32.const 8)))))
    local.get $p))
"""


def chain(text: str, *, dtype: str = "float32", shape: tuple[int, ...] = (2,)) -> Chain:
    module = base64.b64encode(wasmtime.wat2wasm(text)).decode()
    return before({"kind": "wasm", "module": module, "dtype": dtype, "shape": list(shape)})


def before(*steps: dict[str, Any], dtype: str = "float32", shape: tuple[int, ...] = (2,)) -> Chain:
    raw = {"name": "given", "dtype": dtype, "shape": list(shape)}
    return parse_preprocess({"transforms": 1, "input": raw, "steps": list(steps)}).chain


def program(*, run: str, alloc: str = "i32.const 1024", memory: str = "1") -> str:
    return f"""(module (memory (export "memory") {memory})
      (func (export "alloc") (param i32) (result i32) {alloc})
      (func (export "run") (param i32 i32) (result i32) {run}))"""


def run_alone(chain: Chain, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A chain without a model, with whatever programs it has."""
    return np.ascontiguousarray(run_chain(chain, raw_input(chain.given, x), programs_of(chain)))


X = np.array([[1, 2], [3, 4]], np.float32)


def test_a_module_computes() -> None:
    assert run_alone(chain(DOUBLED), X).tolist() == [[2, 4], [6, 8]]


def test_a_call_has_no_more_input_than_is_said() -> None:
    seen = program(run="(i32.store (i32.const 0) (local.get 0)) i32.const 0", alloc="i32.const 400000", memory="64")
    counted = run_alone(chain(seen, dtype="int64", shape=(1,)), np.zeros((40_000, 2), np.float32))
    assert {int(one) for one in counted[:, 0]} == {0, 1 << 15, 40_000 - (1 << 15)}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (program(run="(loop br 0) i32.const 0"), "units of fuel"),
        (program(run="call 1", alloc="i32.const 0").replace("call 1", "(call 1 (i32.const 0) (i32.const 0))"), "stack"),
        (
            program(run="(if (i32.eq (memory.grow (i32.const 2000)) (i32.const -1)) (then unreachable)) i32.const 0"),
            "unr",
        ),
        (
            program(run="(loop (br_if 0 (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable"),
            "unreachable",
        ),
        (program(run="i32.const 0", memory="1100"), "memory"),
        (program(run="i32.const -8"), "outside its memory"),
        (program(run="i32.const 0", alloc="i32.const -1"), "outside its memory"),
        (program(run="unreachable"), "unreachable"),
        (program(run="(i32.load (i32.const 70000))"), "out of bounds"),
        (program(run="(i32.div_s (i32.const 1) (i32.const 0))"), "zero"),
    ],
)
def test_a_module_that_misbehaves_ends_in_an_error_that_names_the_step(text: str, problem: str) -> None:
    with pytest.raises(InvalidSpec, match=problem) as told:
        run_alone(chain(text), X)
    assert told.value.path == "preprocess.steps[0]"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("(module)", "exports no memory"),
        ('(module (memory (export "memory") 1))', "exports no alloc"),
        (program(run="i32.const 0").replace("(param i32 i32)", "(param i32)"), "exports no run"),
        (program(run="i32.const 0").replace("(module", '(module (memory (export "second") 1)'), "compile"),
    ],
)
def test_a_module_with_other_exports_is_refused_before_it_runs(text: str, problem: str) -> None:
    with pytest.raises(InvalidSpec, match=problem):
        programs_of(chain(text))


def test_a_module_with_an_import_is_refused_when_it_is_read() -> None:
    for text in ('(module (import "wasi_snapshot_preview1" "fd_write" (func)))', "(module (func) (start 0))"):
        with pytest.raises(InvalidSpec, match=r"preprocess.steps\[0\].module"):
            chain(text)


def test_nothing_stays_between_two_calls() -> None:
    counts = program(run="(i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1))) i32.const 0")
    one = chain(counts, dtype="int64", shape=(1,))
    run = programs_of(one)[0]
    assert [run(X[:1]).tolist() for _ in range(2)] == [[[1]], [[1]]]


def test_the_examples_of_the_how_to_are_what_they_say() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "add-transforms.md").read_text("utf-8")
    fences = re.findall(r"^```(\w+)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    documents = [json.loads(text) for language, text in fences if language == "json"]
    digits = {"raw": Signal("float32", (10,)), "probabilities": Signal("float32", (10,)), "labels": Signal("int64", ())}
    assert parse_preprocess(documents[0]).chain.gives == Signal("float32", (64,))
    assert [one.chain.gives.shape for one in parse_postprocess(documents[1], digits)] == [(1,), (3,)]
    assert parse_preprocess(documents[2]).chain.gives == Signal("int64", (64,))
    (text,) = (text for language, text in fences if language == "wat")
    module = base64.b64encode(wasmtime.wat2wasm(text)).decode()
    squared = before({"kind": "wasm", "module": module, "dtype": "float32", "shape": [64]}, shape=(64,))
    x = np.arange(1100 * 64, dtype=np.float32).reshape(1100, 64)
    assert np.array_equal(run_alone(squared, x), x * x)


# --- graphs and tokenizers ---------------------------------------------------------------------------------------

SQUARED: dict[str, Any] = {
    "graph": 1,
    "dimensions": {"batch": [1, 64]},
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 2]}],
    "tensors": [],
    "nodes": [{"name": "y", "op": "mul.Tensor", "args": {"self": "x", "other": "x"}}],
    "outputs": ["y"],
}


def graph(document: dict[str, Any], shape: tuple[int, ...] = (2,)) -> Chain:
    return before({"kind": "graph", "graph": document, "dtype": "float32", "shape": list(shape)})


def test_a_graph_computes() -> None:
    x = np.arange(300, dtype=np.float32).reshape(150, 2)
    assert np.array_equal(run_alone(graph(SQUARED), x), x * x)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"inputs": [{"name": "x", "dtype": "int64", "shape": ["batch", 2]}]}, "preprocess.steps[0].graph.inputs"),
        ({"dimensions": {"batch": [2, 64]}}, "preprocess.steps[0].graph.dimensions"),
        ({"outputs": ["y", "x"]}, "preprocess.steps[0].graph.outputs"),
        ({"nodes": [{"name": "y", "op": "set_.source", "args": {}}]}, "preprocess.steps[0].graph.nodes[0].op"),
        (
            {"nodes": [{"name": "y", "op": "rand_like.default", "args": {"self": "x"}}]},
            "preprocess.steps[0].graph.nodes[0].op",
        ),
        (
            {"tensors": [{"name": "t", "role": "constant", "dtype": "float32", "shape": [2]}]},
            "preprocess.steps[0].graph.tensors",
        ),
    ],
)
def test_a_graph_that_is_no_step_is_refused_when_it_is_read(changes: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidSpec) as told:
        graph(SQUARED | changes)
    assert told.value.path == path


def test_a_graph_that_gives_another_shape_than_it_says_is_refused_before_it_runs() -> None:
    with pytest.raises(InvalidSpec, match=r"preprocess.steps\[0\].shape: is float32 \(3,\), the graph gives"):
        programs_of(graph(SQUARED, (3,)))


def test_a_tokenizer_of_the_package_computes() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordLevel({"<unk>": 0, "two": 1, "words": 2}, unk_token="<unk>")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    step = {"kind": "tokenizer", "tokenizer": json.loads(made.to_str()), "length": 4, "pad": 9}
    x = np.frombuffer(b"two words".ljust(16, b"\0") + b"no words two".ljust(16, b"\0"), np.uint8).reshape(2, 16)
    assert run_alone(before(step, dtype="text", shape=(16,)), x).tolist() == [[1, 2, 9, 9], [0, 2, 1, 9]]
    bare = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="<unk>"))  # which is no word of it
    refused = before(step | {"tokenizer": json.loads(bare.to_str())}, dtype="text", shape=(16,))
    with pytest.raises(InvalidSpec, match=r"steps\[0\].tokenizer: does not take this text"):
        run_alone(refused, np.frombuffer(b"b", np.uint8)[None])
    with pytest.raises(InvalidSpec, match=r"steps\[0\].tokenizer: is not read"):
        programs_of(before(step | {"tokenizer": {"version": "1.0"}}, dtype="text", shape=(16,)))


# --- against torch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(3, 5), (7, 4), (16, 20), (1, 1)])
def test_images_are_resized_as_torch_does_it(size: tuple[int, int]) -> None:
    x = np.random.default_rng(1).random((2, 3, 7, 9), np.float32)
    given = torch.from_numpy(x)
    for method, torch_method in (("bilinear", "bilinear"), ("nearest", "nearest-exact")):
        step = {"kind": "resize", "height": size[0], "width": size[1], "layout": "chw", "method": method}
        made = run_alone(before(step, shape=(3, 7, 9)), x)
        corners = {"align_corners": False} if method == "bilinear" else {}
        wanted = torch.nn.functional.interpolate(given, size, mode=torch_method, **corners).numpy()
        assert np.allclose(made, wanted, atol=1e-6)
