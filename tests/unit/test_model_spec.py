from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from celluler.errors import InvalidSpec
from celluler.models.calls import check_call
from celluler.models.interface import read_interface
from celluler.models.layers import Budget
from celluler.models.reference import render
from celluler.models.spec import MAX_SPEC_BYTES, format_spec, parse_spec
from tests.support.specs import CNN, MLP, RELU, TINY, WORDS, as_bytes, dense, regression


def refused(document: Any, **budget: int) -> InvalidSpec:
    with pytest.raises(InvalidSpec) as caught:
        parse_spec(document, budget=Budget(**budget))
    return caught.value


def changed(document: dict[str, Any], *path: Any, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(document)
    inner = document
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return document


def test_an_mlp_is_counted() -> None:
    architecture = parse_spec(as_bytes(MLP))
    assert architecture.parameter_count == 64 * 128 + 128 + 128 * 64 + 64 + 64 * 10 + 10
    assert architecture.parameter_bytes == 4 * architecture.dimension == 4 * architecture.parameter_count
    assert architecture.output == (10,)
    assert [tensor.name for tensor in architecture.tensors][:2] == ["0.weight", "0.bias"]
    assert architecture.cost.multiply_adds == 64 * 128 + 128 + 128 * 64 + 64 + 64 * 10


def test_running_statistics_count_as_bytes_but_not_as_parameters() -> None:
    architecture = parse_spec(regression({"kind": "batch_norm"}))
    assert (architecture.parameter_count, architecture.dimension) == (16, 32)


def test_tensors_of_nested_layers_are_named_by_their_place() -> None:
    names = [tensor.name for tensor in parse_spec(CNN).tensors]
    assert "1.weight" in names
    assert "4.0.0.0.weight" in names
    assert "4.1.0.1.running_var" in names


def test_integers_go_through_an_embedding() -> None:
    architecture = parse_spec(WORDS)
    assert architecture.vocabulary == 7
    assert architecture.output == (1,)


def test_a_canonical_document_gives_the_same_architecture() -> None:
    for document in (MLP, CNN, TINY, WORDS):
        architecture = parse_spec(document)
        assert parse_spec(format_spec(architecture)) == architecture
        assert format_spec(parse_spec(format_spec(architecture))) == format_spec(architecture)


@pytest.mark.parametrize(
    ("document", "path"),
    [
        (changed(TINY, "layers", 2, "width", value=2.0), "layers[2].width"),
        (changed(TINY, "layers", 2, "width", value=True), "layers[2].width"),
        (changed(TINY, "layers", 2, "width", value=0), "layers[2].width"),
        (changed(TINY, "layers", 2, "wide", value=3), "layers[2].wide"),
        (changed(TINY, "layers", 0, value={"kind": "dense"}), "layers[0].width"),
        (changed(TINY, "layers", 0, value={"kind": "lambda", "code": "…"}), "layers[0].kind"),
        (changed(TINY, "layers", 0, value={"kind": ["dense"]}), "layers[0].kind"),
        (changed(TINY, "layers", 0, value="dense"), "layers[0]"),
        (changed(TINY, "layers", value=[]), "layers"),
        (changed(TINY, "layers", value={}), "layers"),
        (changed(TINY, "layers", 1, "function", value="eval"), "layers[1].function"),
        (changed(TINY, "objective", "classes", value=3), "objective.classes"),
        (changed(TINY, "objective", "kind", value="magic"), "objective.kind"),
        (changed(TINY, "objective", value=None), "objective"),
        (changed(TINY, "input", "shape", value=[]), "input.shape"),
        (changed(TINY, "input", "shape", value=[3, -1]), "input.shape[1]"),
        (changed(TINY, "input", "dtype", value="int64"), "layers[0]"),
        (changed(TINY, "input", "layout", value="NCHW"), "input.layout"),
        (changed(TINY, "spec", value=2), "spec"),
        (changed(TINY, "author", value="me"), "author"),
        ({key: value for key, value in TINY.items() if key != "input"}, "input"),
        (regression({"kind": "dropout", "rate": 1.0}), "layers[0].rate"),
        (regression({"kind": "dropout", "rate": float("nan")}), "layers[0].rate"),
        (regression({"kind": "dropout", "rate": 10**400}), "layers[0].rate"),
        (regression({"kind": "reshape", "shape": [3, 3]}), "layers[0].shape"),
        (regression({"kind": "max_pool2d", "size": 2}), "layers[0]"),
        (regression({"kind": "conv2d", "channels": 2, "kernel": 9}, shape=(1, 8, 8)), "layers[0]"),
        (regression({"kind": "conv2d", "channels": 3, "kernel": 3, "groups": 2}, shape=(2, 8, 8)), "layers[0].groups"),
        (regression({"kind": "residual", "layers": [dense(3)]}), "layers[0]"),
        (regression({"kind": "residual", "layers": [RELU, {"kind": "embedding", "vocabulary": 2, "width": 2}]}),
         "layers[0].layers[1]"),
        (regression({"kind": "batch_norm"}, shape=(1, 2, 3, 4)), "layers[0]"),
        (regression({"kind": "flatten"}, dtype="int64"), "layers"),
        ([], ""),
        (None, ""),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_its_place(document: Any, path: str) -> None:
    assert refused(document).path == path


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"{",
        b"NaN",
        b"[" * 60_000,
        b"9" * 60_000,
        b'{"spec": 1, "spec": 1}',
        b'{"spec": Infinity}',
        b" " * (MAX_SPEC_BYTES + 1),
        b"[" * 40 + b"]" * 40,
    ],
)
def test_bytes_that_are_no_document_are_refused(text: bytes) -> None:
    refused(text)


def test_a_document_that_contains_itself_is_refused() -> None:
    body: list[Any] = []
    body.append({"kind": "repeat", "times": 2, "layers": body})
    refused(regression(*body))


def nest(layer: dict[str, Any], deep: int, times: int = 1000) -> dict[str, Any]:
    for _ in range(deep):
        layer = {"kind": "repeat", "times": times, "layers": [layer]}
    return layer


@pytest.mark.parametrize(
    "document",
    [
        regression(dense(1 << 20), dense(1 << 20)),  # 10^12 parameters
        regression(nest({"kind": "dropout", "rate": 0.5}, 9)),  # 10^27 layers
        regression(nest(dense(8), 3)),
        regression(nest(dense(2048), 1)),  # its parameters, not its layers, are too many
        regression(nest({"kind": "residual", "layers": [RELU], "join": "concat"}, 1)),  # doubles each time
        regression({"kind": "conv2d", "channels": 1 << 10, "kernel": 1}, shape=(1, 1 << 10, 1 << 10)),
        regression(RELU, shape=(1 << 20, 1 << 20, 1 << 20, 1 << 20)),
        regression({"kind": "embedding", "vocabulary": 1 << 20, "width": 1 << 20}, dtype="int64"),
    ],
)  # fmt: skip
def test_a_model_over_the_budget_is_refused_before_anything_is_allocated(document: dict[str, Any]) -> None:
    assert "budget" in refused(as_bytes(document)).problem


def test_each_cost_has_a_budget_of_its_own() -> None:
    cost = parse_spec(MLP).cost
    for name in ("parameter_bytes", "activation_bytes", "multiply_adds", "layers", "working_bytes"):
        parse_spec(MLP, budget=Budget(**{name: max(getattr(cost, name), 256)}))
        refused(MLP, **{name: getattr(cost, name) - 1})


def test_what_an_answer_holds_at_once_is_of_one_layer_and_of_what_waits_behind_it() -> None:
    branch = {"kind": "residual", "layers": [dense(32), RELU, dense(8)]}
    inside, at_once = (
        parse_spec(regression({"kind": "repeat", "times": times, "layers": [branch]})).cost for times in (1, 50)
    )
    assert inside.working_bytes == at_once.working_bytes == 4 * (8 + 32 + 32)  # the sum's other side, in, out
    assert at_once.activation_bytes == 50 * inside.activation_bytes


def test_a_repeat_may_change_its_shape_once() -> None:
    architecture = parse_spec(regression({"kind": "repeat", "times": 3, "layers": [dense(5)]}))
    assert [tensor.shape for tensor in architecture.tensors if len(tensor.shape) == 2] == [(5, 8), (5, 5), (5, 5)]


def test_the_reference_page_is_what_the_code_says() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "model-spec.md"
    assert page.read_text() == render()


def test_json_of_a_document_and_the_document_are_the_same() -> None:
    assert parse_spec(json.dumps(CNN).encode()) == parse_spec(CNN)


@pytest.mark.parametrize(
    ("dtype", "shape", "output", "path"),
    [
        ("float64", (1, 64), "raw", "input.dtype"),
        ("int64", (1, 64), "raw", "input.dtype"),
        ("float32", (64,), "raw", "input.shape"),
        ("float32", (0, 64), "raw", "input.shape"),
        ("float32", (1, 8, 8), "raw", "input.shape"),
        ("float32", (1, 64), "code", "output"),
    ],
)
def test_a_call_that_does_not_fit_is_refused_without_the_model(
    dtype: str, shape: tuple[int, ...], output: str, path: str
) -> None:
    with pytest.raises(InvalidSpec) as caught:
        check_call(parse_spec(MLP), dtype, shape, output)
    assert caught.value.path == path


def test_the_answer_to_a_call_is_known_in_shape() -> None:
    check_call(parse_spec(MLP), "float32", (3, 64), "labels")
    assert read_interface(parse_spec(MLP)).answer(3, "labels") == ("int64", (3,), 24)
    assert read_interface(parse_spec(MLP)).answer(3, "raw") == ("float32", (3, 10), 120)
    with pytest.raises(InvalidSpec, match="output"):
        check_call(parse_spec(WORDS), "int64", (1, 5), "labels")
