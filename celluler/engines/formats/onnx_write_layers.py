"""Operations of a graph that carry weights, attention, and pools, in ONNX."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from celluler.engines.formats.onnx_write_math import Arguments, Write
from celluler.engines.formats.onnx_writer import NotWritable, Writer
from celluler.models.graph_arguments import Value


def _optional(w: Writer, value: Value | None) -> tuple[str, ...]:
    return () if value is None else (w.ref(value),)


def _linear(w: Writer, a: Arguments, _: torch.dtype) -> str:
    x, bias = w.ref(a["input"]), a.get("bias")
    if w.rank(a["input"]) == 2:
        return w.node("Gemm", x, w.ref(a["weight"]), *_optional(w, bias), transB=1)
    product = w.node("MatMul", x, w.node("Transpose", w.ref(a["weight"]), perm=[1, 0]))
    return product if bias is None else w.node("Add", product, w.ref(bias))


def _each(values: Sequence[int] | None, rank: int, default: int) -> list[int]:
    """One for every side, where one is given for all."""
    told = list(values) if values else [default]
    return told * rank if len(told) == 1 else told


def _conv(w: Writer, a: Arguments, _: torch.dtype) -> str:
    rank = w.rank(a["weight"]) - 2
    told = {"strides": _each(a.get("stride"), rank, 1), "dilations": _each(a.get("dilation"), rank, 1)}
    padding = a.get("padding")
    if isinstance(padding, str):
        told["auto_pad"] = {"same": "SAME_UPPER", "valid": "VALID"}[padding]  # type: ignore[assignment]
    else:
        told["pads"] = _each(padding, rank, 0) * 2
    return w.node(
        "Conv", w.ref(a["input"]), w.ref(a["weight"]), *_optional(w, a.get("bias")), group=a.get("groups", 1), **told
    )


def _conv_transpose(w: Writer, a: Arguments, _: torch.dtype) -> str:
    rank = w.rank(a["weight"]) - 2
    return w.node(
        "ConvTranspose",
        w.ref(a["input"]),
        w.ref(a["weight"]),
        *_optional(w, a.get("bias")),
        strides=_each(a.get("stride"), rank, 1),
        dilations=_each(a.get("dilation"), rank, 1),
        pads=_each(a.get("padding"), rank, 0) * 2,
        output_padding=_each(a.get("output_padding"), rank, 0),
        group=a.get("groups", 1),
    )


def _embedding(w: Writer, a: Arguments, _: torch.dtype) -> str:
    return w.node("Gather", w.ref(a["weight"]), w.ref(a["indices"]), axis=0)


def _or_filled(w: Writer, value: Value | None, size: int, number: float) -> str:
    return w.filled((size,), number) if value is None else w.ref(value)


def _batch_norm(w: Writer, a: Arguments, _: torch.dtype) -> str:
    channels = w.sides(a["input"])[1]
    if a.get("training") or a["running_mean"] is None or channels is None:
        raise NotWritable("batch_norm.default", "normalises over its batch in evaluation")
    scale, bias = _or_filled(w, a["weight"], channels, 1), _or_filled(w, a["bias"], channels, 0)
    mean, variance = w.ref(a["running_mean"]), w.ref(a["running_var"])
    return w.node("BatchNormalization", w.ref(a["input"]), scale, bias, mean, variance, epsilon=float(a["eps"]))


def _layer_norm(w: Writer, a: Arguments, _: torch.dtype) -> str:
    shape = a["normalized_shape"]
    scale = w.filled(shape, 1) if a.get("weight") is None else w.ref(a["weight"])
    bias = _optional(w, a.get("bias"))
    epsilon = float(a.get("eps", 1e-5))
    return w.node("LayerNormalization", w.ref(a["input"]), scale, *bias, axis=-len(shape), epsilon=epsilon)


def _rms_norm(w: Writer, a: Arguments, dtype: torch.dtype) -> str:
    x, axes = w.ref(a["input"]), w.wholes(list(range(-len(a["normalized_shape"]), 0)))
    epsilon = torch.finfo(dtype).eps if a.get("eps") is None else a["eps"]
    square = w.node("ReduceMean", w.node("Mul", x, x), axes, keepdims=1)
    normed = w.node("Div", x, w.node("Sqrt", w.node("Add", square, w.number(epsilon, dtype))))
    return normed if a.get("weight") is None else w.node("Mul", normed, w.ref(a["weight"]))


def _by_channel(w: Writer, name: str, value: Value | None, rank: int, op: str) -> str:
    if value is None:
        return name
    return w.node(op, name, w.node("Reshape", w.ref(value), w.wholes([-1] + [1] * (rank - 2))))


def _group_norm(w: Writer, a: Arguments, _: torch.dtype) -> str:
    x, groups, rank = w.ref(a["input"]), a["num_groups"], w.rank(a["input"])
    rows = w.node("Reshape", x, w.wholes([0, groups, -1]))
    scale, bias = w.filled((groups,), 1), w.filled((groups,), 0)
    normed = w.node("InstanceNormalization", rows, scale, bias, epsilon=float(a.get("eps", 1e-5)))
    back = w.node("Reshape", normed, w.node("Shape", x))
    return _by_channel(w, _by_channel(w, back, a.get("weight"), rank, "Mul"), a.get("bias"), rank, "Add")


def _instance_norm(w: Writer, a: Arguments, _: torch.dtype) -> str:
    channels = w.sides(a["input"])[1]
    if not a["use_input_stats"] or channels is None:
        raise NotWritable("instance_norm.default")
    scale, bias = _or_filled(w, a["weight"], channels, 1), _or_filled(w, a["bias"], channels, 0)
    return w.node("InstanceNormalization", w.ref(a["input"]), scale, bias, epsilon=float(a["eps"]))


def _dropout(w: Writer, a: Arguments, _: torch.dtype) -> str:
    if a["train"] and a["p"]:
        raise NotWritable("dropout", "drops in evaluation too")
    return w.ref(a["input"])


def _attention(w: Writer, a: Arguments, dtype: torch.dtype) -> str:
    query, key, value = (a[name] for name in ("query", "key", "value"))
    width = w.sides(query)[-1]
    if a.get("enable_gqa") or a.get("dropout_p") or width is None:
        raise NotWritable("scaled_dot_product_attention.default")
    scale = 1 / math.sqrt(width) if a.get("scale") is None else a["scale"]
    order = list(range(w.rank(key)))
    order[-1], order[-2] = order[-2], order[-1]
    turned = w.node("Transpose", w.ref(key), perm=order)
    scores = w.node("Mul", w.node("MatMul", w.ref(query), turned), w.number(scale, dtype))
    never = w.number(-math.inf, dtype)
    mask = a.get("attn_mask")
    if a.get("is_causal"):
        # What stands above the diagonal of ones lies ahead in time.
        sides = w.node("Slice", w.node("Shape", scores), w.wholes([-2]), w.wholes([1 << 30]), w.wholes([0]))
        seen = w.node("Trilu", w.node("Expand", w.number(1, torch.int64), sides), upper=0)
        scores = w.node("Where", w.cast(seen, torch.bool), scores, never)
    elif mask is not None and w.dtype(mask) == torch.bool:
        scores = w.node("Where", w.ref(mask), scores, never)
    elif mask is not None:
        scores = w.node("Add", scores, w.ref(mask))
    return w.node("MatMul", w.node("Softmax", scores, axis=-1), w.ref(value))


# --- pools and sizes -------------------------------------------------------------------------------------------------


def _pool(op: str, rank: int) -> Write:
    def write(w: Writer, a: Arguments, _: torch.dtype) -> str:
        kernel = _each(a["kernel_size"], rank, 1)
        told = {"pads": _each(a.get("padding"), rank, 0) * 2, "ceil_mode": int(a.get("ceil_mode", False))}
        if op == "MaxPool":
            told["dilations"] = _each(a.get("dilation"), rank, 1)
        else:
            told["count_include_pad"] = int(a.get("count_include_pad", True))
            if a.get("divisor_override") is not None or (told["ceil_mode"] and told["count_include_pad"]):
                raise NotWritable("avg_pool", "divides otherwise than ONNX does")
        strides = _each(a.get("stride") or kernel, rank, 1)
        return w.node(op, w.ref(a["self"]), kernel_shape=kernel, strides=strides, **told)

    return write


def _adaptive(w: Writer, a: Arguments, _: torch.dtype) -> str:
    wanted, sides = list(a["output_size"]), w.sides(a["self"])[-len(a["output_size"]) :]
    if all(size == 1 for size in wanted):
        return w.node("GlobalAveragePool", w.ref(a["self"]))
    if any(side is None or side % size for side, size in zip(sides, wanted, strict=True)):
        raise NotWritable("adaptive_avg_pool", "has windows of several sizes")
    kernel = [(side or 1) // size for side, size in zip(sides, wanted, strict=True)]
    return w.node("AveragePool", w.ref(a["self"]), kernel_shape=kernel, strides=kernel)


def _upsample(mode: str) -> Write:
    def write(w: Writer, a: Arguments, _: torch.dtype) -> str:
        place = "align_corners" if a.get("align_corners") else "half_pixel" if mode == "linear" else "asymmetric"
        told = {"mode": mode, "coordinate_transformation_mode": place, "nearest_mode": "floor"}
        x, factors = w.ref(a["input"]), a.get("scale_factors")
        if factors:
            scales = w.constant(np.array([1, 1, *factors], dtype=np.float32))
            return w.node("Resize", x, "", scales, **told)
        front = w.node("Slice", w.node("Shape", x), w.wholes([0]), w.wholes([2]), w.wholes([0]))
        sizes = w.node("Concat", front, w.wholes(a["output_size"]), axis=0)
        return w.node("Resize", x, "", "", sizes, **told)

    return write


def _pad(w: Writer, a: Arguments, dtype: torch.dtype) -> str:
    told, rank = list(a["pad"]), w.rank(a["self"])
    pairs = [(told[place], told[place + 1]) for place in range(0, len(told), 2)]
    pairs = [(0, 0)] * (rank - len(pairs)) + pairs[::-1]
    pads = w.wholes([low for low, _ in pairs] + [high for _, high in pairs])
    mode = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}.get(a.get("mode", "constant"))
    if mode is None:
        raise NotWritable("pad.default", "goes round")
    value = (w.number(a.get("value") or 0, dtype),) if mode == "constant" else ()
    return w.node("Pad", w.ref(a["self"]), pads, *value, mode=mode)


# --- recurrent ones --------------------------------------------------------------------------------------------------


def _gates(w: Writer, value: Value, order: tuple[int, ...]) -> str:
    blocks = w.several("Split", len(order), w.ref(value), axis=0, num_outputs=len(order))
    return w.node("Concat", *(blocks[place] for place in order), axis=0)


def _recurrent(op: str, order: tuple[int, ...], states: int) -> Write:
    """order: of torch's gates as ONNX has them."""

    def write(w: Writer, a: Arguments, _: torch.dtype) -> list[str]:
        if a["train"] and a["dropout"]:
            raise NotWritable(f"{op.lower()}.input", "drops in evaluation too")
        hx = list(a["hx"]) if states == 2 else [a["hx"]]
        directions, biased = 1 + a["bidirectional"], a["has_biases"]
        hidden = w.sides(hx[0])[-1]
        x = w.ref(a["input"])
        x = w.node("Transpose", x, perm=[1, 0, 2]) if a["batch_first"] else x
        each, last = (4 if biased else 2) * directions, []
        nothing = w.wholes([0])
        for layer in range(a["num_layers"]):
            given = a["params"][layer * each : (layer + 1) * each]
            parts: list[list[str]] = [[], [], []]
            for one in range(directions):
                own = [_gates(w, value, order) for value in given[one * each // directions :][: each // directions]]
                joined = (own[0], own[1], *((w.node("Concat", *own[2:], axis=0),) if biased else ()))
                for part, name in zip(parts, joined, strict=False):
                    part.append(w.node("Unsqueeze", name, nothing))
            weights = [part[0] if len(part) == 1 else w.node("Concat", *part, axis=0) for part in parts if part]
            rows = (w.wholes([layer * directions]), w.wholes([(layer + 1) * directions]), nothing)
            begin = [w.node("Slice", w.ref(state), *rows) for state in hx]
            told = {"direction": "bidirectional" if a["bidirectional"] else "forward", "hidden_size": hidden}
            told |= {"linear_before_reset": 1} if op == "GRU" else {}
            out, *ends = w.several(op, 1 + states, x, *weights, *(() if biased else ("",)), "", *begin, **told)
            last.append(ends)
            x = w.node("Reshape", w.node("Transpose", out, perm=[0, 2, 1, 3]), w.wholes([0, 0, -1]))
        x = w.node("Transpose", x, perm=[1, 0, 2]) if a["batch_first"] else x
        return [x, *(w.node("Concat", *ends, axis=0) for ends in zip(*last, strict=True))]

    return write


LAYERS: dict[str, Write] = {
    "linear.default": _linear,
    **dict.fromkeys(("conv1d.default", "conv2d.default", "conv3d.default", "conv1d.padding", "conv2d.padding"), _conv),
    **dict.fromkeys(("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input"), _conv_transpose),
    "embedding.default": _embedding,
    "batch_norm.default": _batch_norm,
    "layer_norm.default": _layer_norm,
    "rms_norm.default": _rms_norm,
    "group_norm.default": _group_norm,
    "instance_norm.default": _instance_norm,
    **dict.fromkeys(("dropout.default", "feature_dropout.default", "alpha_dropout.default"), _dropout),
    "scaled_dot_product_attention.default": _attention,
    **{f"max_pool{rank}d.default": _pool("MaxPool", rank) for rank in (1, 2, 3)},
    **{f"avg_pool{rank}d.default": _pool("AveragePool", rank) for rank in (1, 2, 3)},
    **dict.fromkeys(("adaptive_avg_pool1d.default", "adaptive_avg_pool2d.default"), _adaptive),
    **dict.fromkeys(("upsample_nearest1d.vec", "upsample_nearest2d.vec"), _upsample("nearest")),
    "upsample_bilinear2d.vec": _upsample("linear"),
    "pixel_shuffle.default": lambda w, a, _: w.node(
        "DepthToSpace", w.ref(a["self"]), blocksize=a["upscale_factor"], mode="CRD"
    ),
    "pad.default": _pad,
    "lstm.input": _recurrent("LSTM", (0, 3, 1, 2), 2),
    "gru.input": _recurrent("GRU", (1, 0, 2), 1),
}
