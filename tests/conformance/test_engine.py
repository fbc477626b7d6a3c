"""Every engine, on every kind of body and every dtype of weights: what a worker may rely on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from celluler.engines.data import Dataset
from celluler.engines.engine import Engine, Running
from celluler.engines.torch_engine import TorchEngine
from celluler.errors import InvalidSpec
from celluler.inference.sampling import GREEDY
from celluler.models.body import Body
from celluler.models.calls import outputs_of
from celluler.models.graph_body import parse_graph_body
from celluler.models.memory import RUNTIME_BYTES, DoesNotFit
from celluler.models.narrow import DTYPES
from celluler.models.narrow_weights import narrow_weights
from celluler.models.spec import parse_spec
from celluler.models.weights import NOTHING_STILL, initial_vector, save_vector
from tests.support.specs import MLP

ENGINES: list[Engine] = [TorchEngine()]
LM = {
    "spec": 1,
    "input": {"dtype": "int64", "shape": [16]},
    "layers": [
        {"kind": "embedding", "vocabulary": 64, "width": 32},
        {"kind": "residual", "layers": [{"kind": "rms_norm"}, {"kind": "attention", "heads": 4, "causal": True}]},
        {"kind": "dense", "width": 64},
    ],
    "objective": {"kind": "next_token", "vocabulary": 64},
}
GRAPH = {
    "body": 1,
    "objective": {"kind": "regression"},
    "output": [32],
    "activation_bytes": 256,
    "graph": {
        "graph": 1,
        "dimensions": {"batch": [1, 64]},
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 32]}],
        "tensors": [{"name": "w", "role": "parameter", "dtype": "float32", "shape": [32, 32]}],
        "nodes": [
            {"name": "h", "op": "linear.default", "args": {"input": "x", "weight": "@w"}},
            {"name": "y", "op": "softmax.int", "args": {"self": "h", "dim": 1}},
        ],
        "outputs": ["y"],
    },
}
SAME = 1e-5
"""Of the largest answer: alone and in a batch."""
NEAR = {"float32": 1e-6, "bfloat16": 0.05, "float16": 0.01, "int8": 0.1, "int4": 0.6}
"""Of the largest answer: from what the same model in float32 answers."""


def body_of(kind: str) -> Body:
    match kind:
        case "mlp":
            return parse_spec(MLP)
        case "lm":
            return parse_spec(LM)
    return parse_graph_body(GRAPH)


def weights_of(body: Body) -> np.ndarray[Any, Any]:
    if body.kind == "spec":
        return initial_vector(body, b"s" * 32)
    return np.random.default_rng(5).normal(0, 0.3, body.dimension).astype(np.float32)


def inputs(body: Body, count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    draw, shape = np.random.default_rng(seed), (count, *body.input.shape)
    return draw.integers(0, body.vocabulary, shape) if body.input.dtype == "int64" else draw.random(shape, np.float32)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=ENGINES, ids=lambda engine: engine.caps.name)
def engine(request: pytest.FixtureRequest) -> Engine:
    found: Engine = request.param
    return found


def load(engine: Engine, kind: str, dtype: str, folder: Path, **how: Any) -> tuple[Running, Path]:
    body = body_of(kind)
    vector, still = weights_of(body), NOTHING_STILL
    if dtype != "float32":
        body, vector, still = narrow_weights(body, vector, dtype)
    path = folder / f"{kind}-{dtype}.safetensors"
    save_vector(body, vector, path, still)
    return engine.load(body, path, **how), path


def both(engine: Engine) -> list[tuple[str, str]]:
    kinds = [kind for kind in ("mlp", "lm", "graph") if body_of(kind).kind in engine.caps.bodies]
    return [(kind, dtype) for kind in kinds for dtype in engine.caps.dtypes]


def test_what_an_engine_says_of_itself(engine: Engine) -> None:
    caps = engine.caps
    assert caps.name
    assert caps.version
    assert caps.device == "cpu"
    assert set(caps.bodies) <= {"spec", "graph"}
    assert {"float32"} <= set(caps.dtypes) <= set(DTYPES)


def test_every_output_has_the_shape_that_the_body_says_and_repeats_to_the_bit(engine: Engine, tmp_path: Path) -> None:
    for kind, dtype in both(engine):
        model, path = load(engine, kind, dtype, tmp_path)
        before = hashlib.sha256(path.read_bytes()).digest()
        model.warm_up()
        x = inputs(model.architecture, 5)
        for output, (answered, shape) in outputs_of(model.architecture).items():
            told = model.predict(x, output)
            assert (told.dtype.name, told.shape) == (answered, (5, *shape)), (kind, dtype, output)
            assert np.array_equal(told, model.predict(x, output)), (kind, dtype, output)
        assert hashlib.sha256(path.read_bytes()).digest() == before


def test_a_sample_is_answered_alike_alone_and_among_others(engine: Engine, tmp_path: Path) -> None:
    for kind, dtype in both(engine):
        model, _ = load(engine, kind, dtype, tmp_path)
        assert model.stand_apart()
        x = inputs(model.architecture, 33)
        together = model.predict(x)
        alone = np.concatenate([model.predict(x[place : place + 1]) for place in (0, 7, 32)])
        least = SAME if dtype in ("float32", "float16") else 0.02  # a batch has another kernel than a row
        assert np.abs(together[[0, 7, 32]] - alone).max() <= least * np.abs(together).max(), (kind, dtype)


def test_narrow_weights_answer_nearly_as_wide_ones(engine: Engine, tmp_path: Path) -> None:
    for kind, dtype in both(engine):
        wide, narrow = (load(engine, kind, one, tmp_path)[0] for one in ("float32", dtype))
        x = inputs(wide.architecture, 8)
        expected, told = wide.predict(x), narrow.predict(x)
        assert np.abs(told - expected).max() <= NEAR[dtype] * np.abs(expected).max(), (kind, dtype)


def test_what_does_not_fit_is_refused(engine: Engine, tmp_path: Path) -> None:
    for kind in {kind for kind, _ in both(engine)}:
        model, path = load(engine, kind, "float32", tmp_path)
        x = inputs(model.architecture, 2)
        wrong = np.full_like(x, model.architecture.vocabulary if x.dtype == np.int64 else np.nan)
        for given, output in ((x[:, :, None], "raw"), (x.astype(np.uint8), "raw"), (x, "sample"), (wrong, "raw")):
            with pytest.raises(InvalidSpec):
                model.predict(given, output)
        with pytest.raises(DoesNotFit):
            engine.load(model.architecture, path, memory_bytes=RUNTIME_BYTES)
        broken = path.read_bytes()[:-4] + b"\0\0\xc0\x7f"
        (tmp_path / "broken").write_bytes(broken)
        if model.architecture.kind == "spec":
            with pytest.raises(InvalidSpec):
                engine.load(model.architecture, tmp_path / "broken")


def test_a_model_is_judged_by_its_objective(engine: Engine, tmp_path: Path) -> None:
    for kind, dtype in both(engine):
        model, _ = load(engine, kind, dtype, tmp_path)
        if kind == "graph":
            continue  # what it regresses to is the author's
        x = inputs(model.architecture, 12)
        y = x if kind == "lm" else np.arange(12) % model.architecture.output[0]
        judged = model.evaluate(Dataset(torch.from_numpy(x), torch.from_numpy(y)))
        assert judged.count == 12
        assert np.isfinite(judged.loss)
        assert judged == model.evaluate(Dataset(torch.from_numpy(x), torch.from_numpy(y)))


def test_slots_go_on_as_a_whole_pass_says(engine: Engine, tmp_path: Path) -> None:
    prompts = ([3, 1, 4, 1, 5], [9, 2], [6])
    for dtype in engine.caps.dtypes:
        model, _ = load(engine, "lm", dtype, tmp_path)
        slots = model.slots(4, length=12)
        told: list[list[int]] = []
        for slot, prompt in enumerate(prompts):
            slots.admit(slot, prompt, GREEDY)
            (first,) = slots.step(slot, len(prompt), ()).drawn
            assert first.chosen is not None
            told.append([*prompt, first.chosen.token])
        for _ in range(4):
            for one in slots.step(None, 1, (0, 1, 2)).drawn:
                assert one.chosen is not None
                told[one.slot].append(one.chosen.token)
        for prompt, sequence in zip(prompts, told, strict=True):
            padded = np.zeros((1, 16), np.int64)
            padded[0, : len(sequence)] = sequence
            raw = model.predict(padded)[0]
            for place in range(len(prompt) - 1, len(sequence) - 1):
                chosen = raw[place, sequence[place + 1]]
                assert chosen >= raw[place].max() - 0.02 * np.abs(raw[place]).max(), (dtype, place)
        slots.release(0)
        slots.admit(0, [1], GREEDY)
        with pytest.raises(InvalidSpec):
            load(engine, "mlp", "float32", tmp_path)[0].slots(2)
