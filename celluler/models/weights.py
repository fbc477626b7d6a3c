"""The weights file of a model: safetensors, exactly the tensors that its body names.

The flat vector of a model is what training moves, each tensor in row-major order, one after another in the order of
`Body.tensors`; of a spec that is layer by layer as they are written, weight before bias, a batch norm's running mean
and variance behind its weight and bias, and there is nothing else in the file. What training leaves alone lies behind
it, in any dtype; of a spec stored in less than float32 all that is (`celluler.models.narrow`). Knows no torch: a node
checks and makes weights without an engine.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from celluler.documents import read_json
from celluler.errors import InvalidSpec, LocalError
from celluler.models.body import Body
from celluler.models.graph_ops import DTYPES
from celluler.models.layers import FLOAT_BYTES, TensorSpec
from celluler.models.spec import Architecture
from celluler.models.stored import Stored

Vector = npt.NDArray[np.float32]
Still = Mapping[str, npt.NDArray[np.uint8]]
"""Bytes of the tensors that training leaves alone, by name."""
NOTHING_STILL: Still = MappingProxyType({})

MAX_HEADER_BYTES = 8 << 20
MAX_RANK = 32
SEED_BYTES = 32
_NONE = np.zeros(0, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class TensorView:
    """Where one tensor's bytes lie in a safetensors file. dtype: as the format writes it (`F32`)."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def initial_vector(architecture: Body, seed: bytes) -> Vector:
    """Untrained weights as a flat vector: the same bytes for the same 32-byte seed, on any machine.

    Weights are uniform within ±bound, drawn from BLAKE3 keyed by the seed with the tensor's name as input. Raises
    InvalidSpec for a body other than a spec, whose weights come from its author.
    """
    if not isinstance(architecture, Architecture):
        raise InvalidSpec("weights", f"of a {architecture.kind} are its author's: there are none to begin with")
    need_float32(architecture, "untrained")
    if len(seed) != SEED_BYTES:
        raise LocalError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
    vector = np.empty(architecture.dimension, dtype=np.float32)
    start = 0
    for tensor in architecture.tensors:
        vector[start : start + tensor.elements] = _initial(tensor, seed)
        start += tensor.elements
    return vector


def need_float32(body: Body, what: str) -> None:
    """What trains, or begins to, has float32 weights. Raises InvalidSpec (`dtype`)."""
    if body.narrow:
        raise InvalidSpec(
            "dtype", f"is {body.dtype}: {what} weights are float32", hint="start from the model it was made from"
        )


def initial_weights(architecture: Body, seed: bytes, path: Path) -> None:
    """Write untrained weights to `path`."""
    save_vector(architecture, initial_vector(architecture, seed), path)


def save_vector(architecture: Body, vector: Vector, path: Path, still: Still = NOTHING_STILL) -> None:
    """Write a flat vector, and what training left alone, as a weights file; equal ones give equal files. `path` appears
    whole or not at all."""
    if vector.shape != (architecture.dimension,) or vector.dtype != np.float32:
        raise LocalError(f"{vector.dtype} of shape {vector.shape} is no vector of {architecture.dimension} float32")
    header: dict[str, Any] = {}
    start = 0
    for tensor in architecture.tensors:
        end = start + FLOAT_BYTES * tensor.elements
        header[tensor.name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    for one in (rest := still_of(architecture)):
        end = start + len(still[one.name])
        header[one.name] = {"dtype": DTYPES[one.dtype][0], "shape": list(one.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)  # as the format asks: the data begins on a multiple of eight
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            vector.astype("<f4", copy=False).tofile(file)
            for one in rest:
                still[one.name].tofile(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def still_of(architecture: Body) -> tuple[Stored, ...]:
    """What lies in the file, and training leaves alone."""
    moved = {tensor.name for tensor in architecture.tensors}
    return tuple(one for one in architecture.stored if one.name not in moved)


def check_weights(architecture: Body, path: Path) -> dict[str, TensorView]:
    """The file holds exactly the body's tensors. Reads the header alone.

    Raises InvalidSpec that names the first tensor that is missing, unknown, or of another shape or dtype.
    """
    views = read_header(path, "weights")
    expected = {tensor.name: tensor for tensor in architecture.stored}
    for name in views:
        if name not in expected:
            raise InvalidSpec(f"weights.{name[:64]}", "is not a tensor of this architecture")
    for name, tensor in expected.items():
        if name not in views:
            raise InvalidSpec(f"weights.{name}", "is missing")
        view, dtype = views[name], DTYPES[tensor.dtype][0]
        if view.dtype != dtype or view.shape != tensor.shape:
            raise InvalidSpec(f"weights.{name}", f"is {view.dtype} {view.shape}, must be {dtype} {tensor.shape}")
    return views


def load_vector(architecture: Body, path: Path) -> Vector:
    """The flat vector of a weights file, writable without changing the file.

    A file whose tensors lie in the order of the vector, as `save_vector` writes it, is mapped and not copied.
    Raises InvalidSpec for a file that does not fit, or holds NaN or infinity.
    """
    views = check_weights(architecture, path)
    order = [views[tensor.name] for tensor in architecture.tensors]
    if order and all(one.end == other.start for one, other in itertools.pairwise(order)):
        vector: Vector = map_floats(path, order[0].start, architecture.dimension)
    else:
        vector = np.concatenate(
            [map_floats(path, view.start, (view.end - view.start) // 4) for view in order] or [_NONE]
        )
    if not np.isfinite(vector).all():
        raise InvalidSpec("weights", "hold values that are not finite")
    return vector


def load_still(architecture: Body, path: Path) -> Still:
    """A copy of what training leaves alone. Raises InvalidSpec for a file that does not fit."""
    rest = still_of(architecture)
    if not rest:
        return NOTHING_STILL
    views = check_weights(architecture, path)
    return {
        one.name: np.fromfile(path, dtype=np.uint8, count=view.end - view.start, offset=view.start)
        for one in rest
        for view in (views[one.name],)
    }


def map_floats(path: Path, start: int, count: int) -> Vector:
    """`count` float32 at byte `start` of a file, copied on write. The caller has checked that they are there."""
    return np.memmap(path, dtype="<f4", mode="c", offset=start, shape=(count,))


def read_header(path: Path, what: str) -> dict[str, TensorView]:
    """The table of a safetensors file, checked against the file's size. Raises InvalidSpec at `what`."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise InvalidSpec(what, f"is not a safetensors file: a header of {length} bytes in {size}")
            header = file.read(length)
    except OSError as error:
        raise InvalidSpec(what, f"cannot be read: {error.strerror}") from error
    try:
        document = read_json(header, limit=length)
    except InvalidSpec as error:
        raise InvalidSpec(f"{what}.{error.path}" if error.path else what, f"in its header: {error.problem}") from error
    if not isinstance(document, dict):
        raise InvalidSpec(what, "is not a safetensors file: the header is no object")
    views = {
        name: _view(entry, 8 + length, f"{what}.{name[:64]}") for name, entry in document.items() if name[:2] != "__"
    }
    _check_cover(views, 8 + length, size, what)
    return views


def _view(entry: Any, base: int, path: str) -> TensorView:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]} if len(entry) == 3:
            sides = len(shape) <= MAX_RANK and all(type(side) is int and side >= 0 for side in shape)
            # Of empty tensors, too: nothing makes an array with sides that no memory could have.
            if sides and math.prod(max(1, side) for side in shape) < 1 << 48 and 0 <= start <= end:
                return TensorView(dtype, tuple(shape), base + start, base + end)
    raise InvalidSpec(path, "has no valid entry in the safetensors header")


_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def _check_cover(views: dict[str, TensorView], base: int, size: int, what: str) -> None:
    """Tensors lie one behind another, each as long as its shape says, and fill the file: no overlap, nothing hidden."""
    place = base
    for name, view in sorted(views.items(), key=lambda item: (item[1].start, item[1].end)):
        item_bytes = _ITEM_BYTES.get(view.dtype)
        if item_bytes is None:
            raise InvalidSpec(f"{what}.{name[:64]}", f"is {view.dtype[:16]}; only {', '.join(_ITEM_BYTES)} are known")
        if view.start != place or view.end - view.start != item_bytes * math.prod(view.shape):
            raise InvalidSpec(f"{what}.{name[:64]}", "does not lie where its shape says")
        place = view.end
    if place != size:
        raise InvalidSpec(what, f"has {size} bytes, its tensors end at {place}")


def _initial(tensor: TensorSpec, seed: bytes) -> Vector | float:
    if tensor.role in ("zero", "mean"):
        return 0.0
    if tensor.role in ("one", "variance"):
        return 1.0
    drawn = blake3(tensor.name.encode("ascii"), key=seed).digest(length=4 * tensor.elements)
    # 24 bits fit float32 exactly, so every step below is exact but the last multiplication, which IEEE 754 fixes.
    unit = (np.frombuffer(drawn, dtype="<u4") >> 8).astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)
    return unit * np.float32(tensor.bound)
