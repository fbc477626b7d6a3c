from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from celluler.engines.compress.distil import Lesson, distil
from celluler.engines.compress.prune import prune, zeros
from celluler.engines.compress.structure import prune_units
from celluler.engines.compress.tensors import taken_apart
from celluler.engines.data import Dataset
from celluler.engines.load import Model
from celluler.engines.predict import Predictor
from celluler.errors import InvalidSpec
from celluler.models.body import format_body
from celluler.models.spec import Architecture, parse_spec
from celluler.models.weights import NOTHING_STILL, Vector, initial_vector, save_vector
from celluler_node.processes.refusals import Refused
from celluler_node.processes.worker_compress import Compressor
from celluler_node.processes.worker_compress_words import (
    OUT,
    Compressed,
    Distil,
    Given,
    Prune,
    Quantise,
)
from tests.support.specs import MLP, WORDS, digits, save_tensors

pytestmark = pytest.mark.thorough

SEED = b"s" * 32
DIGITS = parse_spec(MLP)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def part(places: slice) -> Dataset:
    x, y = digits()
    return Dataset(torch.from_numpy(x[places]), torch.from_numpy(y[places]))


TO_LEARN, HELD_OUT = part(slice(None, -360)), part(slice(-360, None))


def model(architecture: Architecture, vector: Vector) -> Model:
    return Model(architecture, vector, NOTHING_STILL)


def accuracy(architecture: Architecture, vector: Vector) -> float:
    judged = Predictor(architecture, torch.from_numpy(vector)).evaluate(HELD_OUT)
    assert judged.accuracy is not None
    return judged.accuracy


@pytest.fixture(scope="module")
def trained() -> Vector:
    """An MLP that was taught by the data's labels alone."""
    untrained = initial_vector(DIGITS, SEED)
    lesson = Lesson(steps=400, batch=64, learning_rate=3e-3, hard=1.0)
    return distil(Predictor(DIGITS, torch.from_numpy(untrained)), model(DIGITS, untrained), TO_LEARN, lesson)[0]


def test_half_of_the_weights_are_not_missed(trained: Vector) -> None:
    before = trained.copy()
    pruned = prune(DIGITS, trained, 0.5)
    assert (trained == before).all()
    assert 0.49 < zeros(DIGITS, pruned) < 0.51
    assert accuracy(DIGITS, trained) > 0.93
    assert accuracy(DIGITS, pruned) > accuracy(DIGITS, trained) - 0.03


def test_units_are_taken_out_of_the_document_too(trained: Vector) -> None:
    smaller, vector = prune_units(DIGITS, trained, 0.25)
    assert vector.shape == (smaller.dimension,)
    assert smaller.dimension < 0.8 * DIGITS.dimension
    assert accuracy(smaller, vector) > accuracy(DIGITS, trained) - 0.1


STRUCTURES: dict[str, dict[str, Any]] = {
    "cnn": {
        "input": {"dtype": "float32", "shape": [2, 8, 8]},
        "layers": [
            {"kind": "conv2d", "channels": 8, "kernel": 3, "padding": 1},
            {"kind": "batch_norm"},
            {"kind": "activation", "function": "relu"},
            {"kind": "max_pool2d", "size": 2},
            {"kind": "conv2d", "channels": 6, "kernel": 3, "padding": 1},
            {"kind": "activation", "function": "tanh"},
            {"kind": "flatten"},
            {"kind": "dense", "width": 12},
            {"kind": "batch_norm"},
            {"kind": "dense", "width": 4},
        ],
        "objective": {"kind": "classification", "classes": 4},
    },
    "upwards": {
        "input": {"dtype": "float32", "shape": [3, 4, 4]},
        "layers": [
            {"kind": "conv_transpose2d", "channels": 8, "kernel": 2, "stride": 2},
            {"kind": "activation", "function": "relu"},
            {"kind": "conv_transpose2d", "channels": 5, "kernel": 2, "stride": 2},
            {"kind": "upsample2d"},
            {"kind": "conv2d", "channels": 2, "kernel": 3},
            {"kind": "global_avg_pool"},
        ],
        "objective": {"kind": "regression"},
    },
    "decoder": {
        "input": {"dtype": "int64", "shape": [6]},
        "layers": [
            {"kind": "embedding", "vocabulary": 20, "width": 8},
            {
                "kind": "repeat",
                "times": 2,
                "layers": [
                    {"kind": "residual", "layers": [{"kind": "rms_norm"}, {"kind": "swiglu", "hidden": 16}]},
                    {"kind": "residual", "layers": [{"kind": "dense", "width": 12}, {"kind": "dense", "width": 8}]},
                    {"kind": "residual", "layers": [{"kind": "feed_forward", "hidden": 10}]},
                ],
            },
            {"kind": "dense", "width": 20},
        ],
        "objective": {"kind": "next_token", "vocabulary": 20},
    },
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_units_that_nobody_reads_are_no_loss(name: str) -> None:
    """The model with those units muted answers as the one without them: everything that read them was found."""
    whole = parse_spec({"spec": 1, **STRUCTURES[name]})
    rng = np.random.default_rng(3)
    vector = rng.standard_normal(whole.dimension).astype(np.float32)
    for tensor, values in zip(whole.tensors, taken_apart(whole, vector).values(), strict=True):
        if tensor.role == "variance":
            values[:] = np.abs(values) + 0.5
    muted = _muted(whole, vector, name)
    smaller, kept = prune_units(whole, muted, 0.25)
    assert smaller.dimension < whole.dimension
    x = rng.standard_normal((5, *whole.input.shape)).astype(np.float32)
    given = rng.integers(0, 20, (5, *whole.input.shape)) if whole.input.dtype == "int64" else x
    before, after = (
        Predictor(one, torch.from_numpy(of)).predict(given) for one, of in ((whole, muted), (smaller, kept))
    )
    assert np.allclose(before, after, rtol=1e-4, atol=1e-4)


def _muted(whole: Architecture, vector: Vector, name: str) -> Vector:
    """Three of four units have weights as they are; the others are read by nobody."""
    quiet = vector.copy()
    tensors = taken_apart(whole, quiet)
    readers = {
        "cnn": [("4.weight", 1, 8, 1), ("7.weight", 1, 6, 16), ("9.weight", 1, 12, 1)],
        "upwards": [("2.weight", 0, 8, 1), ("4.weight", 1, 5, 1)],
        "decoder": [
            (f"1.{copy}.{reader}", 1, width, 1)
            for copy in (0, 1)
            for reader, width in (("0.1.down.weight", 16), ("1.1.weight", 12), ("2.0.down.weight", 10))
        ],
    }
    for reader, axis, width, block in readers[name]:
        units = np.random.default_rng(len(reader)).permutation(width)[: width - max(1, round(width * 0.75))]
        places = (units[:, None] * block + np.arange(block)).reshape(-1)
        view = np.moveaxis(tensors[reader], axis, 0)
        view[places] = 0
    return quiet


def test_where_no_unit_can_go_the_error_says_so() -> None:
    only = parse_spec(
        {
            "spec": 1,
            "input": {"dtype": "float32", "shape": [4]},
            "layers": [{"kind": "dense", "width": 4}, {"kind": "layer_norm"}, {"kind": "dense", "width": 2}],
            "objective": {"kind": "classification", "classes": 2},
        }
    )
    with pytest.raises(InvalidSpec, match="no unit"):
        prune_units(only, initial_vector(only, SEED), 0.5)
    with pytest.raises(InvalidSpec, match="share"):
        prune(only, initial_vector(only, SEED), 1.0)


def test_a_student_learns_from_its_teacher_without_labels_and_the_same_again(trained: Vector) -> None:
    small = parse_spec(json.loads(json.dumps(_as_document(DIGITS)).replace("128", "24")))
    begun = initial_vector(small, SEED)
    unlabelled = Dataset(TO_LEARN.x, torch.zeros_like(TO_LEARN.y))
    teacher = Predictor(DIGITS, torch.from_numpy(trained))
    lesson = Lesson(steps=300, batch=64, learning_rate=5e-3, hard=0.0)
    taught, loss = distil(teacher, model(small, begun), unlabelled, lesson)
    assert accuracy(small, begun) < 0.4 < 0.88 < accuracy(small, taught)
    assert loss < 1
    short = Lesson(steps=20, hard=0.5)
    first, again = (distil(teacher, model(small, begun), TO_LEARN, short)[0] for _ in range(2))
    assert (first == again).all()
    other = parse_spec(WORDS)
    with pytest.raises(InvalidSpec, match="student"):
        distil(teacher, model(other, initial_vector(other, SEED)), TO_LEARN, short)


def _as_document(architecture: Architecture) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(format_body(architecture))
    return document


# --- the worker ------------------------------------------------------------------------------------------------------


@pytest.fixture
def given(trained: Vector, tmp_path: Path) -> tuple[Given, Path]:
    """The trained model as a worker is given it, and the samples held out."""
    weights = tmp_path / "given.safetensors"
    save_vector(DIGITS, trained, weights)
    x, y = digits()
    data = save_tensors(tmp_path / "held-out.safetensors", {"x": x[-360:].copy(), "y": y[-360:].copy()})
    return Given(format_body(DIGITS), str(weights)), data


def ask(folder: Path, request: Any) -> Compressed:
    answer = Compressor(folder).handlers[type(request)](request, ())
    assert isinstance(answer, Compressed), answer
    assert (folder / OUT).stat().st_size == answer.after.file_bytes
    return answer


def test_a_worker_quantises_and_judges_both(given: tuple[Given, Path], tmp_path: Path) -> None:
    source, data = given
    done = ask(tmp_path, Quantise(source, "int8", str(data)))
    assert (done.before.dtype, done.after.dtype) == ("float32", "int8")
    assert done.after.file_bytes < 0.35 * done.before.file_bytes
    assert done.before.accuracy is not None
    assert done.after.accuracy is not None
    assert abs(done.before.accuracy - done.after.accuracy) < 0.02
    assert done.after.one_ms is not None


def test_a_worker_finds_the_smallest_that_is_hardly_worse(given: tuple[Given, Path], tmp_path: Path) -> None:
    source, data = given
    assert ask(tmp_path, Quantise(source, "", str(data), tolerance=0.5)).after.dtype == "int4"
    assert ask(tmp_path, Quantise(source, "")).after.dtype == "int8"
    refused = Compressor(tmp_path).handlers[Quantise](Quantise(source, "", str(data), tolerance=-1.0), ())
    assert isinstance(refused, Refused)
    assert refused.path == "tolerance"


def test_a_worker_prunes_and_distils_back(given: tuple[Given, Path], tmp_path: Path) -> None:
    source, data = given
    cut = ask(tmp_path, Prune(source, 0.6, structured=True, data=str(data)))
    student = tmp_path / "student.safetensors"
    (tmp_path / OUT).rename(student)
    x, y = digits()
    lessons = save_tensors(tmp_path / "lessons.safetensors", {"x": x[:-360].copy(), "y": y[:-360].copy()})
    request = Distil(source, cut.spec, str(student), str(lessons), str(data), 100, 64, 2e-3, 2.0, 0.3, 0)
    taught = ask(tmp_path, request)
    assert cut.after.accuracy is not None
    assert taught.after.accuracy is not None
    assert taught.after.accuracy > cut.after.accuracy
    assert taught.after.parameters < 0.5 * taught.before.parameters


def test_a_worker_refuses_a_dtype_that_nobody_knows(given: tuple[Given, Path], tmp_path: Path) -> None:
    refused = Compressor(tmp_path).handlers[Quantise](Quantise(given[0], "int2"), ())
    assert isinstance(refused, Refused)
    assert refused.path == "dtype"
