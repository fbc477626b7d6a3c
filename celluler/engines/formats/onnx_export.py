"""A body of ours as ONNX: its graph of operations, each written by a closed table, held against onnxruntime."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from celluler.engines.formats.onnx_import import TOLERANCE, run, runtime
from celluler.engines.formats.onnx_write_layers import LAYERS
from celluler.engines.formats.onnx_write_math import MATH
from celluler.engines.formats.onnx_write_shapes import SHAPES
from celluler.engines.formats.onnx_writer import IR_VERSION, OPSET, Known, NotWritable, Writer, code_of
from celluler.engines.graph.export import export_graph
from celluler.engines.graph.interpret import GraphModule
from celluler.engines.graph.table import TORCH_DTYPES
from celluler.engines.load import load_model
from celluler.engines.modules import module_of
from celluler.engines.objectives_wired import Run, answer
from celluler.errors import InvalidSpec, LocalError
from celluler.models.body import Body
from celluler.models.calls import outputs_of
from celluler.models.graph import Graph

WRITES = LAYERS | MATH | SHAPES
"""Every operation that is written."""
RAW = "raw"
MAX_BYTES = (2 << 30) - (1 << 20)
"""Protobuf ends there, and tensors in a second file are what we refuse to read ourselves."""
_SIZES = {"batch": 3, "sequence": 5}
"""Of the first of two passes, where the graph takes that; what differs between them varies."""


def export_onnx(body: Body, weights: Path, path: Path) -> float | None:
    """Write a model in evaluation. The largest difference between its answers by onnxruntime and by us, relative to
    the largest answer; None where onnxruntime is not installed. Raises InvalidSpec."""
    if body.parameter_bytes > MAX_BYTES:
        raise InvalidSpec("to", f"{body.parameter_bytes} bytes of weights are more than one ONNX file holds")
    model = load_model(body, weights)
    module = module_of(body, torch.from_numpy(model.vector), model.still).eval()
    path.write_bytes(onnx_of(as_graph(body, module)).SerializeToString())
    return _difference(body, module, path)


def as_graph(body: Body, module: nn.Module) -> GraphModule:
    """A body's own graph, or the one that its raw answers are traced to."""
    if isinstance(module, GraphModule):
        return module
    if RAW not in outputs_of(body):
        raise InvalidSpec("to", "its answers are drawn at random: that is no ONNX graph", hint="keep it in our form")
    given, traced = (sample(body, 3),), _Answering(body, _traceable(module))
    return export_graph(traced, given, dynamic={"batch": (1, 1024)}, compare=False).module().eval()


class _Answering(nn.Module):
    """The nets of a model as they answer: an autoencoder's one through the other, an encoder alone."""

    def __init__(self, body: Body, nets: nn.Module) -> None:
        super().__init__()
        self.body, self.nets = body, nets

    def forward(self, x: Tensor) -> Tensor:
        return answer(self.body, Run(self.nets), x, RAW)


class _PlainLstm(nn.Module):
    """Without the guard against lower precision, which a trace takes for a part of its own."""

    def __init__(self, lstm: nn.LSTM, *, last: bool) -> None:
        super().__init__()
        self.lstm, self.last = nn.LSTM(lstm.input_size, lstm.hidden_size, lstm.num_layers, batch_first=True), last
        self.lstm.load_state_dict(lstm.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.lstm(x)[0]
        return states[:, -1] if self.last else states


def _traceable(module: nn.Module) -> nn.Module:
    """A copy whose tensors have a memory of their own: those of a spec are views of one vector."""
    module = copy.deepcopy(module)
    for part in list(module.modules()):  # what is put in below is as it should be
        for name, value in part._parameters.items():
            part._parameters[name] = None if value is None else nn.Parameter(value.detach().clone())
        for name, held in part._buffers.items():
            part._buffers[name] = None if held is None else held.clone()
        for name, child in part._modules.items():
            if isinstance(child, nn.LSTM):
                part._modules[name] = _PlainLstm(child, last=bool(getattr(child, "last", False)))
    return module


def sample(body: Body, count: int, seed: int = 0) -> Tensor:
    """Inputs that the model takes: (count, …)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, *body.input.shape)
    if body.input.dtype == "int64":
        return torch.randint(0, body.vocabulary, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def onnx_of(module: GraphModule) -> Any:
    """The ModelProto of a graph in evaluation. Raises NotWritable for an operation that ONNX has no word for; a
    LocalError without the package."""
    try:
        from onnx import helper, numpy_helper  # noqa: PLC0415
    except ImportError as error:
        raise LocalError("writing ONNX needs the package onnx", hint="pip install 'celluler[formats]'") from error
    graph = module.graph.evaluated()
    known = _known(graph)
    held = {one.name: (TORCH_DTYPES[one.dtype], one.shape) for one in graph.tensors}
    writer = Writer(known, held)
    for given in graph.inputs:
        writer.bind(given.name, given.name)
    for place, node in enumerate(graph.nodes):
        if node.op not in WRITES:
            raise NotWritable(node.op)
        arguments = {one.name: one.default for one in node.operation.arguments if not one.required}
        arguments |= dict(node.arguments)
        dtype = known[node.name][0] if node.name in known else torch.int64
        try:
            writer.bind(node.name, WRITES[node.op](writer, arguments, dtype))
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise NotWritable(node.op, f"nodes[{place}] cannot be said in ONNX: {str(error)[:128]}") from error
    out = writer.node("Identity", writer.ref(graph.outputs[0]))
    tensors = module.tensors()
    initializers = [numpy_helper.from_array(array, name) for name, array in writer.constants.items()]
    initializers += [
        numpy_helper.from_array(tensors[name].detach().numpy(), f"@{name}") for name in sorted(writer.used)
    ]
    inputs = [
        helper.make_tensor_value_info(one.name, code_of(TORCH_DTYPES[one.dtype]), one.shape) for one in graph.inputs
    ]
    told = known[graph.outputs[0].name] if not graph.outputs[0].tensor else held[graph.outputs[0].name]
    output = helper.make_tensor_value_info(out, code_of(told[0]), [_side(side, at) for at, side in enumerate(told[1])])
    written = helper.make_graph(writer.nodes, "celluler", inputs, [output], initializers)
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_model(written, opset_imports=opset, ir_version=IR_VERSION, producer_name="celluler")


def _side(side: int | None, axis: int) -> int | str:
    return side if side is not None else ("batch" if axis == 0 else "sequence" if axis == 1 else f"side{axis}")


def _known(graph: Graph) -> dict[str, Known]:
    """Type and shape of every value in evaluation, found on the meta device with two batches and two lengths."""
    passes = [_shapes(graph, sizes) for sizes in _two_sizes(graph)]
    known: dict[str, Known] = {}
    for name, (dtype, shape) in passes[0].items():
        other = passes[1][name][1]
        known[name] = dtype, tuple(one if one == two else None for one, two in zip(shape, other, strict=True))
    return known


def _two_sizes(graph: Graph) -> Iterator[dict[str, int]]:
    """Of every dimension that may vary, two that it may have."""
    first = {name: min(max(low, _SIZES[name]), high) for name, low, high in graph.dimensions}
    yield first
    yield {name: first[name] + 1 if first[name] < high else max(low, high - 1) for name, low, high in graph.dimensions}


def _shapes(graph: Graph, sizes: Mapping[str, int]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """graph: as it is in evaluation."""
    empty = GraphModule(graph).eval()
    found: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}

    def observe(place: int, _: object, out: Any) -> None:
        if isinstance(out, Tensor):
            found[graph.nodes[place].name] = out.dtype, tuple(out.shape)

    given = []
    for one in graph.inputs:
        shape = [sizes[side] if isinstance(side, str) else side for side in one.shape]
        found[one.name] = TORCH_DTYPES[one.dtype], tuple(shape)
        given.append(torch.empty(shape, dtype=TORCH_DTYPES[one.dtype], device="meta"))
    empty.run(given, observe)
    return found


def _difference(body: Body, module: nn.Module, path: Path) -> float | None:
    try:
        import onnxruntime  # noqa: PLC0415
    except ImportError:
        return None
    session = runtime(onnxruntime, path)
    worst = 0.0
    for count in (body.batch[0], min(3, body.batch[1])):
        x = sample(body, count, seed=count)
        with torch.inference_mode():
            ours = answer(body, Run(module), x, RAW).numpy()
        theirs = run(session, {session.get_inputs()[0].name: x.numpy()})
        if ours.shape != theirs.shape:
            raise InvalidSpec("to", f"as ONNX it gives {theirs.shape}, not {ours.shape}")
        worst = max(worst, float(np.abs(ours - theirs).max() / max(1e-6, np.abs(ours).max())))
    if not (math.isfinite(worst) and worst <= TOLERANCE):
        raise InvalidSpec("to", f"as ONNX it answers otherwise, by {worst:.2g} of the largest answer")
    return worst
