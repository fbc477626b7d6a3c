"""What an ONNX graph is written with: nodes, constants, and what is known of each value's shape and type.

Whole numbers of a graph of ours (sizes, indices) are tensors of one element here, so that they can be joined into
shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from celluler.engines.formats.onnx_values import DTYPES
from celluler.errors import InvalidSpec
from celluler.models.graph_arguments import Value

OPSET, IR_VERSION = 18, 8
"""Read by everything that runs ONNX since 2023."""
TO_END = (1 << 63) - 1
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_NUMPY = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.float16: np.float16,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.int16: np.int16,
    torch.int8: np.int8,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
}

Sides = tuple[int | None, ...]
"""A shape; None where it varies."""
Known = tuple[torch.dtype, Sides]


class NotWritable(InvalidSpec):
    """An operation that ONNX has no word for, or none that we know."""

    def __init__(self, operation: str, problem: str = "cannot be said in ONNX") -> None:
        super().__init__(f"nodes.{operation}", problem, hint="keep it in our form, or convert to safetensors")


class Writer:
    """Collects nodes. known: of every value of the graph, by its name; tensors: of the weights file."""

    def __init__(self, known: Mapping[str, Known], tensors: Mapping[str, Known]) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray[Any, Any]] = {}
        self.used: set[str] = set()
        self._known, self._tensors = known, tensors
        self._names: dict[str, Any] = {}
        self._count = 0

    def bind(self, name: str, given: Any) -> None:
        """Let a value of ours be this one there, or these several."""
        self._names[name] = given

    def ref(self, value: Value) -> str:
        """The name of a tensor there."""
        if value.tensor:
            self.used.add(value.name)
            return f"@{value.name}"
        name: str = self._names[value.name]
        return name

    def pieces(self, value: Value) -> list[str]:
        several: list[str] = self._names[value.name]
        return several

    def known(self, value: Value) -> Known:
        return (self._tensors if value.tensor else self._known)[value.name]

    def dtype(self, value: Value) -> torch.dtype:
        return self.known(value)[0]

    def sides(self, value: Value) -> Sides:
        return self.known(value)[1]

    def rank(self, value: Value) -> int:
        return len(self.sides(value))

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        return self.several(op, 1, *inputs, **attributes)[0]

    def several(self, op: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        from onnx import helper  # noqa: PLC0415

        self._count += 1
        outputs = [f"v{self._count}" if count == 1 else f"v{self._count}_{place}" for place in range(count)]
        self.nodes.append(helper.make_node(op, inputs, outputs, **attributes))
        return outputs

    def constant(self, array: np.ndarray[Any, Any]) -> str:
        for name, held in self.constants.items():
            if held.dtype == array.dtype and held.shape == array.shape and np.array_equal(held, array, equal_nan=True):
                return name
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        return name

    def number(self, value: Any, dtype: torch.dtype) -> str:
        """A single number; of float where the tensor beside it is one of whole numbers and it is not."""
        if dtype not in _NUMPY:
            raise NotWritable(str(dtype), "is a type that ONNX's numbers are not written in")
        return self.constant(np.array(value, dtype=_NUMPY[dtype]))

    def filled(self, shape: Sequence[int], value: float) -> str:
        return self.constant(np.full(shape, value, dtype=np.float32))

    def wholes(self, values: Sequence[int | Value]) -> str:
        """A shape, or axes: a tensor of whole numbers in a row."""
        if all(isinstance(one, int) for one in values):
            return self.constant(np.array(values, dtype=np.int64))
        return self.node("Concat", *(self.whole(one) for one in values), axis=0)

    def whole(self, value: int | Value) -> str:
        """One whole number, in a row of one."""
        if isinstance(value, Value):
            return self.ref(value)
        return self.constant(np.array([value], dtype=np.int64))

    def cast(self, name: str, dtype: torch.dtype) -> str:
        if dtype not in _CODES:
            raise NotWritable(str(dtype), "is a type that ONNX has not")
        return self.node("Cast", name, to=_CODES[dtype])

    def as_dtype(self, value: Value, dtype: torch.dtype) -> str:
        """A tensor, brought to a type if it is of another."""
        return self.ref(value) if self.dtype(value) == dtype else self.cast(self.ref(value), dtype)

    def reshape(self, name: str, sides: Sequence[int | None]) -> str:
        """To a shape of which at most one side varies."""
        if sum(side is None for side in sides) > 1:
            raise NotWritable("reshape", "changes a shape of which more than one side varies")
        return self.node("Reshape", name, self.wholes([-1 if side is None else side for side in sides]))


def code_of(dtype: torch.dtype) -> int:
    return _CODES[dtype]
