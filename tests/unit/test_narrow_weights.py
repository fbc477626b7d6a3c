from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.engines.graph.measure import measured_body
from celluler.engines.load import load_model
from celluler.engines.predict import Predictor
from celluler.errors import InvalidSpec
from celluler.models.body import Body, format_body, parse_body
from celluler.models.compare import required_bump
from celluler.models.manifest import check_manifest, describe_model
from celluler.models.narrow import NARROW, narrowed, stored_as, widened
from celluler.models.narrow_weights import narrow_weights, wide_vector
from celluler.models.select import tensors_of_layers
from celluler.models.spec import parse_spec
from celluler.models.weights import initial_vector, load_still, load_vector, save_vector, still_of
from tests.support.graphs import stored as a_graph
from tests.support.specs import CNN, MLP, TINY

SEED = b"s" * 32
WIDE = {
    "spec": 1,
    "input": {"dtype": "int64", "shape": [8]},
    "layers": [
        {"kind": "embedding", "vocabulary": 50, "width": 64},
        {"kind": "attention", "heads": 4, "causal": True},
        {"kind": "swiglu", "hidden": 96},
        {"kind": "dense", "width": 50},
    ],
    "objective": {"kind": "next_token", "vocabulary": 50},
}
CLOSE = {"bfloat16": 0.02, "float16": 0.002, "int8": 0.05, "int4": 0.35}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def wide(body: Body) -> Body:
    return body.stored_as("float32")


def stored(spec: object, dtype: str, folder: Path) -> tuple[Body, Path]:
    whole = parse_spec(json.dumps(spec).encode() if isinstance(spec, dict) else spec)  # type: ignore[arg-type]
    narrow, vector, still = narrow_weights(whole, initial_vector(whole, SEED), dtype)
    path = folder / f"{dtype}.safetensors"
    save_vector(narrow, vector, path, still)
    return narrow, path


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("spec", [MLP, CNN, WIDE], ids=["mlp", "cnn", "decoder"])
def test_a_narrow_model_answers_as_the_weights_it_stands_for(spec: object, dtype: str, tmp_path: Path) -> None:
    narrow, path = stored(spec, dtype, tmp_path)
    model = load_model(narrow, path)
    shape = (40, *narrow.input.shape)  # more rows than the int8 kernel takes, then one
    x = np.random.default_rng(1).random(shape, dtype=np.float32)
    given = (x * 50).astype(np.int64) if narrow.input.dtype == "int64" else x
    widest = Predictor(wide(narrow), torch.from_numpy(wide_vector(narrow, model.vector, model.still)))
    for some in (given, given[:1]):
        expected, told = widest.predict(some), model.predictor().predict(some)
        assert np.abs(told - expected).max() <= 0.03 * np.abs(expected).max()
    whole = Predictor(wide(narrow), torch.from_numpy(initial_vector(wide(narrow), SEED))).predict(given)
    assert np.abs(widest.predict(given) - whole).mean() <= CLOSE[dtype] * np.abs(whole).mean()


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_layers_of_any_width_stay_within_their_memory(dtype: str, tmp_path: Path) -> None:
    layers = [{"kind": "dense", "width": width} for width in (102, 1, 7, 33, 160, 48, 5)]
    ends = {"input": {"dtype": "float32", "shape": [31]}, "objective": {"kind": "regression"}}
    narrow, path = stored({"spec": 1, "layers": layers, **ends}, dtype, tmp_path)
    model = load_model(narrow, path)
    x = np.random.default_rng(1).random((3, 31), dtype=np.float32)
    expected = Predictor(wide(narrow), torch.from_numpy(wide_vector(narrow, model.vector, model.still))).predict(x)
    assert np.abs(model.predictor().predict(x) - expected).max() <= 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_a_graph_is_stored_in_less_and_computes_what_that_stands_for(dtype: str, tmp_path: Path) -> None:
    whole = measured_body(a_graph("cnn"), {"kind": "regression"})
    rng = np.random.default_rng(1)
    vector = np.abs(rng.standard_normal(whole.dimension)).astype(np.float32)
    still = {one.name: np.zeros(one.byte_count, np.uint8) for one in still_of(whole)}
    narrow, kept, rest = narrow_weights(whole, vector, dtype, still)
    path = tmp_path / "graph.safetensors"
    save_vector(narrow, kept, path, rest)
    again = parse_body("graph", format_body(narrow))
    assert again == narrow
    assert (again.dtype, wide(again)) == (dtype, whole)
    assert again.parameter_bytes < 0.8 * whole.parameter_bytes
    model = load_model(again, path)
    x = rng.random((2, *whole.input.shape), dtype=np.float32)
    expected = Predictor(whole, torch.from_numpy(wide_vector(narrow, kept, rest)), still).predict(x)
    assert (model.predictor().predict(x) == expected).all()
    with pytest.raises(InvalidSpec, match="trained weights are float32"):
        load_model(again, path, micro=2)


@pytest.mark.parametrize("dtype", NARROW)
def test_the_file_is_as_long_as_the_document_says_and_comes_back_bit_by_bit(dtype: str, tmp_path: Path) -> None:
    narrow, path = stored(MLP, dtype, tmp_path)
    again = parse_spec(format_body(narrow))
    assert again == narrow
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert path.stat().st_size == 8 + header + narrow.parameter_bytes
    assert narrow.parameter_bytes < wide(narrow).parameter_bytes * {"int8": 0.3, "int4": 0.2}.get(dtype, 0.6)
    other = tmp_path / "again"
    save_vector(again, load_vector(again, path), other, load_still(again, path))
    assert other.read_bytes() == path.read_bytes()


def test_a_narrow_model_is_not_trained_and_the_error_names_its_parent(tmp_path: Path) -> None:
    narrow, path = stored(TINY, "int8", tmp_path)
    with pytest.raises(InvalidSpec, match="trained weights are float32") as refused:
        load_model(narrow, path, micro=4)
    assert refused.value.path == "dtype"
    assert "made from" in (refused.value.hint or "")
    with pytest.raises(InvalidSpec, match="untrained"):
        initial_vector(narrow, SEED)
    with pytest.raises(InvalidSpec, match="already"):
        narrow_weights(narrow, load_vector(narrow, path), "int4")


def test_the_manifest_says_the_dtype_and_another_one_is_no_other_function(tmp_path: Path) -> None:
    narrow, _ = stored(MLP, "int8", tmp_path)
    before = describe_model("digits", "1.0.0", format_body(wide(narrow)), b"w" * 32, created_s=0)
    after = describe_model("digits", "1.1.0", format_body(narrow), b"v" * 32, created_s=0)
    assert (after.dtype, after.weights_bytes) == ("int8", narrow.parameter_bytes)
    assert required_bump(before, after) == "minor"
    with pytest.raises(InvalidSpec, match="weights_bytes"):
        check_manifest(replace(after, weights_bytes=before.weights_bytes))
    with pytest.raises(InvalidSpec, match="dtype"):
        check_manifest(replace(after, dtype="float32"))


def test_scales_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    for dtype, form in (("int8", "<f4"), ("int4", "<f2"), ("bfloat16", "<u2"), ("float16", "<f2")):
        narrow, path = stored(WIDE, dtype, tmp_path)
        still = {name: data.copy() for name, data in load_still(narrow, path).items()}
        name = next((name for name in still if name.startswith("2.up.weight.scale")), "2.up.weight")
        still[name].view(form)[0] = 0x7F80 if form == "<u2" else np.inf
        save_vector(narrow, load_vector(narrow, path), path, still)
        with pytest.raises(InvalidSpec, match="not finite"):
            load_model(narrow, path).predictor()


def test_the_tensors_of_a_layer_are_its_scales_too(tmp_path: Path) -> None:
    narrow, _ = stored(MLP, "int8", tmp_path)
    assert {"0.weight", "0.weight.scale", "0.bias"} == set(tensors_of_layers(narrow, "0"))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 80), st.integers(0, 1 << 30), st.floats(-30, 4))
def test_no_value_moves_further_than_a_step_of_its_form(rows: int, length: int, seed: int, size: float) -> None:
    values = (np.random.default_rng(seed).standard_normal((rows, length)) * 2.0**size).astype(np.float32)
    for dtype, most in (("bfloat16", 2.0**-8), ("int8", 0.51 / 127), ("int4", 0.6 / 8)):
        parts = narrowed(dtype, "w", values)
        told = widened(dtype, values.shape, tuple(parts[one.name] for one in stored_as(dtype, "w", values.shape)))
        largest = np.abs(values).max()
        # A group whose farthest value is below what float16 can say is lost whole.
        assert np.abs(told - values).max() <= (most * 2 if dtype == "int4" else most) * largest + 1e-6
    assert {one.name: one.byte_count for one in stored_as(dtype, "w", values.shape)} == {
        name: len(data) for name, data in parts.items()
    }


def test_float16_refuses_what_it_cannot_say() -> None:
    with pytest.raises(InvalidSpec, match="range of float16"):
        narrowed("float16", "w", np.full((2, 2), 1e6, np.float32))


def test_int4_of_zeros_is_zeros() -> None:
    parts = narrowed("int4", "w", np.zeros((2, 64), np.float32))
    assert not widened("int4", (2, 64), (parts["w"], parts["w.scale"])).any()
