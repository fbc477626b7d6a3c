"""Objectives whose answers are the input itself: what they ask of an architecture, of data, and how they are judged."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from celluler.engines.config import TrainConfig
from celluler.engines.data import Dataset, load_dataset
from celluler.engines.predict import Predictor
from celluler.engines.steps import own_rows
from celluler.errors import InvalidSpec, LocalError
from celluler.models.manifest import describe_model
from celluler.models.spec import format_spec, parse_spec
from tests.support.specs import dense, save_tensors

EMBEDDING = {"kind": "embedding", "vocabulary": 5, "width": 5}
ATTENTION = {"kind": "attention", "heads": 1}


def speaking(*layers: dict[str, Any], shape: tuple[int, ...] = (4,), vocabulary: int = 5) -> dict[str, Any]:
    return {
        "spec": 1,
        "input": {"dtype": "int64", "shape": list(shape)},
        "layers": list(layers),
        "objective": {"kind": "next_token", "vocabulary": vocabulary},
    }


def repeating(*layers: dict[str, Any], shape: tuple[int, ...] = (8,)) -> dict[str, Any]:
    return {
        "spec": 1,
        "input": {"dtype": "float32", "shape": list(shape)},
        "layers": list(layers),
        "objective": {"kind": "reconstruction"},
    }


@pytest.mark.parametrize(
    ("document", "path"),
    [
        (speaking(EMBEDDING, dense(6)), "objective.vocabulary"),
        (speaking(EMBEDDING, dense(4), vocabulary=4), "objective.vocabulary"),
        (speaking(EMBEDDING, shape=(1,)), "input"),
        (speaking(EMBEDDING, shape=(2, 2)), "input"),
        (speaking(EMBEDDING, {"kind": "residual", "layers": [ATTENTION]}), "objective.kind"),
        (speaking(EMBEDDING, {"kind": "flatten"}), "objective.vocabulary"),
        (repeating(dense(8)) | {"objective": {"kind": "next_token", "vocabulary": 8}}, "input"),
        (repeating(dense(7)), "objective.kind"),
        (repeating({"kind": "reshape", "shape": [2, 4]}), "objective.kind"),
    ],
)
def test_an_architecture_that_cannot_answer_is_refused(document: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_spec(document)
    assert caught.value.path == path


def test_a_manifest_names_them_as_its_task() -> None:
    for document, task in ((speaking(EMBEDDING), "next_token"), (repeating(dense(8)), "reconstruction")):
        spec = format_spec(parse_spec(document))
        assert describe_model("toy", "1.0.0", spec, bytes(32), created_s=0).task == task


def test_a_language_model_is_judged_by_what_it_says_at_each_place_about_the_next() -> None:
    architecture = parse_spec(speaking(EMBEDDING, {"kind": "dense", "width": 5, "bias": False}))
    follower = np.roll(np.eye(5, dtype=np.float32), 1, axis=0)  # after a comes a + 1
    vector = np.concatenate([np.eye(5, dtype=np.float32).ravel(), 9 * follower.ravel()])
    judge = Predictor(architecture, torch.from_numpy(vector))
    x = torch.tensor([[0, 1, 2, 3], [3, 4, 0, 1], [1, 1, 1, 1]])
    told = judge.evaluate(Dataset(x, x))
    right, wrong = (math.log(math.exp(9) + 4) - score for score in (9, 0))
    assert told.accuracy == pytest.approx(6 / 9)
    assert told.loss == pytest.approx((6 * right + 3 * wrong) / 9, rel=1e-4)
    assert told.perplexity == pytest.approx(math.exp(told.loss))
    knows_nothing = Predictor(architecture, torch.zeros(architecture.dimension)).evaluate(Dataset(x, x))
    assert knows_nothing.perplexity == pytest.approx(5)


def test_an_autoencoder_is_judged_by_how_far_from_the_input_it_is() -> None:
    architecture = parse_spec(repeating({"kind": "dense", "width": 8, "bias": False}))
    x = torch.rand(16, 8)
    twice = Predictor(architecture, 2 * torch.eye(8).flatten()).evaluate(Dataset(x, x))
    assert twice.loss == pytest.approx(float(x.square().mean()), rel=1e-4)
    assert (twice.accuracy, twice.perplexity) == (None, None)


def test_data_needs_no_labels_and_may_have_them(tmp_path: Path) -> None:
    architecture = parse_spec(speaking(EMBEDDING))
    x = np.arange(12, dtype=np.int64).reshape(3, 4) % 5
    bare = save_tensors(tmp_path / "bare.safetensors", {"x": x})
    labelled = save_tensors(tmp_path / "labelled.safetensors", {"x": x, "y": np.zeros(3, dtype=np.int64)})
    columns = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 4)
    table, named = tmp_path / "bare.parquet", tmp_path / "labelled.parquet"
    pq.write_table(pa.table({"text": columns}), table)
    pq.write_table(pa.table({"text": columns, "label": ["a", "b", "c"]}), named)
    for path in (bare, labelled, table, named):
        data = load_dataset(architecture, path)
        assert data.y is data.x
        assert np.array_equal(data.x.numpy(), x)
    other = save_tensors(tmp_path / "other.safetensors", {"x": x, "z": x})
    with pytest.raises(InvalidSpec, match="must hold the tensors x"):
        load_dataset(architecture, other)
    with pytest.raises(InvalidSpec, match="must hold the tensors x and y"):
        load_dataset(parse_spec(speaking(EMBEDDING) | {"objective": {"kind": "regression"}}), bare)


def test_text_has_no_labels_to_be_sharded_by() -> None:
    config = TrainConfig(bytes(32), 0, 2, inner_steps=1, batch=1, learning_rate=0.1, partition="by-label")
    x = torch.zeros(3, 4, dtype=torch.int64)
    with pytest.raises(LocalError, match="by label"):
        own_rows(Dataset(x, x), config, 0)
