"""Operations of a graph that change shapes and places, and that make tensors, in ONNX."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from celluler.engines.formats.onnx_write_math import Arguments, Write
from celluler.engines.formats.onnx_writer import TO_END, NotWritable, Writer
from celluler.models.graph_arguments import Value


def _same(w: Writer, a: Arguments, _: torch.dtype) -> str:
    return w.ref(a["self"])


def _reshape(name: str) -> Write:
    return lambda w, a, _: w.node("Reshape", w.ref(a["self"]), w.wholes(a[name]))


def _flatten(w: Writer, a: Arguments, _: torch.dtype) -> str:
    sides, x = w.sides(a["self"]), w.ref(a["self"])
    start, end = a.get("start_dim", 0) % max(1, len(sides)), a.get("end_dim", -1) % max(1, len(sides))
    if start == 1 and end == len(sides) - 1:
        return w.node("Flatten", x, axis=1)
    between = sides[start : end + 1]
    merged = None if any(side is None for side in between) else math.prod(side or 1 for side in between)
    after = sides[end + 1 :]
    return w.node("Reshape", x, w.wholes(_kept(sides[:start]) + _sized((merged, *after))))


def _kept(sides: tuple[int | None, ...]) -> list[int]:
    """Zero says: as it is."""
    return [0 if side is None else side for side in sides]


def _sized(sides: tuple[int | None, ...]) -> list[int]:
    if sum(side is None for side in sides) > 1:
        raise NotWritable("reshape", "changes a shape of which more than one side varies")
    return [-1 if side is None else side for side in sides]


def _unflatten(w: Writer, a: Arguments, _: torch.dtype) -> str:
    sides = w.sides(a["self"])
    axis = a["dim"] % len(sides)
    sizes = [*_kept(sides[:axis]), *a["sizes"], *_sized(sides[axis + 1 :])]
    return w.node("Reshape", w.ref(a["self"]), w.wholes(sizes))


def _permute(w: Writer, a: Arguments, _: torch.dtype) -> str:
    rank = w.rank(a["self"])
    return w.node("Transpose", w.ref(a["self"]), perm=[axis % rank for axis in a["dims"]])


def _transpose(w: Writer, a: Arguments, _: torch.dtype) -> str:
    order = list(range(w.rank(a["self"])))
    one, other = a.get("dim0", 0), a.get("dim1", -1)
    order[one], order[other] = order[other], order[one]
    return w.node("Transpose", w.ref(a["self"]), perm=order)


def _turned(w: Writer, a: Arguments, _: torch.dtype) -> str:
    return w.node("Transpose", w.ref(a["self"]), perm=list(range(w.rank(a["self"])))[::-1])


def _moved(w: Writer, a: Arguments, _: torch.dtype) -> str:
    rank = w.rank(a["self"])
    source, target = ([axis % rank for axis in a[name]] for name in ("source", "destination"))
    order = [axis for axis in range(rank) if axis not in source]
    for place, axis in sorted(zip(target, source, strict=True)):
        order.insert(place, axis)
    return w.node("Transpose", w.ref(a["self"]), perm=order)


def _squeeze(w: Writer, a: Arguments, _: torch.dtype) -> str:
    sides = w.sides(a["self"])
    told = a.get("dim", range(len(sides)))
    axes = [axis % len(sides) for axis in ([told] if isinstance(told, int) else told)]
    gone = [axis for axis in axes if sides[axis] == 1]
    return w.node("Squeeze", w.ref(a["self"]), w.wholes(gone)) if gone else w.ref(a["self"])


def _unsqueeze(w: Writer, a: Arguments, _: torch.dtype) -> str:
    return w.node("Unsqueeze", w.ref(a["self"]), w.wholes([a["dim"] % (w.rank(a["self"]) + 1)]))


def _expand(w: Writer, a: Arguments, _: torch.dtype) -> str:
    sizes = [1 if type(one) is int and one == -1 else one for one in a["size"]]
    return w.node("Expand", w.ref(a["self"]), w.wholes(sizes))


def _expand_as(w: Writer, a: Arguments, _: torch.dtype) -> str:
    return w.node("Expand", w.ref(a["self"]), w.node("Shape", w.ref(a["other"])))


def _repeat(w: Writer, a: Arguments, _: torch.dtype) -> str:
    x, more = w.ref(a["self"]), len(a["repeats"]) - w.rank(a["self"])
    if more:
        x = w.node("Unsqueeze", x, w.wholes(list(range(more))))
    return w.node("Tile", x, w.wholes(a["repeats"]))


def _repeat_each(w: Writer, a: Arguments, _: torch.dtype) -> str:
    sides, axis, times = w.sides(a["self"]), a.get("dim"), a["repeats"]
    if axis is None or not isinstance(times, int):
        raise NotWritable("repeat_interleave.self_int")
    axis %= len(sides)
    apart = w.node("Unsqueeze", w.ref(a["self"]), w.wholes([axis + 1]))
    repeated = w.node("Tile", apart, w.wholes([1] * (axis + 1) + [times] + [1] * (len(sides) - axis - 1)))
    side = sides[axis]
    sizes = [*_kept(sides[:axis]), *_sized((None if side is None else side * times, *sides[axis + 1 :]))]
    return w.node("Reshape", repeated, w.wholes(sizes))


def _slice(w: Writer, a: Arguments, _: torch.dtype) -> str:
    start, end = a.get("start"), a.get("end")
    start, end = 0 if start is None else start, TO_END if end is None else end
    return _cut(w, w.ref(a["self"]), a.get("dim", 0), start, end, a.get("step", 1))


def _cut(w: Writer, x: str, axis: int, start: int | Value, end: int | Value, step: int = 1) -> str:
    return w.node("Slice", x, w.whole(start), w.whole(end), w.wholes([axis]), w.wholes([step]))


def _select(w: Writer, a: Arguments, _: torch.dtype) -> str:
    picked = w.node("Gather", w.ref(a["self"]), w.whole(a["index"]), axis=a["dim"])
    return w.node("Squeeze", picked, w.wholes([a["dim"] % w.rank(a["self"])]))


def _narrow(w: Writer, a: Arguments, _: torch.dtype) -> str:
    start, length = a["start"], a["length"]
    if isinstance(start, int) and isinstance(length, int):
        return _cut(w, w.ref(a["self"]), a["dim"], start, start + length)
    raise NotWritable("narrow.default", "from where to where varies")


def _split(w: Writer, a: Arguments, _: torch.dtype) -> list[str]:
    axis, side = a.get("dim", 0), w.sides(a["self"])[a.get("dim", 0)]
    if "split_sizes" in a:
        sizes = list(a["split_sizes"])
    elif side is None:
        raise NotWritable("split.Tensor", "takes a side apart that varies")
    else:
        each = a["split_size"] if "split_size" in a else -(-side // a["chunks"])
        sizes = [min(each, side - start) for start in range(0, side, each)]
    if len(sizes) == 1:
        return [w.ref(a["self"])]
    return w.several("Split", len(sizes), w.ref(a["self"]), w.wholes(sizes), axis=axis)


def _unbind(w: Writer, a: Arguments, _: torch.dtype) -> list[str]:
    axis, side = a.get("dim", 0), w.sides(a["self"])[a.get("dim", 0)]
    if side is None:
        raise NotWritable("unbind.int", "takes a side apart that varies")
    places = [w.constant(np.array(place, dtype=np.int64)) for place in range(side)]
    return [w.node("Gather", w.ref(a["self"]), place, axis=axis) for place in places]


def _piece(w: Writer, a: Arguments, _: torch.dtype) -> str:
    return w.pieces(a["self"])[a["index"]]


def _cat(w: Writer, a: Arguments, dtype: torch.dtype) -> str:
    return w.node("Concat", *(w.as_dtype(one, dtype) for one in a["tensors"]), axis=a.get("dim", 0))


def _stack(w: Writer, a: Arguments, dtype: torch.dtype) -> str:
    axis = a.get("dim", 0)
    axis = axis % (w.rank(a["tensors"][0]) + 1)
    apart = [w.node("Unsqueeze", w.as_dtype(one, dtype), w.wholes([axis])) for one in a["tensors"]]
    return w.node("Concat", *apart, axis=axis)


def _flip(w: Writer, a: Arguments, _: torch.dtype) -> str:
    x = w.ref(a["self"])
    for axis in a["dims"]:
        x = _cut(w, x, axis, -1, -TO_END, -1)
    return x


def _triangle(upper: int) -> Write:
    def write(w: Writer, a: Arguments, dtype: torch.dtype) -> str:
        diagonal = w.constant(np.array(a.get("diagonal", 0), dtype=np.int64))
        if dtype != torch.bool:
            return w.node("Trilu", w.ref(a["self"]), diagonal, upper=upper)
        kept = w.node("Trilu", w.cast(w.ref(a["self"]), torch.int64), diagonal, upper=upper)
        return w.cast(kept, torch.bool)

    return write


def _to(w: Writer, a: Arguments, dtype: torch.dtype) -> str:
    return w.as_dtype(a["self"], dtype)


def _index(w: Writer, a: Arguments, _: torch.dtype) -> str:
    chosen = [(axis, one) for axis, one in enumerate(a["indices"]) if one is not None]
    if len(chosen) != 1 or w.dtype(chosen[0][1]) not in (torch.int64, torch.int32):
        raise NotWritable("index.Tensor", "picks by more than one tensor")
    axis, places = chosen[0]
    return w.node("Gather", w.ref(a["self"]), w.ref(places), axis=axis)


def _filled(value: Any, *, like: bool = False, key: str = "size") -> Write:
    def write(w: Writer, a: Arguments, dtype: torch.dtype) -> str:
        number = a["fill_value"] if value is None else value
        shape = w.node("Shape", w.ref(a["self"])) if like else w.wholes(a[key])
        return w.node("Expand", w.number(number, dtype), shape)

    return write


def _arange(w: Writer, a: Arguments, dtype: torch.dtype) -> str:
    ends = (a.get("start", 0), a["end"], a.get("step", 1))
    nothing = w.wholes([0])
    names = [w.node("Squeeze", w.ref(one), nothing) if isinstance(one, Value) else w.number(one, dtype) for one in ends]
    if dtype != torch.int64 and any(isinstance(one, Value) for one in ends):
        names = [w.cast(name, dtype) if isinstance(one, Value) else name for one, name in zip(ends, names, strict=True)]
    return w.node("Range", *names)


def _size(w: Writer, a: Arguments, _: torch.dtype) -> str:
    side = w.sides(a["self"])[a["dim"]]
    if side is not None:
        return w.wholes([side])
    return w.node("Gather", w.node("Shape", w.ref(a["self"])), w.wholes([a["dim"] % w.rank(a["self"])]))


def _whole(op: str) -> Write:
    return lambda w, a, _: w.node(op, w.whole(a["a"]), w.whole(a["b"]))


SHAPES: dict[str, Write] = {
    "view.default": _reshape("size"),
    "reshape.default": _reshape("shape"),
    "flatten.using_ints": _flatten,
    "unflatten.int": _unflatten,
    "permute.default": _permute,
    "transpose.int": _transpose,
    "t.default": _turned,
    "numpy_T.default": _turned,
    "movedim.intlist": _moved,
    **dict.fromkeys(("squeeze.default", "squeeze.dim", "squeeze.dims"), _squeeze),
    "unsqueeze.default": _unsqueeze,
    "expand.default": _expand,
    "expand_as.default": _expand_as,
    "repeat.default": _repeat,
    "repeat_interleave.self_int": _repeat_each,
    "slice.Tensor": _slice,
    "select.int": _select,
    "narrow.default": _narrow,
    **dict.fromkeys(("chunk.default", "split.Tensor", "split_with_sizes.default"), _split),
    "unbind.int": _unbind,
    "getitem.default": _piece,
    "cat.default": _cat,
    "stack.default": _stack,
    "flip.default": _flip,
    "tril.default": _triangle(0),
    "triu.default": _triangle(1),
    **dict.fromkeys(("contiguous.default", "clone.default", "detach.default", "alias.default"), _same),
    **dict.fromkeys(("to.dtype", "type_as.default"), _to),
    "gather.default": lambda w, a, _: w.node("GatherElements", w.ref(a["self"]), w.ref(a["index"]), axis=a["dim"]),
    "index_select.default": lambda w, a, _: w.node("Gather", w.ref(a["self"]), w.ref(a["index"]), axis=a["dim"]),
    "index.Tensor": _index,
    "zeros.default": _filled(0),
    "ones.default": _filled(1),
    "full.default": _filled(None),
    "zeros_like.default": _filled(0, like=True),
    "ones_like.default": _filled(1, like=True),
    "full_like.default": _filled(None, like=True),
    "new_zeros.default": _filled(0),
    "new_ones.default": _filled(1),
    "new_full.default": _filled(None),
    **dict.fromkeys(("arange.default", "arange.start", "arange.start_step"), _arange),
    "scalar_tensor.default": lambda w, a, dtype: w.number(a["s"], dtype),
    "sym_size.int": _size,
    "int.add": _whole("Add"),
    "int.sub": _whole("Sub"),
    "int.mul": _whole("Mul"),
    "int.floordiv": _whole("Div"),
    "int.mod": _whole("Mod"),
}
