"""ONNX operations that carry weights, and pools, in torch. Source: onnx/docs/Operators.md."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from celluler.engines.formats.onnx_math import Operation
from celluler.engines.formats.onnx_values import Node, Value, scalar_of, tensor_of
from celluler.engines.graph.table import FUNCTIONS

_CONVOLUTIONS = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}
_TRANSPOSED = {3: functional.conv_transpose1d, 4: functional.conv_transpose2d, 5: functional.conv_transpose3d}
_MAX_POOLS = {3: functional.max_pool1d, 4: functional.max_pool2d, 5: functional.max_pool3d}
_AVERAGE_POOLS = {3: functional.avg_pool1d, 4: functional.avg_pool2d, 5: functional.avg_pool3d}


def _gemm(node: Node, a: Tensor, b: Tensor, c: Value = None) -> Tensor:
    alpha, beta = node.real("alpha", 1.0), node.real("beta", 1.0)
    rows = a.t() if node.whole("transA", 0) else a
    added = None if c is None else tensor_of(c, node, a)
    if alpha == 1 and beta == 1 and node.whole("transB", 0) and (added is None or added.dim() == 1):
        return functional.linear(rows, b, added)
    product = rows @ (b.t() if node.whole("transB", 0) else b)
    product = product if alpha == 1 else product * alpha
    return product if added is None else product + (added if beta == 1 else added * beta)


def _window(node: Node, x: Tensor, kernel: list[int]) -> tuple[list[int], list[int], list[int], list[int]]:
    """(stride, dilation, pads at the beginning, pads at the end), of each side."""
    rank = len(kernel)
    stride, dilation = node.wholes("strides") or [1] * rank, node.wholes("dilations") or [1] * rank
    auto = node.text("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        pads = node.wholes("pads") or [0] * (2 * rank)
        return stride, dilation, pads[:rank], pads[rank:]
    if auto == "VALID":
        return stride, dilation, [0] * rank, [0] * rank
    low, high = [], []
    for side, size, step, by in zip(x.shape[2:], kernel, stride, dilation, strict=True):
        room = max(0, (-(-side // step) - 1) * step + by * (size - 1) + 1 - side)
        small, large = room // 2, room - room // 2
        low.append(small if auto == "SAME_UPPER" else large)
        high.append(large if auto == "SAME_UPPER" else small)
    return stride, dilation, low, high


def _padded(x: Tensor, low: list[int], high: list[int], value: float) -> Tensor:
    pairs = [side for pair in zip(reversed(low), reversed(high), strict=True) for side in pair]
    return functional.pad(x, pairs, value=value)


def _conv(node: Node, x: Tensor, weight: Tensor, bias: Value = None) -> Tensor:
    stride, dilation, low, high = _window(node, x, list(weight.shape[2:]))
    if low != high:
        x, low = _padded(x, low, high, 0.0), [0] * len(low)
    added = None if bias is None else tensor_of(bias, node, x)
    return _CONVOLUTIONS[x.dim()](x, weight, added, stride, low, dilation, node.whole("group", 1))


def _conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Value = None) -> Tensor:
    if node.wholes("output_shape") or node.text("auto_pad", "NOTSET") not in ("NOTSET", "", "VALID"):
        raise node.refuse("says its output's shape instead of its padding")
    stride, dilation, low, high = _window(node, x, list(weight.shape[2:]))
    if low != high:
        raise node.refuse("pads one side otherwise than the other")
    more = node.wholes("output_padding") or [0] * len(low)
    added = None if bias is None else tensor_of(bias, node, x)
    return _TRANSPOSED[x.dim()](x, weight, added, stride, low, more, node.whole("group", 1), dilation)


def _max_pool(node: Node, x: Tensor) -> Tensor:
    if node.outputs > 1 or node.whole("storage_order", 0):
        raise node.refuse("tells where the largest stood")
    kernel = node.wholes("kernel_shape") or []
    stride, dilation, low, high = _window(node, x, kernel)
    ceil = bool(node.whole("ceil_mode", 0))
    if low != high or any(2 * pad > size for pad, size in zip(low, kernel, strict=True)):
        if ceil or any(by != 1 for by in dilation):
            raise node.refuse("pads more than torch does, and has holes in its window or a part of one at the end")
        x, low = _padded(x, low, high, float("-inf")), [0] * len(low)
    return _MAX_POOLS[x.dim()](x, kernel, stride, low, dilation, ceil)


def _average_pool(node: Node, x: Tensor) -> Tensor:
    kernel = node.wholes("kernel_shape") or []
    stride, dilation, low, high = _window(node, x, kernel)
    counted = bool(node.whole("count_include_pad", 0))
    if any(by != 1 for by in dilation):
        raise node.refuse("has holes in its window")
    if low != high:
        if not counted:
            raise node.refuse("pads one side otherwise than the other")
        x, low = _padded(x, low, high, 0.0), [0] * len(low)
    ceil = bool(node.whole("ceil_mode", 0))
    return _AVERAGE_POOLS[x.dim()](x, kernel, stride, low, ceil, counted or not any(low))


def _global_average(node: Node, x: Tensor) -> Tensor:
    return x.mean(dim=list(range(2, x.dim())), keepdim=True)


def _global_max(node: Node, x: Tensor) -> Tensor:
    return x.amax(dim=list(range(2, x.dim())), keepdim=True)


def _batch_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    if node.outputs > 1 or node.whole("training_mode", 0) or not node.whole("spatial", 1):
        raise node.refuse("is written as it trains, or normalises every place by itself")
    momentum = 1 - node.real("momentum", 0.9)
    return functional.batch_norm(
        x, mean, variance, scale, bias, training=node.training, momentum=momentum, eps=node.real("epsilon", 1e-5)
    )


def _layer_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = node.whole("axis", -1) % x.dim()
    return functional.layer_norm(x, scale.shape[axis - x.dim() :], scale, bias, node.real("epsilon", 1e-5))


def _rms_norm(node: Node, x: Tensor, scale: Tensor) -> Tensor:
    axis = node.whole("axis", -1) % x.dim()
    axes = list(range(axis, x.dim()))
    return x * torch.rsqrt(x.square().mean(dim=axes, keepdim=True) + node.real("epsilon", 1e-5)) * scale


def _instance_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    # As one group a channel: the same numbers, by an operation that has no state.
    return functional.group_norm(x, x.shape[1], scale, bias, node.real("epsilon", 1e-5))


def _group_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = node.whole("num_groups", 1)
    if scale.shape[0] != x.shape[1]:  # before operators of version 21: one a group
        each = x.shape[1] // groups
        scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return functional.group_norm(x, groups, scale, bias, node.real("epsilon", 1e-5))


def _dropout(node: Node, x: Tensor, ratio: Value = None, _: Value = None) -> Any:
    if node.outputs > 1:
        raise node.refuse("tells what it dropped")
    rate = node.real("ratio", 0.5) if ratio is None else scalar_of(ratio)
    if not isinstance(rate, float) or not 0 <= rate < 1:
        raise node.refuse("its rate is computed from data, or none")
    return functional.dropout(x, rate, node.training)


# --- recurrent ones --------------------------------------------------------------------------------------------------


def _gates(weight: Tensor, order: tuple[int, ...]) -> Tensor:
    """Blocks of rows in another order."""
    blocks = weight.chunk(len(order), dim=0)
    return torch.cat([blocks[place] for place in order], dim=0)


def _recurrent(
    node: Node, order: tuple[int, ...], inputs: tuple[Any, ...]
) -> tuple[Tensor, list[Tensor], Tensor, bool, int]:
    """(x, torch's parameters of all directions, an empty state, whether there are two directions, hidden)"""
    x, weight, recurrence, bias, lengths = (*inputs, None, None)[:5]
    direction = node.text("direction", "forward")
    if direction not in ("forward", "bidirectional") or lengths is not None or node.whole("layout", 0):
        raise node.refuse("runs backwards, has lengths of its own, or has the batch first")
    usual = ((b"Sigmoid", b"Tanh", b"Tanh") if node.op == "LSTM" else (b"Sigmoid", b"Tanh")) * weight.shape[0]
    functions = node.attributes.get("activations", usual)
    if functions != usual or {"clip", "activation_alpha", "activation_beta"} & node.attributes.keys():
        raise node.refuse("has other functions than usual")
    hidden, parameters = recurrence.shape[2], []
    for one in range(weight.shape[0]):
        parameters += [_gates(weight[one], order), _gates(recurrence[one], order)]
        both = torch.zeros(2 * len(order) * hidden) if bias is None else bias[one]
        parameters += [_gates(half, order) for half in both.chunk(2, dim=0)]
    empty = torch.zeros(weight.shape[0], x.shape[1], hidden)
    return x, parameters, empty, direction == "bidirectional", hidden


def _apart(out: Tensor, directions: int, hidden: int) -> Tensor:
    """(time, batch, directions · hidden) → (time, directions, batch, hidden)"""
    return out.reshape(out.shape[0], out.shape[1], directions, hidden).permute(0, 2, 1, 3)


def _lstm(node: Node, *inputs: Value) -> tuple[Tensor, ...]:
    if any(one is not None for one in inputs[7:]) or node.whole("input_forget", 0):
        raise node.refuse("has peepholes, or couples its gates")
    x, parameters, empty, two, hidden = _recurrent(node, (0, 2, 3, 1), inputs)
    first, second = (*inputs, None, None, None)[5:7] if len(inputs) > 5 else (None, None)
    state = (empty if first is None else tensor_of(first, node), empty if second is None else tensor_of(second, node))
    out, last, cell = FUNCTIONS["lstm.input"](x, state, parameters, True, 1, 0.0, node.training, two, False)
    return _apart(out, 1 + two, hidden), last, cell


def _gru(node: Node, *inputs: Value) -> tuple[Tensor, ...]:
    if not node.whole("linear_before_reset", 0):
        raise node.refuse("resets before its weights are applied")
    x, parameters, empty, two, hidden = _recurrent(node, (1, 0, 2), inputs)
    state = tensor_of(inputs[5], node) if len(inputs) > 5 and inputs[5] is not None else empty
    out, last = FUNCTIONS["gru.input"](x, state, parameters, True, 1, 0.0, node.training, two, False)
    return _apart(out, 1 + two, hidden), last


OPERATIONS: dict[str, Operation] = {
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "Dropout": _dropout,
    "LSTM": _lstm,
    "GRU": _gru,
}
