"""ONNX operations that change shapes and places, on tensors and on host numbers. Source: onnx/docs/Operators.md."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from celluler.engines.formats.onnx_math import Operation
from celluler.engines.formats.onnx_values import Node, Value, as_host, is_host, scalar_of, tensor_of, wholes_of


def _axes(node: Node, given: Value, rank: int) -> list[int]:
    axes = node.wholes("axes") if given is None else wholes_of(given, node, "axes")
    return [axis % rank for axis in axes or ()]


def _shape(node: Node, x: Value) -> Any:
    if not isinstance(x, Tensor):
        return np.array(list(np.shape(x)), dtype=object)  # type: ignore[arg-type]
    sizes = list(x.shape)[node.whole("start", 0) : node.attributes.get("end")]
    told = np.empty(len(sizes), dtype=object)
    told[:] = sizes
    return told


def _reshape(node: Node, x: Value, shape: Value) -> Any:
    sizes = wholes_of(shape, node, "sizes")
    if isinstance(x, np.ndarray):
        return x.reshape([int(size) for size in sizes])
    given = tensor_of(x, node)
    if not node.whole("allowzero", 0):
        sizes = [given.shape[place] if type(size) is int and size == 0 else size for place, size in enumerate(sizes)]
    return given.reshape(sizes)


def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.whole("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    if axis == 1:
        return x.flatten(1) if x.dim() > 1 else x.reshape(-1, 1)
    if axis == 0:
        return x.reshape(1, -1)
    return x.flatten(axis).flatten(0, axis - 1) if axis < x.dim() else x.reshape(-1, 1)


def _transpose(node: Node, x: Tensor) -> Tensor:
    return x.permute(node.wholes("perm") or list(range(x.dim()))[::-1])


def _squeeze(node: Node, x: Value, axes: Value = None) -> Any:
    if isinstance(x, np.ndarray):
        return x.reshape(()) if x.size == 1 else x
    given = tensor_of(x, node)
    chosen = _axes(node, axes, given.dim())
    return given.squeeze(chosen) if chosen else given.squeeze()


def _unsqueeze(node: Node, x: Value, axes: Value = None) -> Any:
    rank = (x.ndim if isinstance(x, np.ndarray) else tensor_of(x, node).dim()) + 1
    given = node.wholes("axes") if axes is None else wholes_of(axes, node, "axes")
    chosen = sorted(axis % (rank - 1 + len(given or ())) for axis in given or ())
    if isinstance(x, np.ndarray) and x.ndim == 0 and chosen == [0]:
        return x.reshape(1)
    out = tensor_of(x, node)
    for axis in chosen:
        out = out.unsqueeze(axis)
    return out


def _concat(node: Node, *values: Value) -> Any:
    if all(is_host(one) for one in values):
        return np.concatenate(values)  # type: ignore[arg-type]
    return torch.cat([tensor_of(one, node) for one in values], dim=node.whole("axis", 0))


def _split(node: Node, x: Tensor, sizes: Value = None) -> tuple[Tensor, ...]:
    axis = node.whole("axis", 0)
    told = node.wholes("split") if sizes is None else wholes_of(sizes, node, "sizes")
    if told is None:
        count = node.whole("num_outputs", node.outputs)
        told_size = -(-x.shape[axis] // count)
        return tuple(torch.split(x, told_size, dim=axis))
    return tuple(torch.split(x, told, dim=axis))


def _slice(
    node: Node, x: Value, starts: Value = None, ends: Value = None, axes: Value = None, steps: Value = None
) -> Any:
    first = node.wholes("starts") if starts is None else wholes_of(starts, node, "starts")
    last = node.wholes("ends") if ends is None else wholes_of(ends, node, "ends")
    if first is None or last is None:
        raise node.refuse("says not from where to where")
    chosen = node.wholes("axes") if axes is None else wholes_of(axes, node, "axes")
    by = [1] * len(first) if steps is None else wholes_of(steps, node, "steps")
    if isinstance(x, np.ndarray):
        return x[slice(int(first[0]), int(last[0]), int(by[0]))]
    out = tensor_of(x, node)
    for axis, start, end, step in zip(chosen or range(len(first)), first, last, by, strict=True):
        out = _cut(node, out, axis % out.dim(), start, end, step)
    return out


def _cut(node: Node, x: Tensor, axis: int, start: Any, end: Any, step: Any) -> Tensor:
    if step == -1 and start == -1 and type(end) is int and end < -(1 << 30):
        return x.flip(axis)
    if step < 1:
        raise node.refuse("runs backwards over a part")
    whole = slice(start, None if type(end) is int and end >= (1 << 31) - 1 else end, step)
    return x[(slice(None),) * axis + (whole,)]


def _gather(node: Node, x: Value, indices: Value) -> Any:
    axis = node.whole("axis", 0)
    if isinstance(x, np.ndarray) and isinstance(indices, np.ndarray):
        return as_host(np.take(x, indices.astype(np.int64), axis=0))
    data = tensor_of(x, node)
    if isinstance(indices, np.ndarray) and indices.ndim == 0:
        return data.select(axis, indices.item())
    places = tensor_of(indices, node)
    if axis % data.dim() == 0 and data.dim() == 2 and data.is_floating_point() and places.dim():
        return functional.embedding(places, data)
    axis %= data.dim()
    places = torch.where(places < 0, places + data.shape[axis], places)
    found = data.index_select(axis, places.reshape(-1))
    return found.reshape([*data.shape[:axis], *places.shape, *data.shape[axis + 1 :]])


def _gather_nd(node: Node, x: Value, indices: Value) -> Tensor:
    if node.whole("batch_dims", 0):
        raise node.refuse("picks within each of a batch")
    places = tensor_of(indices, node)
    return tensor_of(x, node)[tuple(places.unbind(-1))]


def _expand(node: Node, x: Value, shape: Value) -> Tensor:
    sizes, given = wholes_of(shape, node, "sizes"), tensor_of(x, node)
    own = [1] * (len(sizes) - given.dim()) + list(given.shape)
    sizes = [1] * (len(own) - len(sizes)) + sizes
    wanted = [mine if type(size) is int and size == 1 else size for mine, size in zip(own, sizes, strict=True)]
    return given.reshape(own).expand(wanted) if len(own) != given.dim() else given.expand(wanted)


def _constant(node: Node) -> Any:
    for name in ("value", "value_int", "value_ints", "value_float", "value_floats"):
        if name in node.attributes:
            value = node.attributes[name]
            if isinstance(value, np.ndarray | Tensor):
                return value
            array = np.array(value)
            return array.astype(object) if array.dtype.kind == "i" else array.astype(np.float32)
    raise node.refuse("holds neither a tensor nor numbers")


def _constant_of_shape(node: Node, shape: Value) -> Any:
    value = node.attributes.get("value")
    number = 0.0 if value is None else scalar_of(value if isinstance(value, np.ndarray) else value.numpy())
    sizes = wholes_of(shape, node, "sizes")
    if type(number) is int and len(sizes) == 1 and type(sizes[0]) is int and sizes[0] <= 8:
        return np.array([number] * sizes[0], dtype=object)
    dtype = torch.int64 if type(number) is int else torch.bool if type(number) is bool else torch.float32
    return torch.full(sizes, number, dtype=dtype)


def _range(node: Node, start: Value, end: Value, step: Value) -> Tensor:
    low, high, by = (scalar_of(one) for one in (start, end, step))
    if low is None or high is None or by is None:
        raise node.refuse("its ends are computed from data")
    return torch.arange(low, high, by)


def _pad(node: Node, x: Tensor, pads: Value = None, value: Value = None, axes: Value = None) -> Tensor:
    told = node.wholes("pads") if pads is None else wholes_of(pads, node, "sizes")
    if told is None or axes is not None:
        raise node.refuse("pads chosen axes")
    rank, mode = len(told) // 2, node.text("mode", "constant")
    pairs = [side for axis in reversed(range(rank)) for side in (told[axis], told[axis + rank])]
    number = scalar_of(value) if value is not None else node.real("value", 0.0)
    if mode == "constant":
        return functional.pad(x, pairs, value=float(number))
    while len(pairs) > 2 and pairs[-2:] == [0, 0] and len(pairs) > 2 * (rank - 2):
        pairs = pairs[:-2]
    return functional.pad(x, pairs, mode={"edge": "replicate", "reflect": "reflect", "wrap": "circular"}[mode])


def _tile(node: Node, x: Value, repeats: Value) -> Tensor:
    return tensor_of(x, node).repeat(wholes_of(repeats, node, "repeats"))


def _trilu(node: Node, x: Value, diagonal: Value = None) -> Tensor:
    by = 0 if diagonal is None else wholes_of(diagonal, node, "diagonal")[0]
    return (torch.triu if node.whole("upper", 1) else torch.tril)(tensor_of(x, node), by)


def _resize(node: Node, x: Tensor, _: Value = None, scales: Value = None, sizes: Value = None) -> Tensor:
    """Nearest and linear resizing of images, as PyTorch itself exports them."""
    if node.op == "Upsample" and scales is None:
        scales = _
    mode = node.text("mode", "nearest")
    if node.whole("antialias", 0) or node.attributes.keys() & {"axes", "keep_aspect_ratio_policy"}:
        raise node.refuse("resizes by filters, along chosen axes, or keeps a ratio")
    early = node.op == "Upsample" or node.opset < 11
    place = node.text("coordinate_transformation_mode", "asymmetric" if early else "half_pixel")
    if isinstance(scales, Tensor):
        raise node.refuse("its scales are computed from data")
    if sizes is not None:
        told = wholes_of(sizes, node, "sizes")[2:]
        wanted: dict[str, Any] = {"size": told}
        whole = all(size % side == 0 for size, side in zip(told, x.shape[2:], strict=True))
    elif scales is not None and scales.size == x.dim():
        factors = [float(one) for one in scales[2:]]
        wanted = {"scale_factor": factors}
        whole = all(one == int(one) for one in factors)
    else:
        raise node.refuse("says neither scales nor sizes")
    rounding = node.text("nearest_mode", "floor" if early else "round_prefer_floor")
    # Between centres at halves whole factors make no ties, and nothing that is rounded up where torch rounds down.
    halves = place in ("half_pixel", "pytorch_half_pixel") and rounding.startswith("round_prefer_")
    if mode == "nearest" and ((whole and halves) or (place == "asymmetric" and rounding == "floor")):
        return functional.interpolate(x, mode="nearest", **wanted)
    if mode == "linear" and x.dim() == 4 and place in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return functional.interpolate(x, mode="bilinear", align_corners=place == "align_corners", **wanted)
    raise node.refuse(f"resizes by {mode}, {place}, {rounding}")


def _depth_to_space(node: Node, x: Tensor) -> Tensor:
    side = node.whole("blocksize", 1)
    if node.text("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, side)
    c = x.shape[1] // side**2
    blocks = x.reshape(x.shape[0], side, side, c, x.shape[2], x.shape[3])
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(x.shape[0], c, x.shape[2] * side, x.shape[3] * side)


OPERATIONS: dict[str, Operation] = {
    "Identity": lambda node, x: x,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Shape": _shape,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": lambda node, x, places: torch.gather(x, node.whole("axis", 0), places),
    "GatherND": _gather_nd,
    "Expand": _expand,
    "Range": _range,
    "Pad": _pad,
    "Tile": _tile,
    "Trilu": _trilu,
    "Resize": _resize,
    "Upsample": _resize,
    "DepthToSpace": _depth_to_space,
}
