"""An ONNX graph as a torch module, by a closed table of operations: to be traced into a graph of ours.

Tensors of the file become parameters (finite floats, more than one element), running statistics and masks buffers, and
single numbers and shapes stay numbers. Names of the file are never names of attributes of ours: each tensor gets a
place under `weights`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from celluler.engines.filled import FILLED
from celluler.engines.formats import onnx_layers, onnx_math, onnx_shapes
from celluler.engines.formats.onnx_values import DTYPES, MAX_HOST, Host, Node, NotReadable, Value, host_of
from celluler.errors import InvalidSpec, LocalError
from celluler.formats.onnx_files import opset_of

OPERATIONS = onnx_math.OPERATIONS | onnx_shapes.OPERATIONS | onnx_layers.OPERATIONS
"""Every operation that is read. A test holds each against onnxruntime."""

MOST_NUMBERS = 4096
"""Of what is computed beside tensors: it could be doubled by every node."""


@dataclass(frozen=True, slots=True)
class Step:
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Given:
    """An input of the graph. sides: a size, or a name where it may vary."""

    name: str
    dtype: torch.dtype
    sides: tuple[int | str, ...]


class OnnxModule(nn.Module):
    """forward takes the one input that is not filled, and gives the first output."""

    def __init__(self, model: Any) -> None:
        """model: as `celluler.formats.onnx_files.read_onnx` gives it. Raises InvalidSpec."""
        super().__init__()
        self._opset = opset_of(model)
        self._steps = tuple(_step(node) for node in model.graph.node)
        self._hosts: dict[str, Host] = {}
        self._places: dict[str, str] = {}
        self.weights = nn.Module()
        statistics = {name for step in self._steps if step.op == "BatchNormalization" for name in step.inputs[3:5]}
        scales = {name for step in self._steps if step.op in ("Resize", "Upsample") for name in step.inputs[1:]}
        for tensor in model.graph.initializer:
            if tensor.name in scales and tensor.dims and math.prod(tensor.dims) <= MAX_HOST:
                self._hosts[tensor.name] = _array(tensor).astype(object if tensor.data_type == 7 else np.float32)
            else:
                self._hold(tensor.name, _array(tensor), buffer=tensor.name in statistics)
        for place, step in enumerate(self._steps):
            value = step.attributes.get("value")
            if (
                step.op == "Constant"
                and isinstance(value, np.ndarray)
                and not _stays(value)
                and step.outputs[0] not in scales
            ):
                self._hold(step.outputs[0] or f"constant_{place}", value, buffer=True)
        held = {tensor.name for tensor in model.graph.initializer}
        inputs = [_given(one) for one in model.graph.input if one.name not in held]
        asked = [one for one in inputs if one.name not in FILLED or len(inputs) == 1]
        if len(asked) != 1:
            names = ", ".join(one.name[:32] for one in asked)
            raise InvalidSpec("graph.input", f"are {len(asked)} ({names}); a model of ours takes one")
        self.given = asked[0]
        self.filled = tuple(one for one in inputs if one is not self.given)
        if not model.graph.output:
            raise InvalidSpec("graph.output", "is missing")
        self.output: str = model.graph.output[0].name

    def vocabulary(self, name: str) -> int | None:
        """Rows of the embedding that an input of whole numbers picks from, if it does."""
        same = {name}
        for step in self._steps:
            if step.op in ("Cast", "Identity") and step.inputs[0] in same:
                same.add(step.outputs[0])
            if (
                step.op == "Gather"
                and len(step.inputs) > 1
                and step.inputs[1] in same
                and step.inputs[0] in self._places
            ):
                return int(self.state_dict()[self._places[step.inputs[0]]].shape[0])
        return None

    def feed(self, x: Tensor) -> dict[str, Tensor]:
        """Values of all inputs of the file; of int64 also where it takes int32."""
        return {self.given.name: x} | {one.name: FILLED[one.name](x).to(one.dtype) for one in self.filled}

    def forward(self, x: Tensor) -> Tensor:
        values: dict[str, Value] = {"": None, **self._hosts}
        values |= self.feed(x)
        tensors = dict(self.named_parameters()) | dict(self.named_buffers())
        values |= {name: tensors[place] for name, place in self._places.items()}
        for step in self._steps:
            if step.op == "Constant" and step.outputs[0] in values:
                continue
            told = self._run(step, values)
            outs = told if isinstance(told, tuple) else (told,)
            values |= zip(step.outputs, outs, strict=False)
        out = values.get(self.output)
        if not isinstance(out, Tensor):
            raise InvalidSpec("graph.output", "does not depend on the input")
        return out

    def _run(self, step: Step, values: Mapping[str, Value]) -> Any:
        if any(name not in values for name in step.inputs):
            raise NotReadable(step.op, "takes what no node before it gives")
        arguments = [values[name] for name in step.inputs]
        node = Node(step.op, step.attributes, self.training, self._opset, sum(map(bool, step.outputs)))
        try:
            told = OPERATIONS[step.op](node, *arguments)
            if isinstance(told, np.ndarray) and told.size > MOST_NUMBERS:
                raise NotReadable(step.op, f"makes {told.size} numbers of shapes; there may be {MOST_NUMBERS}")
            return told
        except InvalidSpec:
            raise
        except (
            LocalError,
            RuntimeError,
            TypeError,
            ValueError,
            IndexError,
            KeyError,
            AttributeError,
            ArithmeticError,
        ) as error:
            if "torch._dynamo" in type(error).__module__ or "symbolic_shapes" in type(error).__module__:
                raise  # of the trace: it tells which dimension does not vary as it was said
            raise NotReadable(step.op, f"cannot be computed: {str(error)[:256]}") from error

    def _hold(self, name: str, array: np.ndarray[Any, Any], *, buffer: bool) -> None:
        host = None if buffer else host_of(array)
        if host is not None:
            self._hosts[name] = host
            return
        value = torch.from_numpy(np.array(array))  # a copy: it is written to in training
        # What holds infinities is a mask, and no parameter.
        trained = not buffer and value.is_floating_point() and bool(torch.isfinite(value).all())
        place = _attach(self.weights, name, value, trained=trained)
        self._places[name] = f"weights.{place}"


def _stays(value: np.ndarray[Any, Any]) -> bool:
    """On the host, whether it has been taken there or not."""
    return value.dtype == object or host_of(value) is not None


def _attach(root: nn.Module, name: str, value: Tensor, *, trained: bool) -> str:
    """A place for a tensor that resembles its name: `layer1.0.weight`."""
    parts = [re.sub(r"[^0-9A-Za-z_]", "_", part) or "_" for part in name.split(".")]
    parts = [part if part.isidentifier() or part.isdigit() else f"t_{part}" for part in parts][-8:]
    if not parts[-1].isidentifier():
        parts[-1] = f"t_{parts[-1]}"
    at = root
    for place, part in enumerate(parts[:-1]):
        if part in at._parameters or part in at._buffers or (hasattr(at, part) and part not in at._modules):
            parts = [*parts[:place], "_".join(parts[place:])]
            break
        if part not in at._modules:
            at.add_module(part, nn.Module())
        at = at._modules[part]  # type: ignore[assignment]
    leaf = parts[-1]
    while hasattr(at, leaf):
        leaf += "_"
    if trained:
        at.register_parameter(leaf, nn.Parameter(value))
    else:
        at.register_buffer(leaf, value)
    return ".".join([*parts[:-1], leaf])


def _step(node: Any) -> Step:
    if node.op_type not in OPERATIONS:
        raise NotReadable(node.op_type, "is not among the operations that are read (docs/reference/formats.md)")
    if not node.output or (not node.input and node.op_type != "Constant"):
        raise NotReadable(node.op_type, "takes nothing, or gives nothing")
    attributes = {one.name: _attribute(node.op_type, one) for one in node.attribute}
    return Step(node.op_type, tuple(node.input), tuple(node.output), attributes)


def _attribute(op: str, one: Any) -> Any:
    match one.type:
        case 1:
            return float(one.f)
        case 2:
            return int(one.i)
        case 3:
            return bytes(one.s)
        case 4:
            array = _array(one.t)
            host = host_of(array)
            return array if host is None else host
        case 6:
            return tuple(map(float, one.floats))
        case 7:
            return tuple(map(int, one.ints))
        case 8:
            return tuple(map(bytes, one.strings))
    raise NotReadable(op, f"has an attribute of the type {one.type}")


def _array(tensor: Any) -> np.ndarray[Any, Any]:
    from onnx import numpy_helper  # noqa: PLC0415

    if tensor.data_type not in DTYPES or tensor.data_type == 16:
        raise InvalidSpec(f"graph.initializer.{tensor.name[:64]}", f"is of the type {tensor.data_type}: not read")
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError) as error:
        raise InvalidSpec(f"graph.initializer.{tensor.name[:64]}", "holds other bytes than its shape says") from error


def _given(one: Any) -> Given:
    kind = one.type.tensor_type
    if not one.type.HasField("tensor_type") or kind.elem_type not in DTYPES or not kind.HasField("shape"):
        raise InvalidSpec(f"graph.input.{one.name[:64]}", "is no tensor of a known rank")
    sides: list[int | str] = []
    for axis, side in enumerate(kind.shape.dim):
        fixed = side.HasField("dim_value") and side.dim_value > 0
        sides.append(int(side.dim_value) if fixed else side.dim_param or f"axis {axis}")
    return Given(one.name, DTYPES[kind.elem_type], tuple(sides))
