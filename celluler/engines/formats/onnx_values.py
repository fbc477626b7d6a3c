"""What flows between the nodes of an ONNX graph while it is read as a module: tensors, and numbers of the host.

Shapes, axes and indices are tensors in ONNX. Here they stay on the host, as arrays of whole numbers (symbolic ones
where a dimension may vary), so that what they shape can be traced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from celluler.errors import InvalidSpec

Host = npt.NDArray[Any]
"""Whole numbers, as objects (`int` or `torch.SymInt`), or a few floats or truth values."""
Value = Tensor | Host | None

MAX_HOST = 64
"""Elements of what stays on the host."""

DTYPES: Mapping[int, torch.dtype] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}
"""TensorProto.DataType → torch."""


class NotReadable(InvalidSpec):
    """An ONNX node that cannot be read. Its hint is what to do instead."""

    def __init__(self, operation: str, problem: str) -> None:
        super().__init__(
            f"graph.{operation[:64]}",
            problem,
            hint="publish the module from Python on your own machine: celluler.publish",
        )


@dataclass(frozen=True, slots=True)
class Node:
    """One operation as it is called. attributes: int, float, bytes, tuples of them, or a Host. training: of the module
    in which it stands. opset: of the standard operators. outputs: how many are asked for."""

    op: str
    attributes: Mapping[str, Any]
    training: bool
    opset: int
    outputs: int

    def whole(self, name: str, default: int) -> int:
        value = self.attributes.get(name, default)
        if type(value) is not int:
            raise NotReadable(self.op, f"{name} must be a whole number")
        return value

    def real(self, name: str, default: float) -> float:
        value = self.attributes.get(name, default)
        if not isinstance(value, int | float):
            raise NotReadable(self.op, f"{name} must be a number")
        return float(value)

    def text(self, name: str, default: str) -> str:
        value = self.attributes.get(name, default.encode())
        if not isinstance(value, bytes):
            raise NotReadable(self.op, f"{name} must be text")
        return value.decode("utf-8", "replace")

    def wholes(self, name: str) -> list[int] | None:
        value = self.attributes.get(name)
        if value is None:
            return None
        if not isinstance(value, tuple) or not all(type(one) is int for one in value):
            raise NotReadable(self.op, f"{name} must be whole numbers")
        return list(value)

    def refuse(self, problem: str) -> NotReadable:
        return NotReadable(self.op, problem)


def host_of(array: npt.NDArray[Any]) -> Host | None:
    """A constant as host numbers, where it is small enough to be one."""
    if array.size <= MAX_HOST and array.ndim <= 1 and array.dtype.kind in "iu":
        return array.astype(object) if array.ndim else np.array(int(array), dtype=object)
    if array.size == 1 and array.dtype.kind in "fb":
        return array
    return None


def as_host(value: Any) -> Host:
    """What numpy gives for an array of objects without axes is no array any more."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, np.generic):
        return np.asarray(value)
    boxed = np.empty((), dtype=object)
    boxed[()] = value
    return boxed


def is_host(value: Value) -> bool:
    return isinstance(value, np.ndarray)


def tensor_of(value: Value, node: Node, like: Tensor | None = None) -> Tensor:
    """A tensor, made of host numbers where it must be. like: whose type a float takes on."""
    if isinstance(value, Tensor):
        return value
    if value is None:
        raise node.refuse("an input is missing")
    if value.dtype == object:
        if not all(type(one) is int for one in value.flat):
            if value.size == 1:
                return torch.arange(value.item(), value.item() + 1).reshape(value.shape)
            raise node.refuse("computes with a shape that varies, in a way that cannot be traced")
        return torch.tensor(value.astype(np.int64))
    made = torch.from_numpy(np.array(value))
    return made.to(like.dtype) if like is not None and like.is_floating_point() else made


def scalar_of(value: Value) -> Any:
    """A Python number, or None when it is no single number of the host."""
    if isinstance(value, np.ndarray) and value.size == 1:
        return value.item()
    return None


def wholes_of(value: Value, node: Node, what: str) -> list[Any]:
    """A shape, axes or indices: whole numbers of the host."""
    if not isinstance(value, np.ndarray) or value.dtype != object:
        raise node.refuse(f"its {what} are computed from data")
    return list(value.reshape(-1))
