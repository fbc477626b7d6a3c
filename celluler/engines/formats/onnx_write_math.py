"""Operations of a graph on elements, and reductions, in ONNX. Each: (writer, arguments, type of what it gives)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from celluler.engines.formats.onnx_writer import NotWritable, Writer
from celluler.models.graph_arguments import Value

Arguments = Mapping[str, Any]
Write = Callable[[Writer, Arguments, torch.dtype], Any]


def unary(op: str, **attributes: Any) -> Write:
    return lambda w, a, _: w.node(op, w.ref(a["self"]), **attributes)


def _other(w: Writer, value: Any, dtype: torch.dtype) -> str:
    return w.as_dtype(value, dtype) if isinstance(value, Value) else w.number(value, dtype)


def binary(op: str, *, first: str = "self", second: str = "other") -> Write:
    def write(w: Writer, a: Arguments, dtype: torch.dtype) -> str:
        other = _other(w, a[second], dtype)
        if a.get("alpha", 1) != 1:
            other = w.node("Mul", other, w.number(a["alpha"], dtype))
        return w.node(op, _other(w, a[first], dtype), other)

    return write


def _compare(op: str, *, negated: bool = False) -> Write:
    def write(w: Writer, a: Arguments, _: torch.dtype) -> str:
        other = a["other"]
        of = torch.empty(0, dtype=w.dtype(a["self"]))
        beside = torch.empty(0, dtype=w.dtype(other)) if isinstance(other, Value) else other
        dtype = torch.result_type(of, beside)
        told = w.node(op, w.as_dtype(a["self"], dtype), _other(w, other, dtype))
        return w.node("Not", told) if negated else told

    return write


def _rounded_division(w: Writer, a: Arguments, dtype: torch.dtype) -> str:
    share = w.node("Div", _other(w, a["self"], dtype), _other(w, a["other"], dtype))
    if a["rounding_mode"] is None or (a["rounding_mode"] == "trunc" and not dtype.is_floating_point):
        return share
    if a["rounding_mode"] == "floor" and dtype.is_floating_point:
        return w.node("Floor", share)
    raise NotWritable("div.Tensor_mode")


def _gelu(w: Writer, a: Arguments, dtype: torch.dtype) -> str:
    x = w.ref(a["self"])
    if a.get("approximate", "none") == "tanh":
        cubed = w.node("Mul", w.node("Mul", w.node("Mul", x, x), x), w.number(0.044715, dtype))
        inner = w.node("Tanh", w.node("Mul", w.node("Add", x, cubed), w.number(math.sqrt(2 / math.pi), dtype)))
    else:
        inner = w.node("Erf", w.node("Div", x, w.number(math.sqrt(2), dtype)))
    share = w.node("Mul", w.node("Add", inner, w.number(1, dtype)), w.number(0.5, dtype))
    return w.node("Mul", x, share)


def _elu(w: Writer, a: Arguments, _: torch.dtype) -> str:
    if a.get("scale", 1) != 1 or a.get("input_scale", 1) != 1:
        raise NotWritable("elu.default")
    return w.node("Elu", w.ref(a["self"]), alpha=float(a.get("alpha", 1)))


def _silu(w: Writer, a: Arguments, _: torch.dtype) -> str:
    x = w.ref(a["self"])
    return w.node("Mul", x, w.node("Sigmoid", x))


def _mish(w: Writer, a: Arguments, _: torch.dtype) -> str:
    x = w.ref(a["self"])
    return w.node("Mul", x, w.node("Tanh", w.node("Softplus", x)))


def _softplus(w: Writer, a: Arguments, _: torch.dtype) -> str:
    if a.get("beta", 1) != 1:
        raise NotWritable("softplus.default")
    return w.node("Softplus", w.ref(a["self"]))


def _log_sigmoid(w: Writer, a: Arguments, _: torch.dtype) -> str:
    return w.node("Neg", w.node("Softplus", w.node("Neg", w.ref(a["self"]))))


def _prelu(w: Writer, a: Arguments, _: torch.dtype) -> str:
    slope = w.ref(a["weight"])
    rank = w.rank(a["self"])
    if rank > 1:
        slope = w.node("Reshape", slope, w.wholes([-1] + [1] * (rank - 2)))
    return w.node("PRelu", w.ref(a["self"]), slope)


def _glu(w: Writer, a: Arguments, _: torch.dtype) -> str:
    one, gate = w.several("Split", 2, w.ref(a["self"]), axis=a.get("dim", -1), num_outputs=2)
    return w.node("Mul", one, w.node("Sigmoid", gate))


def clip(low: str = "", high: str = "", fixed: tuple[float, float] | None = None) -> Write:
    def write(w: Writer, a: Arguments, dtype: torch.dtype) -> str:
        least, most = fixed or (a.get(low), a.get(high))
        x = w.as_dtype(a["self"], dtype)
        return w.node("Clip", x, *("" if one is None else w.number(one, dtype) for one in (least, most)))

    return write


def _softmax(op: str) -> Write:
    def write(w: Writer, a: Arguments, dtype: torch.dtype) -> str:
        return w.node(op, w.as_dtype(a["self"], dtype), axis=a["dim"])

    return write


def _square(w: Writer, a: Arguments, _: torch.dtype) -> str:
    x = w.ref(a["self"])
    return w.node("Mul", x, x)


def _rsqrt(w: Writer, a: Arguments, _: torch.dtype) -> str:
    return w.node("Reciprocal", w.node("Sqrt", w.ref(a["self"])))


def _log1p(w: Writer, a: Arguments, dtype: torch.dtype) -> str:
    return w.node("Log", w.node("Add", w.ref(a["self"]), w.number(1, dtype)))


def _expm1(w: Writer, a: Arguments, dtype: torch.dtype) -> str:
    return w.node("Sub", w.node("Exp", w.ref(a["self"])), w.number(1, dtype))


def _reversed_sub(w: Writer, a: Arguments, dtype: torch.dtype) -> str:
    x = w.as_dtype(a["self"], dtype)
    if a.get("alpha", 1) != 1:
        x = w.node("Mul", x, w.number(a["alpha"], dtype))
    return w.node("Sub", _other(w, a["other"], dtype), x)


def _pow(w: Writer, a: Arguments, dtype: torch.dtype) -> str:
    if a["exponent"] == 2 and not isinstance(a["exponent"], Value):
        x = w.as_dtype(a["self"], dtype)
        return w.node("Mul", x, x)
    return w.node("Pow", _other(w, a["self"], dtype), _other(w, a["exponent"], dtype))


def _addmm(w: Writer, a: Arguments, dtype: torch.dtype) -> str:
    names = [name for name in ("mat1", "mat2", "batch1", "batch2") if name in a]
    product = w.node("MatMul", *(w.ref(a[name]) for name in names))
    if a.get("alpha", 1) != 1:
        product = w.node("Mul", product, w.number(a["alpha"], dtype))
    added = w.ref(a["self"])
    if a.get("beta", 1) != 1:
        added = w.node("Mul", added, w.number(a["beta"], dtype))
    return w.node("Add", added, product)


def reduction(op: str) -> Write:
    def write(w: Writer, a: Arguments, dtype: torch.dtype) -> str:
        axes, x = a.get("dim"), w.as_dtype(a["self"], dtype)
        keep = int(a.get("keepdim", False))
        if axes is None or axes == ():
            return w.node(op, x, keepdims=keep)
        return w.node(op, x, w.wholes([axes] if isinstance(axes, int) else list(axes)), keepdims=keep)

    return write


def _extreme(op: str, place: str) -> Write:
    def write(w: Writer, a: Arguments, _: torch.dtype) -> list[str]:
        x, keep = w.ref(a["self"]), int(a.get("keepdim", False))
        return [w.node(op, x, w.wholes([a["dim"]]), keepdims=keep), w.node(place, x, axis=a["dim"], keepdims=keep)]

    return write


def _argmax(w: Writer, a: Arguments, _: torch.dtype) -> str:
    x, axis = w.ref(a["self"]), a.get("dim")
    if axis is None:
        x, axis = w.reshape(x, [-1]), 0
    return w.node("ArgMax", x, axis=axis, keepdims=int(a.get("keepdim", False)))


def _norm(w: Writer, a: Arguments, dtype: torch.dtype) -> str:
    if a.get("ord", 2) != 2:
        raise NotWritable("linalg_vector_norm.default")
    return str(reduction("ReduceL2")(w, a, dtype))


def _variance(root: bool) -> Write:
    def write(w: Writer, a: Arguments, dtype: torch.dtype) -> str:
        axes, sides = a.get("dim"), w.sides(a["self"])
        chosen = range(len(sides)) if axes is None else axes
        counted = [sides[axis] for axis in chosen]
        if any(side is None for side in counted):
            raise NotWritable("var.correction", "counts along a side that varies")
        n = math.prod(side or 1 for side in counted)
        correction = 1 if a.get("correction") is None else a["correction"]
        x, over = w.ref(a["self"]), w.wholes(list(chosen))
        apart = w.node("Sub", x, w.node("ReduceMean", x, over, keepdims=1))
        total = w.node("ReduceSumSquare", apart, over, keepdims=int(a.get("keepdim", False)))
        out = w.node("Div", total, w.number(max(0.0, n - correction), dtype))
        return w.node("Sqrt", out) if root else out

    return write


def _cumsum(w: Writer, a: Arguments, dtype: torch.dtype) -> str:
    return w.node("CumSum", w.as_dtype(a["self"], dtype), w.constant(np.array(a["dim"], dtype=np.int64)))


def _where(w: Writer, a: Arguments, dtype: torch.dtype) -> str:
    return w.node("Where", w.ref(a["condition"]), _other(w, a["self"], dtype), _other(w, a["other"], dtype))


def _masked_fill(w: Writer, a: Arguments, dtype: torch.dtype) -> str:
    return w.node("Where", w.ref(a["mask"]), w.number(a["value"], dtype), w.ref(a["self"]))


def _outer(w: Writer, a: Arguments, dtype: torch.dtype) -> str:
    column = w.node("Unsqueeze", w.as_dtype(a["self"], dtype), w.wholes([1]))
    return w.node("Mul", column, w.node("Unsqueeze", w.as_dtype(a["vec2"], dtype), w.wholes([0])))


def _einsum(w: Writer, a: Arguments, _: torch.dtype) -> str:
    return w.node("Einsum", *map(w.ref, a["tensors"]), equation=a["equation"])


def _leaky(w: Writer, a: Arguments, _: torch.dtype) -> str:
    return w.node("LeakyRelu", w.ref(a["self"]), alpha=float(a.get("negative_slope", 0.01)))


MATH: dict[str, Write] = {
    **{f"{name}.default": unary(op) for name, op in (
        ("relu", "Relu"), ("selu", "Selu"), ("sigmoid", "Sigmoid"), ("tanh", "Tanh"), ("hardswish", "HardSwish"),
        ("neg", "Neg"), ("abs", "Abs"), ("sign", "Sign"), ("exp", "Exp"), ("log", "Log"), ("sqrt", "Sqrt"),
        ("reciprocal", "Reciprocal"), ("sin", "Sin"), ("cos", "Cos"), ("erf", "Erf"), ("floor", "Floor"),
        ("ceil", "Ceil"), ("round", "Round"), ("logical_not", "Not"), ("bitwise_not", "Not"),
    )},
    "hardsigmoid.default": unary("HardSigmoid", alpha=1 / 6, beta=0.5),
    "relu6.default": clip(fixed=(0, 6)),
    "hardtanh.default": clip("min_val", "max_val"),
    "clamp.default": clip("min", "max"),
    "clamp_min.default": clip("min"),
    "clamp_max.default": clip(high="max"),
    "leaky_relu.default": _leaky,
    "elu.default": _elu,
    "celu.default": lambda w, a, _: w.node("Celu", w.ref(a["self"]), alpha=float(a.get("alpha", 1))),
    "gelu.default": _gelu,
    "silu.default": _silu,
    "mish.default": _mish,
    "softplus.default": _softplus,
    "log_sigmoid.default": _log_sigmoid,
    "prelu.default": _prelu,
    "glu.default": _glu,
    "softmax.int": _softmax("Softmax"),
    "log_softmax.int": _softmax("LogSoftmax"),
    **{f"{name}.{kind}": binary(op) for name, op in (("add", "Add"), ("sub", "Sub"), ("mul", "Mul"), ("div", "Div"))
       for kind in ("Tensor", "Scalar")},
    "div.Tensor_mode": _rounded_division,
    "rsub.Scalar": _reversed_sub,
    **dict.fromkeys(("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar"), _pow),
    "square.default": _square,
    "rsqrt.default": _rsqrt,
    "log1p.default": _log1p,
    "expm1.default": _expm1,
    "minimum.default": binary("Min"),
    "maximum.default": binary("Max"),
    "matmul.default": binary("MatMul"),
    "mm.default": binary("MatMul", second="mat2"),
    "bmm.default": binary("MatMul", second="mat2"),
    **dict.fromkeys(("addmm.default", "baddbmm.default"), _addmm),
    "einsum.default": _einsum,
    "outer.default": _outer,
    **{f"{name}.{kind}": reduction(op) for name, op, kinds in (
        ("mean", "ReduceMean", ("default", "dim")), ("sum", "ReduceSum", ("default", "dim_IntList")),
        ("amax", "ReduceMax", ("default",)), ("amin", "ReduceMin", ("default",)),
        ("logsumexp", "ReduceLogSumExp", ("default",)),
    ) for kind in kinds},
    "linalg_vector_norm.default": _norm,
    "var.correction": _variance(False),
    "std.correction": _variance(True),
    "max.dim": _extreme("ReduceMax", "ArgMax"),
    "min.dim": _extreme("ReduceMin", "ArgMin"),
    "argmax.default": _argmax,
    "cumsum.default": _cumsum,
    **{f"{name}.{kind}": _compare(op) for name, op in (
        ("eq", "Equal"), ("lt", "Less"), ("le", "LessOrEqual"), ("gt", "Greater"), ("ge", "GreaterOrEqual"),
    ) for kind in ("Tensor", "Scalar")},
    **{f"ne.{kind}": _compare("Equal", negated=True) for kind in ("Tensor", "Scalar")},
    **{name: binary(op) for name, op in (("logical_and.default", "And"), ("logical_or.default", "Or"))},
    "masked_fill.Scalar": _masked_fill,
    **dict.fromkeys(("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar"), _where),
}  # fmt: skip
