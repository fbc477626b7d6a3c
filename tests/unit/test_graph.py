"""The parser of graphs: what a stranger writes is a graph within the budget, or InvalidSpec with its place."""

from __future__ import annotations

import copy
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.engines.graph.interpret import GraphModule
from celluler.engines.graph.measure import measure
from celluler.engines.graph.table import FUNCTIONS, TORCH_DTYPES
from celluler.errors import InvalidSpec
from celluler.models import graph_reference
from celluler.models.graph import GraphBudget, format_graph, parse_graph
from celluler.models.graph_ops import DTYPES, FACTORIES, FLIPS, OPERATIONS, RANDOM, WRITES

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "graph-ops.md"
HIDDEN = {"layout", "device", "pin_memory", "memory_format", "generator", "non_blocking"}


def document() -> dict[str, Any]:
    return {
        "graph": 1,
        "dimensions": {"batch": [1, 8]},
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}],
        "tensors": [
            {"name": "w", "role": "parameter", "dtype": "float32", "shape": [3, 4], "aliases": ["tied"]},
            {"name": "norm.count", "role": "buffer", "dtype": "int64", "shape": []},
        ],
        "nodes": [
            {"name": "a", "op": "linear.default", "args": {"input": "x", "weight": "@w"}},
            {"name": "n", "op": "sym_size.int", "args": {"self": "x", "dim": 0}},
            {"name": "b", "op": "view.default", "args": {"self": "a", "size": ["n", 3, 1]}},
            {"name": "p", "op": "unbind.int", "args": {"self": "b", "dim": 1}},
            {"name": "g", "op": "getitem.default", "args": {"self": "p", "index": 2}},
            {"name": "d", "op": "dropout.default", "args": {"input": "g", "p": 0.5, "train": True}, "flip": True},
            {"name": "c", "op": "add_.Tensor", "args": {"self": "@norm.count", "other": 1}, "train_only": True},
            {"name": "y", "op": "clamp.default", "args": {"self": "d", "min": "-inf"}},
        ],
        "outputs": ["y"],
    }


Change = Callable[[dict[str, Any]], Any]


def put(place: str, value: Any) -> Change:
    """A change of a document at `nodes.0.args.input`."""

    def change(root: Any) -> None:
        *way, last = place.split(".")
        for step in way:
            root = root[int(step)] if isinstance(root, list) else root[step]
        root[int(last) if isinstance(root, list) else last] = value

    return change


def test_a_document_is_read_and_written_in_one_canonical_form() -> None:
    graph = parse_graph(json.dumps(document()).encode())
    assert parse_graph(format_graph(graph)) == graph
    assert format_graph(parse_graph(format_graph(graph))) == format_graph(graph)
    spelled_out = document()
    spelled_out["nodes"][0]["args"]["bias"] = None  # a default
    assert parse_graph(spelled_out) == graph
    assert graph.parameter_count == 12


def test_a_graph_runs_as_it_says() -> None:
    module = GraphModule(parse_graph(document()))
    assert all(one.is_meta for one in module.tensors().values())
    module.put("w", torch.ones(3, 4))
    module.put("norm.count", torch.tensor(0))
    x = torch.randn(5, 4)
    assert torch.allclose(module.eval()(x), x.sum(1, keepdim=True), atol=1e-5)
    assert int(module.tensors()["norm.count"]) == 0
    module.train()(x)
    assert int(module.tensors()["norm.count"]) == 1


MALICIOUS: dict[str, tuple[Change, str]] = {
    "an operation that reads files": (put("nodes.0.op", "from_file.default"), "nodes[0].op"),
    "uninitialised memory": (put("nodes.0.op", "empty.memory_format"), "nodes[0].op"),
    "memory by stride": (put("nodes.0.op", "as_strided.default"), "nodes[0].op"),
    "another's memory": (put("nodes.0.op", "set_.source_Tensor"), "nodes[0].op"),
    "a resize": (put("nodes.0.op", "resize_.default"), "nodes[0].op"),
    "an attribute of python": (put("nodes.0.op", "__class__"), "nodes[0].op"),
    "an operation that is a list": (put("nodes.0.op", ["linear.default"]), "nodes[0].op"),
    "a node that names itself": (put("nodes.0.args.input", "a"), "nodes[0].args.input"),
    "a cycle": (put("nodes.0.args.input", "b"), "nodes[0].args.input"),
    "an unknown tensor": (put("nodes.0.args.weight", "@v"), "nodes[0].args.weight"),
    "a number for a tensor": (put("nodes.0.args.input", 3), "nodes[0].args.input"),
    "pieces for a tensor": (put("nodes.4.args.self", "b"), "nodes[4].args.self"),
    "a tensor for an integer": (put("nodes.2.args.size", ["x"]), "nodes[2].args.size[0]"),
    "a truth for an integer": (put("nodes.1.args.dim", True), "nodes[1].args.dim"),
    "an argument too many": (put("nodes.0.args.device", "cuda"), "nodes[0].args.device"),
    "an argument too few": (put("nodes.0.args", {"input": "x"}), "nodes[0].args.weight"),
    "a million integers": (put("nodes.2.args.size", [1] * 1_000_000), "nodes[2].args.size"),
    "a shape of 10^12": (put("nodes.2.args.size", [1 << 20, 1 << 20]), "nodes[2].args.size"),
    "an integer beyond all": (put("nodes.2.args.size", [10**100]), "nodes[2].args.size[0]"),
    "10^12 parameters": (put("tensors.0.shape", [1_000_000, 1_000_000]), "tensors[0]"),
    "a negative size": (put("tensors.0.shape", [-1, 4]), "tensors[0].shape[0]"),
    "too many axes": (put("tensors.0.shape", [1] * 99), "tensors[0].shape"),
    "a dtype of nobody": (put("tensors.0.dtype", "complex64"), "tensors[0].dtype"),
    "trained integers": (put("tensors.0.dtype", "int64"), "tensors[0].dtype"),
    "a tensor's name twice": (put("tensors.1.name", "tied"), "tensors[1]"),
    "a path for a name": (put("tensors.0.name", "../../etc/passwd"), "tensors[0].name"),
    "a node's name twice": (put("nodes.2.name", "a"), "nodes[2].name"),
    "a name with a marker": (put("nodes.0.name", "@w"), "nodes[0].name"),
    "NaN": (put("nodes.5.args.p", float("nan")), "nodes[5].args.p"),
    "a text for a number": (put("nodes.5.args.p", "nan"), "nodes[5].args.p"),
    "writing into a parameter": (put("nodes.6.args.self", "@w"), "nodes[6].args.self"),
    "writing into an input": (put("nodes.6.args.self", "x"), "nodes[6].args.self"),
    "writing while evaluating": (put("nodes.6.train_only", False), "nodes[6].train_only"),
    "computing only in training": (put("nodes.0.train_only", True), "nodes[0].train_only"),
    "a flip of what has none": (put("nodes.0.flip", True), "nodes[0].flip"),
    "an unknown field": (put("code", "import os"), "code"),
    "an unknown field of a node": (put("nodes.0.code", "import os"), "nodes[0].code"),
    "an unknown dimension": (put("inputs.0.shape", ["time", 4]), "inputs[0].shape[0]"),
    "a dimension upside down": (put("dimensions.batch", [8, 1]), "dimensions.batch[1]"),
    "an input of 10^12": (put("inputs.0.shape", [1 << 20, 1 << 20]), "inputs[0].shape"),
    "an output of nothing": (put("outputs", ["z"]), "outputs[0]"),
    "an output that is an integer": (put("outputs", ["n"]), "outputs[0]"),
    "a value of training": (put("evaluation", {"nodes": [], "outputs": ["y"]}), "evaluation.outputs[0]"),
    "writing in a branch": (
        put("evaluation", {"nodes": [document()["nodes"][6]], "outputs": ["x"]}),
        "evaluation.nodes[0]",
    ),
    "flipping in a branch": (
        put(
            "evaluation",
            {"nodes": [document()["nodes"][5] | {"args": {"input": "x", "p": 0.5, "train": True}}], "outputs": ["d"]},
        ),
        "evaluation.nodes[0]",
    ),
    "another version": (put("graph", 2), "graph"),
    "no object": (put("nodes", {}), "nodes"),
}


@pytest.mark.parametrize(("change", "path"), MALICIOUS.values(), ids=MALICIOUS)
def test_a_malicious_document_is_refused_at_its_place(change: Change, path: str) -> None:
    bad = document()
    change(bad)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidSpec) as refused:
            parse_graph(bad)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refused.value.path == path
    assert peak < 32 << 20


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"graph":1,"graph":1}', b'{"graph":NaN}', b" " * (5 << 20)]
)
def test_what_is_no_document_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidSpec):
        parse_graph(raw)


def test_a_budget_bounds_nodes_tensors_and_bytes() -> None:
    for budget in (GraphBudget(nodes=7), GraphBudget(tensors=1), GraphBudget(tensor_bytes=47)):
        with pytest.raises(InvalidSpec):
            parse_graph(document(), budget=budget)
    branch = {"nodes": [{"name": "a", "op": "relu.default", "args": {"self": "x"}}], "outputs": ["a"]}
    parse_graph(document() | {"evaluation": branch}, budget=GraphBudget(nodes=9))
    with pytest.raises(InvalidSpec, match=r"evaluation\.nodes"):
        parse_graph(document() | {"evaluation": branch}, budget=GraphBudget(nodes=8))


def test_a_pass_is_measured_before_anything_is_allocated() -> None:
    hungry = document()
    hungry["nodes"] = [{"name": "v0", "op": "outer.default", "args": {"self": "x", "vec2": "x"}}]
    hungry["inputs"] = [{"name": "x", "dtype": "float32", "shape": [1 << 18]}]
    del hungry["dimensions"]
    hungry["outputs"] = ["v0"]
    with pytest.raises(InvalidSpec) as refused:
        measure(parse_graph(hungry))
    assert refused.value.path == "nodes[0]"
    misfit = document()
    misfit["nodes"][2]["args"]["size"] = ["n", 5]
    with pytest.raises(InvalidSpec) as refused:
        measure(parse_graph(misfit))
    assert refused.value.path == "nodes[2]"
    many = document()
    many["nodes"][2]["args"]["size"] = [3, "n", 1]
    many["dimensions"]["batch"] = [1, 100_000]
    with pytest.raises(InvalidSpec, match="pieces"):
        measure(parse_graph(many))
    assert measure(parse_graph(document()), {"batch": 2}).outputs == (("float32", (2, 1)),)


def test_work_that_leaves_no_bytes_behind_is_counted_too() -> None:
    lazy = document()
    lazy["inputs"][0]["shape"] = ["batch", 1]
    lazy["nodes"] = [{"name": "wide", "op": "expand.default", "args": {"self": "x", "size": [1 << 22, 1 << 10]}}]
    lazy["dimensions"] = {"batch": [1, 1]}
    summing = [{"name": f"s{at}", "op": "sum.default", "args": {"self": "wide"}} for at in range(24)]
    product = [
        {"name": "tall", "op": "expand.default", "args": {"self": "x", "size": [1 << 10, 1 << 22]}},
        {"name": "s0", "op": "matmul.default", "args": {"self": "tall", "other": "wide"}},
    ]
    for nodes in (summing, product):
        with pytest.raises(InvalidSpec, match="operations") as refused:
            measure(parse_graph(lazy | {"nodes": lazy["nodes"] + nodes, "outputs": ["s0"]}))
        assert refused.value.path == f"nodes[{len(nodes)}]"


def test_inputs_are_held_against_their_ranges() -> None:
    module = GraphModule(parse_graph(document()))
    for wrong in (torch.zeros(9, 4), torch.zeros(0, 4), torch.zeros(2, 5), torch.zeros(4), torch.zeros(2, 4).double()):
        with pytest.raises(InvalidSpec, match=r"inputs\.x"):
            module(wrong)
    with pytest.raises(InvalidSpec):
        module()


# --- the tables ------------------------------------------------------------------------------------------------------


def test_the_page_is_as_the_code_renders_it() -> None:
    assert PAGE.read_text("utf-8") == graph_reference.render()


def test_the_table_says_what_the_installed_torch_says() -> None:
    assert set(FUNCTIONS) == set(OPERATIONS)
    assert set(TORCH_DTYPES) == set(DTYPES)
    assert {*FACTORIES, *FLIPS, *RANDOM, *WRITES} <= set(OPERATIONS)
    for name, function in FUNCTIONS.items():
        ours = {one.name: one for one in OPERATIONS[name].arguments}
        if not isinstance(function, torch._ops.OpOverload):
            continue
        assert str(function).removeprefix("aten.") == name
        theirs = [one for one in function._schema.arguments if one.name not in HIDDEN]
        assert [one.name for one in theirs] == list(ours), name
        for one in theirs:
            assert one.has_default_value() is not ours[one.name].required, name
            if one.has_default_value():
                assert one.default_value == ours[one.name].default, name


def test_nothing_on_the_list_may_never_be_on_it() -> None:
    for name in OPERATIONS:
        assert not name.startswith(("from_file", "empty", "as_strided", "set_", "resize", "_", "nonzero", "masked_sel"))
        assert name in WRITES or not name.partition(".")[0].endswith("_")


# --- garbage ---------------------------------------------------------------------------------------------------------

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["x", "a", "@w", "n", "+inf", "", "é"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(root: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [way] if way else []
    for key, value in root.items() if isinstance(root, dict) else enumerate(root) if isinstance(root, list) else ():
        found += places(value, (*way, key))
    return found


@settings(max_examples=150, deadline=None)
@given(place=st.sampled_from(places(document())), junk=JUNK)
def test_garbage_anywhere_is_a_graph_or_refused(place: tuple[Any, ...], junk: Any) -> None:
    bad = copy.deepcopy(document())
    root: Any = bad
    for step in place[:-1]:
        root = root[step]
    root[place[-1]] = junk
    try:
        graph = parse_graph(bad)
    except InvalidSpec:
        return
    assert parse_graph(format_graph(graph)) == graph


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=64))
def test_bytes_of_any_kind_are_refused(raw: bytes) -> None:
    with pytest.raises(InvalidSpec):
        parse_graph(raw)
