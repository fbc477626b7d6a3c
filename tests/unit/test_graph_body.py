"""A graph as a model's body: what it must say of itself, and what is then known of it."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from celluler.errors import InvalidSpec
from celluler.models.body import KINDS, MAX_BODY_BYTES, format_body, parse_body
from celluler.models.calls import check_call
from celluler.models.compare import diff, required_bump
from celluler.models.graph_body import GraphBody, parse_graph_body
from celluler.models.manifest import describe_model
from celluler.models.memory import micro_batch
from tests.support.specs import TINY, as_bytes

NORMED: dict[str, Any] = {
    "body": 1,
    "graph": {
        "graph": 1,
        "dimensions": {"batch": [2, 16], "sequence": [1, 6]},
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 3, "sequence"]}],
        "tensors": [
            {"name": "w", "role": "parameter", "dtype": "float32", "shape": [2, 3]},
            {"name": "norm.mean", "role": "buffer", "dtype": "float32", "shape": [3]},
            {"name": "norm.variance", "role": "buffer", "dtype": "float32", "shape": [3]},
            {"name": "norm.count", "role": "buffer", "dtype": "int64", "shape": []},
            {"name": "scale", "role": "buffer", "dtype": "float32", "shape": [3]},
        ],
        "nodes": [
            {
                "name": "normed",
                "op": "batch_norm.default",
                "args": {
                    "input": "x",
                    "weight": "@scale",
                    "bias": None,
                    "running_mean": "@norm.mean",
                    "running_var": "@norm.variance",
                    "training": True,
                    "momentum": 0.1,
                    "eps": 1e-5,
                    "cudnn_enabled": False,
                },
                "flip": True,
            },
            {"name": "turned", "op": "transpose.int", "args": {"self": "normed", "dim0": 1, "dim1": 2}},
            {"name": "out", "op": "linear.default", "args": {"input": "turned", "weight": "@w"}},
        ],
        "outputs": ["out"],
    },
    "objective": {"kind": "regression"},
    "output": ["sequence", 2],
    "activation_bytes": 4096,
}


def changed(**fields: Any) -> dict[str, Any]:
    return copy.deepcopy(NORMED) | fields


def test_what_is_known_of_a_graph() -> None:
    body = parse_graph_body(NORMED)
    assert (body.input.dtype, body.input.shape, body.output) == ("float32", (3, 6), (6, 2))
    assert [(one.name, one.role) for one in body.tensors] == [
        ("w", "weight"),
        ("norm.mean", "mean"),
        ("norm.variance", "variance"),
    ]
    assert [one.name for one in body.stored] == ["w", "norm.mean", "norm.variance", "norm.count", "scale"]
    assert (body.dimension, body.parameter_count, body.parameter_bytes) == (12, 6, 4 * 15 + 8)
    assert (body.batch, body.whole_batch, body.dtype) == ((2, 16), True, "float32")
    assert micro_batch(body, 16, 1 << 20) == 16, "the batch is part of what a norm computes"
    assert parse_body("graph", format_body(body)) == body


def test_a_call_is_held_against_the_ranges_of_a_graph() -> None:
    body = parse_graph_body(NORMED)
    assert body.answer_shape((3, 4)) == (4, 2)
    check_call(body, "float32", (2, 3, 1), "raw")
    for shape in ((1, 3, 4), (2, 3, 7), (2, 4, 4), (2, 3)):
        with pytest.raises(InvalidSpec, match=r"input\.shape"):
            check_call(body, "float32", shape, "raw")


@pytest.mark.parametrize(
    ("document", "path"),
    [
        (changed(graph={"graph": 1}), "graph.inputs"),
        (changed(output=["sequence", 0]), "output[1]"),
        (changed(output=["batch"]), "output[0]"),
        (changed(output=[]), "output"),
        (changed(activation_bytes=1 << 40), "activation_bytes"),
        (changed(objective={"kind": "adversarial", "latent": 2}), "objective.kind"),
        (changed(objective={"kind": "classification", "classes": 5}), "objective.classes"),
        (changed(objective={"kind": "next_token", "vocabulary": 2}), "input"),
        (changed(more=1), "more"),
    ],
)
def test_a_body_that_contradicts_itself_is_refused(document: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        parse_body("graph", json.dumps(document).encode())
    assert refused.value.path == path


@pytest.mark.parametrize("shape", [["batch"], [4, 3], ["batch", "batch"], ["batch", 1, 1, 1, 1, 1]])
def test_a_graph_of_other_inputs_is_no_model(shape: list[Any]) -> None:
    document = changed()
    document["graph"]["inputs"][0]["shape"] = shape
    document["graph"]["dimensions"] = {"batch": [1, 2]} if "batch" in shape else {}
    with pytest.raises(InvalidSpec, match=r"graph\.inputs\[0\]\.shape"):
        parse_graph_body(document)


def test_a_norm_may_not_write_in_evaluation() -> None:
    document = changed()
    node = document["graph"]["nodes"][0]
    del node["flip"]
    with pytest.raises(InvalidSpec, match=r"graph\.nodes\[0\]\.flip"):
        parse_graph_body(document)
    node["args"]["training"] = False
    parse_graph_body(document)


def test_a_document_is_bounded_and_its_kind_known() -> None:
    assert KINDS == ("spec", "graph")
    with pytest.raises(InvalidSpec, match="limit"):
        parse_body("graph", b" " * (MAX_BODY_BYTES + 1))
    with pytest.raises(InvalidSpec, match="body: is 'pickle'"):
        parse_body("pickle", b"{}")


def test_a_manifest_says_what_its_graph_says() -> None:
    document = format_body(parse_graph_body(NORMED))
    told = describe_model("g", "1.0.0", document, bytes(32), created_s=1, body="graph")
    assert (told.body, told.task, told.weights_bytes, told.dtype) == ("graph", "regression", 68, "float32")
    assert (told.input.shape, told.output.shape) == ((3, 6), (6, 2))
    with pytest.raises(InvalidSpec, match="unknown field"):
        describe_model("g", "1.0.0", as_bytes(TINY), bytes(32), created_s=1, body="graph")
    with pytest.raises(InvalidSpec, match="body"):
        describe_model("g", "1.0.0", document, bytes(32), created_s=1, body="onnx")


def test_two_graphs_are_compared_as_documents_and_by_their_tensors() -> None:
    other = changed()
    other["graph"]["nodes"][0]["args"]["eps"] = 1e-3
    other["graph"]["tensors"][3]["dtype"] = "int32"
    bodies = [format_body(parse_graph_body(one)) for one in (NORMED, other)]
    old, new = (describe_model("g", "1.0.0", one, bytes(32), created_s=1, body="graph") for one in bodies)
    spec = describe_model("g", "1.0.0", as_bytes(TINY), bytes(32), created_s=1)
    found = diff(old, new)
    assert {change.path for change in found.architecture} == {
        "graph.nodes[0].args.eps",
        "graph.tensors[3].dtype",
    }
    assert [change.name for change in found.tensors] == ["norm.count"]
    assert found.bump == required_bump(old, spec) == "major"
    assert diff(spec, old).tensors, "of another kind altogether"


def test_bodies_of_a_kind_are_of_that_class() -> None:
    assert isinstance(parse_body("graph", format_body(parse_graph_body(NORMED))), GraphBody)
    assert parse_body("spec", as_bytes(TINY)).kind == "spec"
