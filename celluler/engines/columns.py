"""One column of a table, out of pyarrow's arrays into NumPy's. For the worker alone, as `tables` is.

Knows kinds of values, not files; takes arrays that were validated.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from celluler.datasets.schema import MAX_DIMENSIONS, MAX_NAME_BYTES, MAX_SIDE, NUMBERS, WORDS, Column
from celluler.datasets.sharding import key_numbers
from celluler.errors import InvalidSpec

MAX_ROW_NUMBERS = 1 << 24
"""Numbers in one row of one column."""
MAX_WORD_BYTES = 4096
"""Longer text is neither counted nor a key."""

_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


@dataclass(frozen=True, slots=True)
class Numbers:
    """values: (n, *shape). valid: of the same shape, False where there is no value; None for all valid."""

    values: npt.NDArray[Any]
    valid: npt.NDArray[np.bool_] | None

    def __len__(self) -> int:
        return len(self.values)


class Words:
    """One batch of text or bytes, as codes into its distinct words."""

    def __init__(self, array: Any) -> None:
        """array: a pyarrow DictionaryArray that was validated."""
        self._dictionary = array.dictionary
        self.missing: int = array.null_count
        indices = array.indices.drop_null() if self.missing else array.indices
        self._codes: npt.NDArray[np.int64] = indices.to_numpy(zero_copy_only=False).astype(np.int64)

    def __len__(self) -> int:
        return len(self._codes) + self.missing

    def counts(self, limit: int) -> dict[str | bytes, int] | None:
        """How often each word is there; None for more than `limit` of them, or for one too long to be a label."""
        used, counts = np.unique(self._codes, return_counts=True)
        words = self._words(used) if len(used) <= limit else None
        if words is None:
            return None
        found: dict[str | bytes, int] = {}
        for word, count in zip(words, counts.tolist(), strict=True):
            found[word] = found.get(word, 0) + count
        return found

    def numbers(self) -> npt.NDArray[np.int64] | None:
        """(n,): the number of each row's word, see `key_numbers`; None when a row has none or one is too long."""
        used, place = np.unique(self._codes, return_inverse=True)
        words = None if self.missing else self._words(used)
        return None if words is None else key_numbers(words)[place]

    def _words(self, used: npt.NDArray[np.int64]) -> list[str | bytes] | None:
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.compute as pc  # noqa: PLC0415

        with reading("table"):
            words = self._dictionary.take(pa.array(used))
            if (pc.max(pc.binary_length(words)).as_py() or 0) > MAX_WORD_BYTES:
                return None
            found: list[str | bytes] = words.to_pylist()
        return found


@contextmanager
def reading(form: str) -> Iterator[None]:
    """Whatever pyarrow says of a file becomes one error that says what is wrong with it."""
    import pyarrow as pa  # noqa: PLC0415

    try:
        yield
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError, UnicodeError) as error:
        if getattr(error, "errno", None) == errno.ENOMEM:
            raise MemoryError(str(error)) from error
        raise InvalidSpec("dataset", f"is no readable {form} file: {_shown(str(error), 200)}") from error


def _shown(text: str, most: int) -> str:
    """What pyarrow says may quote the file: one line of it, with nothing that moves a cursor."""
    return "".join(each if each.isprintable() else "?" for each in " ".join(text[: 4 * most].split()))[:most]


def place_of(name: str) -> str:
    """Where an error is, by the name of a column that nobody has checked yet."""
    return f"dataset.{name[:64]}" if name.isprintable() else f"dataset.{name[:64]!a}"


def column_of(field: Any) -> Column:
    """What a field of a pyarrow schema is to us. Raises InvalidSpec for a kind that is no column of ours."""
    import pyarrow as pa  # noqa: PLC0415

    where, shape = place_of(field.name), list[int]()
    if not 1 <= len(field.name.encode("utf-8", "replace")) <= MAX_NAME_BYTES:
        raise InvalidSpec(where, f"a column has a name of 1…{MAX_NAME_BYTES} bytes")
    kind = field.type
    while pa.types.is_fixed_size_list(kind) and len(shape) < MAX_DIMENSIONS:
        shape.append(kind.list_size)
        kind = kind.value_type
    dtype = _dtype(pa, kind)
    sizes = all(1 <= side <= MAX_SIDE for side in shape) and math.prod(shape) <= MAX_ROW_NUMBERS
    if dtype is None or not sizes or (shape and dtype not in NUMBERS):
        raise InvalidSpec(
            where,
            f"is {_shown(str(field.type), 80)}; a column holds numbers, dates, text or bytes, "
            "or lists of one fixed number of numbers (fixed_size_list)",
        )
    return Column(field.name, dtype, tuple(shape))


def _dtype(pa: Any, kind: Any) -> str | None:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if is_word(pa, kind):
        return "text" if kind in (pa.string(), pa.large_string(), pa.string_view()) else "bytes"
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return "date" if pa.types.is_date(kind) else "timestamp"
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return str(np.dtype(kind.to_pandas_dtype()))
    return None


def is_word(pa: Any, kind: Any) -> bool:
    """Text or bytes of any width, not in a dictionary."""
    words = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())
    return kind in words or bool(pa.types.is_fixed_size_binary(kind))


def values_of(array: Any, column: Column) -> Numbers | Words:
    """Raises InvalidSpec when the batch holds something else than the schema said."""
    import pyarrow as pa  # noqa: PLC0415

    if column.dtype not in WORDS:
        numbers = _numbers(pa, array)
        if numbers.values.shape[1:] != column.shape:
            raise InvalidSpec(f"dataset.{column.name[:64]}", "holds something else than its schema says")
        return numbers
    if not pa.types.is_dictionary(array.type):
        views = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
        array = array.cast(views.get(array.type, array.type)).dictionary_encode()
    if array.dictionary.null_count:
        raise InvalidSpec(f"dataset.{column.name[:64]}", "has a dictionary with nulls in it")
    return Words(array)


def _numbers(pa: Any, array: Any) -> Numbers:
    if not pa.types.is_fixed_size_list(array.type):
        return _flat(pa, array)
    side, count = array.type.list_size, len(array)
    inner = _numbers(pa, array.values.slice(array.offset * side, count * side))
    values = inner.values.reshape(count, side, *inner.values.shape[1:])
    valid = None if inner.valid is None else inner.valid.reshape(values.shape)
    if array.null_count:
        rows = array.is_valid().to_numpy(zero_copy_only=False).reshape(count, *[1] * (values.ndim - 1))
        valid = np.broadcast_to(rows, values.shape) if valid is None else valid & rows
    return Numbers(values, valid)


def _flat(pa: Any, array: Any) -> Numbers:
    """A column of plain values. Dates and timestamps become seconds since 1970, in double precision."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    scale = 0.0
    if pa.types.is_timestamp(array.type) or array.type == pa.date64():
        scale = 1e-3 if array.type == pa.date64() else _SECONDS[array.type.unit]
        array = array.cast(pa.int64())
    elif array.type == pa.date32():
        scale, array = 86400.0, array.cast(pa.int32())
    valid = None
    if array.null_count:
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        array = array.fill_null(False if pa.types.is_boolean(array.type) else 0)
    values = array.to_numpy(zero_copy_only=False)
    return Numbers(values.astype(np.float64) * scale if scale else values, valid)
