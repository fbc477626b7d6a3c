"""ONNX operations on single elements, and those that join or reduce them, in torch. Source: onnx/docs/Operators.md."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional

from celluler.engines.formats.onnx_values import DTYPES, Node, Value, as_host, is_host, scalar_of, tensor_of, wholes_of

Operation = Callable[..., Any]
"""(node, *inputs) → output, or a tuple of several."""


def unary(function: Callable[[Tensor], Tensor]) -> Operation:
    return lambda node, x: function(tensor_of(x, node))


def binary(on_tensors: Callable[[Any, Any], Tensor], on_host: Callable[[Any, Any], Any]) -> Operation:
    def run(node: Node, a: Value, b: Value) -> Any:
        if is_host(a) and is_host(b):
            return as_host(on_host(a, b))
        # A single number stays one: a graph then has an operation with a number, and no constant of one element.
        if isinstance(a, Tensor) and is_host(b) and b.ndim <= a.dim() and type(scalar_of(b)) in (int, float):  # type: ignore[union-attr]
            return on_tensors(a, scalar_of(b))
        first = a if isinstance(a, Tensor) else None
        second = b if isinstance(b, Tensor) else None
        return on_tensors(tensor_of(a, node, second), tensor_of(b, node, first))

    return run


def _divide(a: Any, b: Any) -> Tensor:
    whole = not a.is_floating_point() and not (isinstance(b, Tensor) and b.is_floating_point())
    return torch.div(a, b, rounding_mode="trunc") if whole and not isinstance(b, float) else a / b


def _host_divide(a: Any, b: Any) -> Any:
    return a // b if a.dtype == object and b.dtype == object else a / b


def variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Operation:
    def run(node: Node, *values: Value) -> Tensor:
        return functools.reduce(function, [tensor_of(one, node) for one in values])

    return run


def _extreme(on_tensors: Callable[[Tensor, Tensor], Tensor], on_host: Callable[[Any, Any], Any]) -> Operation:
    """Of shapes too: exporters take the larger of two sizes that are the same, of which one may vary."""

    def larger(node: Node, a: Any, b: Any) -> Any:
        if type(a) is int and type(b) is int:
            return on_host(a, b)
        if statically_known_true(a == b):
            return a
        raise node.refuse("chooses between sizes of which one varies")

    def run(node: Node, *values: Value) -> Any:
        if all(isinstance(one, np.ndarray) and one.dtype == object for one in values):
            told = functools.reduce(np.frompyfunc(functools.partial(larger, node), 2, 1), values)
            return as_host(told)
        return functools.reduce(on_tensors, [tensor_of(one, node) for one in values])

    return run


def _pow(node: Node, x: Value, exponent: Value) -> Tensor:
    number = scalar_of(exponent)
    base = tensor_of(x, node)
    if number == 2:
        return base.square()
    return torch.pow(base, number if number is not None else tensor_of(exponent, node, base))


def _softmax(of: Callable[..., Tensor]) -> Operation:
    def run(node: Node, x: Tensor) -> Tensor:
        if node.opset >= 13:
            return of(x, dim=node.whole("axis", -1))
        axis = node.whole("axis", 1) % x.dim()
        return of(x.flatten(axis), dim=-1).reshape(x.shape)

    return run


def _gelu(node: Node, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=node.text("approximate", "none"))


def _selu(node: Node, x: Tensor) -> Tensor:
    if not {"alpha", "gamma"} & node.attributes.keys():
        return functional.selu(x)
    return functional.elu(x, node.real("alpha", 1.67326319217681884765625)) * node.real(
        "gamma", 1.05070102214813232421875
    )


def _mod(node: Node, a: Value, b: Value) -> Any:
    if node.whole("fmod", 0):
        raise node.refuse("gives remainders with the sign of what is divided")
    return binary(torch.remainder, operator.mod)(node, a, b)


def _hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    return torch.clamp(node.real("alpha", 0.2) * x + node.real("beta", 0.5), 0.0, 1.0)


def _prelu(node: Node, x: Tensor, slope: Value) -> Tensor:
    return torch.where(x > 0, x, tensor_of(slope, node) * x)


def _clip(node: Node, x: Value, low: Value = None, high: Value = None) -> Any:
    least = scalar_of(low) if low is not None else node.attributes.get("min")
    most = scalar_of(high) if high is not None else node.attributes.get("max")
    if (low is not None and least is None) or (high is not None and most is None):
        raise node.refuse("its bounds are computed from data")
    given = tensor_of(x, node)
    return given if least is None and most is None else torch.clamp(given, least, most)


def _cast(node: Node, x: Value) -> Any:
    kind = node.whole("to", 0)
    if kind not in DTYPES:
        raise node.refuse(f"casts to the type {kind}")
    if isinstance(x, np.ndarray):
        if DTYPES[kind] in (torch.int64, torch.int32) and x.dtype == object:
            return x
        if DTYPES[kind] is torch.float32 and (x.dtype.kind == "f" or all(type(one) is int for one in x.flat)):
            return x.astype(np.float32)
    return tensor_of(x, node).to(DTYPES[kind])


def _where(node: Node, condition: Value, a: Value, b: Value) -> Any:
    if is_host(condition) and is_host(a) and is_host(b):
        return np.where(np.asarray(condition, dtype=bool), a, b)  # type: ignore[arg-type]
    chosen = tensor_of(condition, node)
    first = a if isinstance(a, Tensor) else None
    second = b if isinstance(b, Tensor) else None
    one = scalar_of(a) if scalar_of(a) is not None else tensor_of(a, node, second)
    return torch.where(chosen, one, tensor_of(b, node, first) if scalar_of(b) is None else scalar_of(b))


def reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operation:
    def run(node: Node, x: Value, axes: Value = None) -> Any:
        chosen = node.wholes("axes") if axes is None else wholes_of(axes, node, "axes")
        keep = bool(node.whole("keepdims", 1))
        if node.op == "ReduceProd":
            if not (isinstance(x, np.ndarray) and chosen in (None, [0])):
                raise node.refuse("multiplies all elements of a tensor")
            return np.array(functools.reduce(operator.mul, x.flat, 1), dtype=object).reshape((1,) if keep else ())
        given = tensor_of(x, node)
        if not chosen:
            if node.whole("noop_with_empty_axes", 0):
                if node.op in ("ReduceSumSquare", "ReduceL2"):
                    raise node.refuse("reduces nothing, and readers differ in what that gives")
                return given
            chosen = list(range(given.dim()))
        return function(given, chosen, keep)

    return run


def _argmax(node: Node, x: Tensor) -> Tensor:
    if node.whole("select_last_index", 0):
        raise node.refuse("takes the last of equals")
    return torch.argmax(x, dim=node.whole("axis", 0), keepdim=bool(node.whole("keepdims", 1)))


def _einsum(node: Node, *values: Tensor) -> Tensor:
    return torch.einsum(node.text("equation", ""), *values)


def _cumsum(node: Node, x: Tensor, axis: Value) -> Tensor:
    if node.whole("exclusive", 0) or node.whole("reverse", 0):
        raise node.refuse("runs the other way, or leaves out the first")
    return torch.cumsum(x, dim=wholes_of(axis, node, "axis")[0])


OPERATIONS: dict[str, Operation] = {
    "Abs": unary(torch.abs),
    "Neg": unary(torch.neg),
    "Exp": unary(torch.exp),
    "Log": unary(torch.log),
    "Sqrt": unary(torch.sqrt),
    "Reciprocal": unary(torch.reciprocal),
    "Erf": unary(torch.erf),
    "Sin": unary(torch.sin),
    "Cos": unary(torch.cos),
    "Floor": unary(torch.floor),
    "Ceil": unary(torch.ceil),
    "Round": unary(torch.round),
    "Sign": unary(torch.sign),
    "Not": unary(torch.logical_not),
    "IsNaN": unary(lambda x: torch.ne(x, x)),  # alone of all numbers, it is not itself
    "Relu": unary(torch.relu),
    "Sigmoid": unary(torch.sigmoid),
    "Tanh": unary(torch.tanh),
    "Softplus": unary(functional.softplus),
    "Softsign": unary(lambda x: x / (1 + x.abs())),
    "Mish": unary(functional.mish),
    "HardSwish": unary(functional.hardswish),
    "Selu": _selu,
    "LeakyRelu": lambda node, x: functional.leaky_relu(x, node.real("alpha", 0.01)),
    "Elu": lambda node, x: functional.elu(x, node.real("alpha", 1.0)),
    "Celu": lambda node, x: functional.celu(x, node.real("alpha", 1.0)),
    "HardSigmoid": _hard_sigmoid,
    "Gelu": _gelu,
    "PRelu": _prelu,
    "Softmax": _softmax(torch.softmax),
    "LogSoftmax": _softmax(torch.log_softmax),
    "Add": binary(operator.add, operator.add),
    "Sub": binary(operator.sub, operator.sub),
    "Mul": binary(operator.mul, operator.mul),
    "Div": binary(_divide, _host_divide),
    "Mod": _mod,
    "Pow": _pow,
    "Equal": binary(operator.eq, operator.eq),
    "Greater": binary(operator.gt, operator.gt),
    "GreaterOrEqual": binary(operator.ge, operator.ge),
    "Less": binary(operator.lt, operator.lt),
    "LessOrEqual": binary(operator.le, operator.le),
    "And": variadic(torch.logical_and),
    "Or": variadic(torch.logical_or),
    "Min": _extreme(torch.minimum, min),
    "Max": _extreme(torch.maximum, max),
    "Sum": variadic(operator.add),
    "Clip": _clip,
    "Cast": _cast,
    "Where": _where,
    "MatMul": lambda node, a, b: torch.matmul(a, b),
    "Einsum": _einsum,
    "CumSum": _cumsum,
    "ArgMax": _argmax,
    "ReduceMean": reduction(lambda x, axes, keep: x.mean(dim=axes, keepdim=keep)),
    "ReduceSum": reduction(lambda x, axes, keep: x.sum(dim=axes, keepdim=keep)),
    "ReduceMax": reduction(lambda x, axes, keep: x.amax(dim=axes, keepdim=keep)),
    "ReduceMin": reduction(lambda x, axes, keep: x.amin(dim=axes, keepdim=keep)),
    "ReduceSumSquare": reduction(lambda x, axes, keep: x.square().sum(dim=axes, keepdim=keep)),
    "ReduceL2": reduction(lambda x, axes, keep: x.square().sum(dim=axes, keepdim=keep).sqrt()),
    "ReduceLogSumExp": reduction(lambda x, axes, keep: torch.logsumexp(x, dim=axes, keepdim=keep)),
    "ReduceProd": reduction(lambda x, axes, keep: x),
}
