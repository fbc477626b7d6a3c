"""ONNX read as a graph: every operation, and whole models, held against onnxruntime."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from celluler.engines.formats.onnx_import import import_onnx, run, runtime
from celluler.engines.formats.onnx_module import OPERATIONS, OnnxModule
from celluler.errors import InvalidSpec
from celluler.formats.importing import Wishes
from celluler.formats.onnx_files import read_onnx
from celluler.models.body import parse_body

pytestmark = pytest.mark.thorough

TOLERANCE = 1e-5
"""Of the largest answer."""


def one_node(folder: Path, op: str, inputs: list[Any], outputs: int = 1, opset: int = 17, **attributes: Any) -> Path:
    """A model of one operation on `x`, and on constants. inputs: "x", None, or an array."""
    names, initializers = [], []
    for place, value in enumerate(inputs):
        names.append("x" if isinstance(value, str) else "" if value is None else f"c{place}")
        if isinstance(value, np.ndarray):
            initializers.append(numpy_helper.from_array(value, f"c{place}"))
    outs = ["y", *(f"y{place}" for place in range(1, outputs))]
    nodes = [helper.make_node(op, names, outs, **attributes)]
    kind = attributes.get("to", TensorProto.FLOAT)
    if op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not", "IsNaN"):
        kind = TensorProto.BOOL
    kind = TensorProto.INT64 if op in ("ArgMax", "Shape") else kind
    given = TensorProto.BOOL if op in ("And", "Or", "Not") else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", given, [None] * X.get(op, IMAGE).ndim)],
        [helper.make_tensor_value_info("y", kind, None)],
        initializers,
    )
    path = folder / "one.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def floats(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def wholes(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, dtype=np.int64)


IMAGE = floats(2, 4, 6, 6)
X: dict[str, np.ndarray[Any, Any]] = {
    **dict.fromkeys(("And", "Or", "Not"), floats(3, 4) > 0),
    "IsNaN": np.array([[1, np.nan, np.inf]], np.float32),
    **dict.fromkeys(("Log", "Sqrt"), np.abs(floats(3, 4)) + 0.1),
    **dict.fromkeys(("Gemm", "MatMul", "Einsum", "LayerNormalization", "RMSNormalization"), floats(3, 4)),
    **dict.fromkeys(("LSTM", "GRU"), floats(5, 2, 3)),
    **dict.fromkeys(("Squeeze",), floats(2, 1, 4)),
}
ONE, FEW = np.array(0.5, np.float32), floats(6)
CASES: list[tuple[str, list[Any], dict[str, Any]]] = [
    *((op, ["x"], {}) for op in ("Abs", "Neg", "Exp", "Log", "Sqrt", "Reciprocal", "Erf", "Sin", "Cos", "Floor")),
    *((op, ["x"], {}) for op in ("Ceil", "Round", "Sign", "Not", "Relu", "Sigmoid", "Tanh", "Softplus", "Softsign")),
    ("IsNaN", ["x"], {}),
    *((op, ["x"], {"opset": 18}) for op in ("Mish", "HardSwish", "Selu", "Identity", "GlobalMaxPool")),
    *((op, ["x"], {}) for op in ("GlobalAveragePool", "Softmax", "LogSoftmax", "Transpose", "Shape", "HardSigmoid")),
    *((op, ["x"], {"alpha": 0.3}) for op in ("LeakyRelu", "Elu", "Celu")),
    ("HardSigmoid", ["x"], {"alpha": 0.3, "beta": 0.4}),
    ("Gelu", ["x"], {"opset": 20}),
    ("Gelu", ["x"], {"opset": 20, "approximate": "tanh"}),
    ("PRelu", ["x", floats(4, 1, 1)], {}),
    ("Softmax", ["x"], {"opset": 11, "axis": 1}),
    *((op, ["x", one], {}) for op in ("Add", "Sub", "Mul", "Div") for one in (ONE, FEW)),
    ("Sub", [ONE, "x"], {}),
    ("Pow", ["x", np.array(2, np.float32)], {}),
    ("Pow", ["x", np.array(3, np.float32)], {}),
    *((op, ["x", one], {}) for op in ("Equal", "Greater", "Less") for one in (ONE, FEW)),
    *((op, ["x", one], {}) for op in ("GreaterOrEqual", "LessOrEqual") for one in (ONE, FEW)),
    *((op, ["x", floats(3, 4, seed=1) > 0], {}) for op in ("And", "Or")),
    *((op, ["x", FEW], {}) for op in ("Min", "Max", "Sum")),
    ("Clip", ["x", ONE, None], {}),
    ("Clip", ["x", np.array(-0.5, np.float32), ONE], {}),
    ("Cast", ["x"], {"to": TensorProto.INT64}),
    ("Where", [floats(6) > 0, "x", ONE], {}),
    ("MatMul", ["x", floats(4, 5)], {}),
    ("Einsum", ["x", floats(4, 5)], {"equation": "ij,jk->ki"}),
    ("CumSum", ["x", np.array(1, np.int64)], {}),
    ("ArgMax", ["x"], {"axis": 1, "keepdims": 0}),
    *((f"Reduce{op}", ["x", wholes(1, -1)], {"opset": 18}) for op in ("Mean", "Max", "Min", "L2", "LogSumExp")),
    *((f"Reduce{op}", ["x", wholes(2)], {"opset": 18, "keepdims": 0}) for op in ("Mean", "SumSquare")),
    ("ReduceSum", ["x", wholes(1)], {}),
    ("ReduceMean", ["x"], {"opset": 13, "axes": [1], "keepdims": 0}),
    ("Reshape", ["x", wholes(0, -1, 3)], {}),
    *(("Flatten", ["x"], {"axis": axis}) for axis in (0, 1, 2, 3)),
    ("Transpose", ["x"], {"perm": [0, 2, 3, 1]}),
    ("Squeeze", ["x", wholes(1)], {}),
    ("Unsqueeze", ["x", wholes(1, -1)], {}),
    ("Concat", ["x", floats(2, 1, 6, 6), "x"], {"axis": 1}),
    ("Split", ["x", wholes(1, 3)], {"axis": 1, "outputs": 2}),
    ("Split", ["x"], {"axis": 1, "num_outputs": 2, "opset": 18, "outputs": 2}),
    ("Slice", ["x", wholes(1, -3), wholes(3, 2**63 - 1), wholes(1, 2), wholes(1, 2)], {}),
    ("Slice", ["x", wholes(-1), wholes(-(2**63)), wholes(3), wholes(-1)], {}),
    ("Gather", ["x", np.array(1, np.int64)], {"axis": 2}),
    ("Gather", ["x", wholes(1, -1, 0)], {"axis": 1}),
    ("GatherND", ["x", np.array([[[0, 1], [1, -1]]], np.int64)], {}),
    ("GatherElements", ["x", np.zeros((2, 4, 6, 2), np.int64)], {"axis": 3}),
    ("Expand", ["x", wholes(3, 1, 1, 1, 6)], {}),
    ("Tile", ["x", wholes(1, 2, 1, 3)], {}),
    ("Trilu", ["x"], {"upper": 0}),
    ("Trilu", ["x", np.array(1, np.int64)], {}),
    ("Pad", ["x", wholes(0, 0, 1, 2, 0, 0, 0, 1), ONE], {}),
    *(("Pad", ["x", wholes(0, 0, 1, 2, 0, 0, 0, 1)], {"mode": mode}) for mode in ("reflect", "edge")),
    ("DepthToSpace", ["x"], {"blocksize": 2}),
    ("DepthToSpace", ["x"], {"blocksize": 2, "mode": "CRD"}),
    ("Upsample", ["x", np.array([1, 1, 2, 2], np.float32)], {"opset": 9}),
    ("Selu", ["x"], {"alpha": 1.5, "gamma": 1.2}),
    ("Resize", ["x", None, np.array([1, 1, 2, 3], np.float32)],
     {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
    ("Resize", ["x", None, np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"}),
    ("Resize", ["x", None, None, wholes(2, 4, 9, 11)],
     {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
    ("Gemm", ["x", floats(5, 4), floats(5)], {"transB": 1}),
    ("Gemm", ["x", floats(4, 5), floats(3, 1)], {"alpha": 0.5, "beta": 2.0}),
    ("Conv", ["x", floats(6, 2, 3, 3), floats(6)], {"group": 2, "pads": [1, 1, 1, 1], "strides": [2, 1]}),
    ("Conv", ["x", floats(3, 4, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", ["x", floats(3, 4, 2, 2)], {"pads": [0, 1, 1, 0], "dilations": [2, 2]}),
    ("ConvTranspose", ["x", floats(4, 3, 3, 3), floats(3)],
     {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 0]}),
    ("MaxPool", ["x"], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", ["x"], {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER"}),
    *(
        ("AveragePool", ["x"], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": one})
        for one in (0, 1)
    ),
    ("BatchNormalization", ["x", floats(4), floats(4), floats(4), np.abs(floats(4)) + 0.1], {"epsilon": 1e-3}),
    ("LayerNormalization", ["x", floats(4), floats(4)], {"epsilon": 1e-3}),
    ("RMSNormalization", ["x", floats(4)], {"opset": 23}),
    ("InstanceNormalization", ["x", floats(4), floats(4)], {}),
    ("GroupNormalization", ["x", floats(4), floats(4)], {"opset": 21, "num_groups": 2}),
    ("Dropout", ["x"], {}),
    ("LSTM", ["x", floats(2, 16, 3), floats(2, 16, 4), floats(2, 32)],
     {"hidden_size": 4, "direction": "bidirectional"}),
    ("GRU", ["x", floats(1, 12, 3), floats(1, 12, 4), floats(1, 24)], {"hidden_size": 4, "linear_before_reset": 1}),
]  # fmt: skip
WITHIN_MODELS = {"Constant", "ConstantOfShape", "Range", "ReduceProd", "Mod"}
"""They compute shapes; whole models below hold them."""


@pytest.mark.parametrize(("op", "inputs", "attributes"), CASES, ids=[f"{one[0]}-{at}" for at, one in enumerate(CASES)])
def test_an_operation_gives_what_onnxruntime_gives(
    op: str, inputs: list[Any], attributes: dict[str, Any], tmp_path: Path
) -> None:
    path = one_node(tmp_path, op, inputs, **attributes)
    x = X.get(op, IMAGE)
    expected = runtime(onnxruntime, path).run(["y"], {"x": x})[0]
    module = OnnxModule(read_onnx(path)).eval()
    if op == "Shape":
        return
    got = module(torch.from_numpy(x)).detach().numpy()
    assert got.shape == expected.shape
    assert np.allclose(got, expected, rtol=1e-5, atol=TOLERANCE)


def test_every_operation_is_held_against_onnxruntime() -> None:
    assert set(OPERATIONS) - WITHIN_MODELS == {op for op, _, _ in CASES}


def test_every_operation_is_on_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "formats.md").read_text("utf-8")
    told = page.partition("## Operations of ONNX that are read\n\n")[2].partition(".\n")[0]
    assert {name.strip() for name in told.replace("\n", " ").split(",")} == set(OPERATIONS)


# --- whole models, as PyTorch exports them ---------------------------------------------------------------------------


class Attending(nn.Module):
    """Sequences of any length: shapes are computed inside."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(30, 16), nn.LayerNorm(16)
        self.parts, self.out = nn.Linear(16, 48), nn.Linear(16, 30)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.embed(x))
        batch, time, width = h.shape
        query, key, value = self.parts(h).view(batch, time, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: Tensor = self.out(seen.transpose(1, 2).reshape(batch, time, width))
        return out


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.lstm(x)[0][:, -1])
        return out


def convolving() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Upsample(scale_factor=2),
        nn.ConvTranspose2d(8, 4, 2, stride=2), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


WHOLE: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[int, str], str]] = {
    "attention": (Attending, torch.randint(0, 30, (3, 9)), {0: "batch", 1: "time"}, "next_token"),
    "lstm": (Remembering, torch.randn(3, 7, 3), {0: "batch"}, "regression"),
    "cnn": (convolving, torch.randn(3, 1, 8, 8), {0: "batch"}, "classification"),
}


def exported(folder: Path, name: str) -> tuple[nn.Module, Path]:
    make, x, axes, _ = WHOLE[name]
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        module = make().eval()
        torch.onnx.export(
            module, (x,), str(folder / "m.onnx"), dynamo=False, input_names=["x"], dynamic_axes={"x": axes}
        )
    return module, folder / "m.onnx"


@pytest.mark.parametrize("name", WHOLE)
def test_a_model_that_pytorch_exported_is_a_graph_that_answers_the_same(name: str, tmp_path: Path) -> None:
    from celluler.engines.load import load_model  # noqa: PLC0415

    module, path = exported(tmp_path, name)
    imported, _, deviation = import_onnx(path, Wishes(objective=WHOLE[name][3]))
    assert deviation is not None
    assert deviation < TOLERANCE
    document, weights = imported.write(tmp_path)
    body = parse_body(imported.kind, document.read_bytes())
    x = WHOLE[name][1]
    with torch.no_grad():
        expected = module(x).numpy()
    got = load_model(body, weights).predictor().predict(x.numpy())
    assert np.abs(got - expected).max() < TOLERANCE * max(1.0, np.abs(expected).max())
    assert WHOLE[name][3] == body.objective.KIND


def two_inputs(folder: Path, other: str) -> Path:
    """An embedding of `input_ids`, times another input."""
    sides, table = ["batch", "time"], numpy_helper.from_array(floats(9, 4), "table")
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", [other], ["weight"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["weight", "last"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, sides) for name in ("input_ids", other)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*sides, 4])]
    graph = helper.make_graph(nodes, "two", inputs, outputs, [table, numpy_helper.from_array(wholes(2), "last")])
    path = folder / "two.onnx"
    opset = [helper.make_opsetid("", 17)]
    path.write_bytes(helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString())
    return path


def test_what_stands_beside_the_tokens_of_a_text_is_filled_in(tmp_path: Path) -> None:
    imported, body, deviation = import_onnx(two_inputs(tmp_path, "attention_mask"), Wishes())
    assert deviation == 0
    assert any("attention_mask" in note for note in imported.notes)
    assert (body.input.dtype, body.vocabulary) == ("int64", 9)
    assert [one.name for one in body.graph.inputs] == ["in0"]
    with pytest.raises(InvalidSpec, match="input_ids, weights_of_words"):
        import_onnx(two_inputs(tmp_path, "weights_of_words"), Wishes())


def test_a_mask_of_the_file_is_no_parameter(tmp_path: Path) -> None:
    mask = np.triu(np.full((6, 6), -np.inf, np.float32), 1)
    module = OnnxModule(read_onnx(one_node(tmp_path, "Add", ["x", mask])))
    assert not list(module.parameters())
    assert [tuple(one.shape) for one in module.buffers()] == [(6, 6)]


TWICE = np.array([1, 1, 2, 2], np.float32)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "said"),
    [
        ("NonZero", ["x"], {}, "NonZero"),
        ("Reshape", ["x", None], {}, "Reshape"),
        ("MaxPool", ["x"], {"kernel_shape": [2, 2], "outputs": 2}, "where the largest stood"),
        ("GRU", ["x", floats(1, 12, 3), floats(1, 12, 4)], {"hidden_size": 4}, "resets"),
        ("LSTM", ["x", floats(2, 16, 3), floats(2, 16, 4)], {"hidden_size": 4}, "8 weights for 1 cells"),
        ("Add", ["x", floats(5)], {}, "cannot be computed"),
        ("Mod", ["x", np.array(2, np.float32)], {"fmod": 1}, "with the sign of"),
        ("MaxPool", ["x"], {"kernel_shape": [3, 3], "pads": [0, 0, 2, 1], "ceil_mode": 1}, "pads more"),
        ("Resize", ["x", None, TWICE], {"nearest_mode": "floor"}, "resizes by nearest, half_pixel, floor"),
        ("Resize", ["x", None, TWICE], {"coordinate_transformation_mode": "asymmetric"}, "round_prefer_floor"),
        ("Resize", ["x", None, TWICE], {"mode": "linear", "antialias": 1, "opset": 18}, "by filters"),
        ("ReduceSumSquare", ["x"], {"noop_with_empty_axes": 1, "opset": 18}, "reduces nothing"),
    ],
)
def test_what_cannot_be_read_is_told_by_its_operation(
    op: str, inputs: list[Any], attributes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = one_node(tmp_path, op, inputs, **attributes)
    with pytest.raises(InvalidSpec, match=said):
        OnnxModule(read_onnx(path)).eval()(torch.from_numpy(X.get(op, IMAGE)))


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (helper.make_node("Constant", [], [], value=numpy_helper.from_array(floats(100), "c")), "gives nothing"),
        (helper.make_node("Cast", [], ["y"], to=TensorProto.FLOAT), "takes nothing"),
        (helper.make_node("Gather", ["x"], ["y"]), "missing 1 required"),
    ],
)
def test_a_node_that_takes_or_gives_nothing_is_refused(node: Any, said: str, tmp_path: Path) -> None:
    given = helper.make_tensor_value_info("x", TensorProto.INT64, ["n", 4])
    path = saved(tmp_path, helper.make_graph([node], "odd", [given], [helper.make_tensor_value_info("y", 1, None)]))
    with pytest.raises(InvalidSpec, match=said):
        import_onnx(path, Wishes())


def test_an_input_is_not_allocated_as_large_as_a_file_says(tmp_path: Path) -> None:
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 1 << 20, 1 << 20])
    node, out = helper.make_node("Relu", ["x"], ["y"]), helper.make_tensor_value_info("y", 1, None)
    with pytest.raises(InvalidSpec) as told:
        import_onnx(saved(tmp_path, helper.make_graph([node], "large", [given], [out])), Wishes())
    assert told.value.path == "graph.input"


def test_what_onnxruntime_does_not_load_is_refused(tmp_path: Path) -> None:
    # Read here it would add; the standard knows no addition of two types.
    half = numpy_helper.from_array(np.ones((1, 3), np.float16), "half")
    given, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "half"], ["y"])], "odd", [given], [out], [half])
    with pytest.raises(InvalidSpec, match=r"onnxruntime .* does not load it") as told:
        import_onnx(saved(tmp_path, graph), Wishes())
    assert told.value.hint


def test_whole_numbers_of_either_width_are_taken(tmp_path: Path) -> None:
    table = numpy_helper.from_array(np.arange(20, dtype=np.float32).reshape(5, 4), "table")
    for kind in (TensorProto.INT32, TensorProto.INT64):
        given = helper.make_tensor_value_info("x", kind, ["n", 3])
        out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, 4])
        node = helper.make_node("Gather", ["table", "x"], ["y"])
        _, body, deviation = import_onnx(
            saved(tmp_path, helper.make_graph([node], "t", [given], [out], [table])), Wishes()
        )
        assert (body.input.dtype, body.vocabulary, deviation) == ("int64", 5, 0.0)


def test_a_library_that_is_named_and_not_used_is_no_reason_to_refuse(tmp_path: Path) -> None:
    given, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy")
    path = saved(tmp_path, helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "odd", [given], [out]))
    model = onnx.load(path)
    model.opset_import.extend([helper.make_opsetid("ai.onnx.ml", 2), helper.make_opsetid("com.microsoft", 1)])
    onnx.save(model, path)
    assert import_onnx(path, Wishes())[2] == 0.0
    model.graph.node[0].domain = "com.microsoft"
    onnx.save(model, path)
    with pytest.raises(InvalidSpec, match=r"of the domain 'com\.microsoft'"):
        import_onnx(path, Wishes())


def saved(folder: Path, graph: Any) -> Path:
    path = folder / "odd.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def test_what_onnxruntime_cannot_run_is_told_of_the_file(tmp_path: Path) -> None:
    path = one_node(tmp_path, "Relu", ["x"])
    with pytest.raises(InvalidSpec, match="onnxruntime cannot run it"):
        run(runtime(onnxruntime, path), {"x": np.zeros(3, np.float32)})
