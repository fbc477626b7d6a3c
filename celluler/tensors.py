"""A dense array as bytes with a shape, to and from what people hold: nested lists, NumPy arrays, JSON.

For the edges, where arrays are small. NumPy is imported only when it is asked for: a node serves predictions
without it.
"""

from __future__ import annotations

import base64
import binascii
import math
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from celluler.errors import InvalidSpec

MAX_ELEMENTS = 1 << 26
MAX_DIMENSIONS = 8
DTYPES = {"float32": ("f", 4), "float64": ("d", 8), "int64": ("q", 8), "int32": ("i", 4), "uint8": ("B", 1)}


@dataclass(frozen=True, slots=True)
class Tensor:
    """shape: of the whole array. dtype: one of DTYPES. data: row-major, little-endian."""

    shape: tuple[int, ...]
    dtype: str
    data: bytes

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InvalidSpec("inputs.dtype", f"{self.dtype!r} is not one of {', '.join(DTYPES)}")
        if len(self.shape) > MAX_DIMENSIONS or min(self.shape, default=0) < 0 or math.prod(self.shape) > MAX_ELEMENTS:
            raise InvalidSpec("inputs.shape", f"at most {MAX_DIMENSIONS} dimensions and {MAX_ELEMENTS} elements")
        if len(self.data) != math.prod(self.shape) * DTYPES[self.dtype][1]:
            raise InvalidSpec("inputs", f"{len(self.data)} bytes do not fill {self.shape} of {self.dtype}")

    def lists(self) -> Any:
        """Nested lists of numbers; a number for a shape of ()."""
        flat = array(DTYPES[self.dtype][0], self.data)
        if sys.byteorder == "big":
            flat.byteswap()
        return _nest(flat.tolist(), self.shape)

    def texts(self) -> Any:
        """Of uint8: nested lists of strings, UTF-8 in the last side up to its first zero."""
        if self.dtype != "uint8" or not self.shape:
            raise InvalidSpec("outputs.dtype", f"is {self.dtype}, no text")
        width = self.shape[-1]
        rows = [self.data[start : start + width] for start in range(0, len(self.data), width)] if width else []
        return _nest([row.split(b"\0", 1)[0].decode("utf-8", "replace") for row in rows], self.shape[:-1])

    def numpy(self) -> Any:
        """A NumPy array of its own memory."""
        import numpy as np  # noqa: PLC0415

        return np.frombuffer(self.data, np.dtype(self.dtype).newbyteorder("<")).reshape(self.shape).astype(self.dtype)


def tensor_of(value: Any, dtype: str | None = None) -> Tensor:
    """A tensor from a NumPy array, anything that turns into one, nested lists of numbers, or texts.

    dtype: by default float32 for lists; of an array its own, with float64 taken as float32 and integers as int64. Texts
    are uint8: UTF-8, one a row.
    Raises InvalidSpec for ragged lists and for what is no number.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, str) or (isinstance(value, list | tuple) and value and isinstance(value[0], str)):
        return _from_texts([value] if isinstance(value, str) else value)
    if hasattr(value, "__array__"):
        return _from_array(value, dtype)
    shape = _shape_of(value)
    flat: list[Any] = []
    _flatten(value, shape, flat, "inputs")
    wanted = dtype or "float32"
    if wanted not in DTYPES:
        raise InvalidSpec("inputs.dtype", f"{wanted!r} is not one of {', '.join(DTYPES)}")
    try:
        packed = array(DTYPES[wanted][0], flat)
    except (TypeError, OverflowError) as error:
        raise InvalidSpec("inputs", f"does not fit {wanted}: {error}") from None
    if sys.byteorder == "big":
        packed.byteswap()
    return Tensor(shape, wanted, packed.tobytes())


def tensor_to_json(tensor: Tensor) -> dict[str, Any]:
    """With the data in base64; `tensor_from_json` reads it back."""
    return {"shape": list(tensor.shape), "dtype": tensor.dtype, "data": base64.b64encode(tensor.data).decode("ascii")}


def tensor_from_json(document: Any) -> Tensor:
    """From `{shape, dtype, data}` with base64, or from nested lists. Raises InvalidSpec."""
    if not isinstance(document, dict):
        return tensor_of(document)
    match document:
        case {"shape": list(shape), "dtype": str(dtype), "data": str(data)} if all(type(size) is int for size in shape):
            try:
                return Tensor(tuple(shape), dtype, base64.b64decode(data, validate=True))
            except (binascii.Error, ValueError) as error:
                raise InvalidSpec("inputs.data", f"not base64: {error}") from None
    raise InvalidSpec("inputs", "neither nested lists nor {shape, dtype, data}")


def _from_texts(texts: Sequence[Any]) -> Tensor:
    """(n, longest) uint8, filled up with zeros."""
    rows = []
    for place, text in enumerate(texts):
        if not isinstance(text, str) or "\0" in text:
            raise InvalidSpec(f"inputs[{place}]", "is no text without zeros")
        try:
            rows.append(text.encode("utf-8"))
        except UnicodeEncodeError:
            raise InvalidSpec(f"inputs[{place}]", "is not Unicode") from None
    width = max(1, *map(len, rows))
    if len(rows) * width > MAX_ELEMENTS:
        raise InvalidSpec("inputs.shape", f"at most {MAX_ELEMENTS} elements")
    return Tensor((len(rows), width), "uint8", b"".join(row.ljust(width, b"\0") for row in rows))


def _from_array(value: Any, dtype: str | None) -> Tensor:
    import numpy as np  # noqa: PLC0415

    held = np.asarray(value)
    byte = held.dtype.itemsize == 1 and held.dtype.kind in "ub"
    name = dtype or ("uint8" if byte else {"f": "float32", "i": "int64", "u": "int64"}.get(held.dtype.kind))
    if name not in DTYPES:
        raise InvalidSpec("inputs.dtype", f"{name or held.dtype} is not one of {', '.join(DTYPES)}")
    plain = np.ascontiguousarray(held, np.dtype(name).newbyteorder("<"))
    return Tensor(held.shape, name, plain.tobytes())


def _shape_of(value: Any) -> tuple[int, ...]:
    shape: list[int] = []
    while isinstance(value, (list, tuple)):
        shape.append(len(value))
        if len(shape) > MAX_DIMENSIONS:
            raise InvalidSpec("inputs", f"more than {MAX_DIMENSIONS} dimensions")
        if not value:
            break
        value = value[0]
    return tuple(shape)


def _flatten(value: Any, shape: tuple[int, ...], flat: list[Any], path: str) -> None:
    if not shape:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InvalidSpec(path, f"{value!r} is not a number"[:100])
        flat.append(value)
        return
    if not isinstance(value, (list, tuple)) or len(value) != shape[0]:
        raise InvalidSpec(path, f"expected a list of {shape[0]}: rows must be equally long")
    for place, item in enumerate(value):
        _flatten(item, shape[1:], flat, f"{path}[{place}]")


def _nest(flat: list[Any], shape: tuple[int, ...]) -> Any:
    if not shape:
        return flat[0]
    for size in reversed(shape[1:]):
        flat = [flat[start : start + size] for start in range(0, len(flat), size)] if size else []
    return flat if all(shape[1:]) else [_nest([], shape[1:]) for _ in range(shape[0])]
