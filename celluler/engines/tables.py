"""Tables: Parquet and Arrow files as batches of NumPy columns. For the worker alone: such a file is a stranger's.

What a file may be is bounded before it is read: rows, columns, bytes of a footer and of a row group; text is read as
codes into a dictionary, for one long word repeated is a small file and a huge array; every batch of an Arrow file is
validated before anything follows its offsets. What is left, such as a page that claims to unpack to terabytes, meets
the memory limit of the process and is a MemoryError. One thread reads: results and memory then depend on the file
alone. Knows neither what columns are for nor torch.
"""

from __future__ import annotations

import errno
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from celluler.datasets.schema import (
    MAX_COLUMNS,
    MAX_DIMENSIONS,
    MAX_ROWS,
    MAX_SIDE,
    NUMBERS,
    WORDS,
    Column,
    check_columns,
)
from celluler.datasets.sharding import key_numbers
from celluler.errors import InvalidSpec

MAX_FOOTER_BYTES = 16 << 20
MAX_ROW_GROUP_BYTES = 1 << 30
MAX_PARTS = 1 << 16
"""Row groups of a Parquet file, batches of an Arrow file."""
MAX_ROW_NUMBERS = 1 << 24
"""Numbers in one row of one column."""
BATCH_NUMBERS = 1 << 20
"""In one batch of one column: 8 MiB of doubles."""
MAX_BATCH_ROWS = 1 << 16
MAX_WORD_BYTES = 4096
"""Longer text is neither counted nor a key."""

_MAGIC = {b"PAR1": "parquet", b"ARRO": "arrow", b"\xff\xff\xff\xff": "arrow"}
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

        with _reading("table"):
            words = self._dictionary.take(pa.array(used))
            if (pc.max(pc.binary_length(words)).as_py() or 0) > MAX_WORD_BYTES:
                return None
            found: list[str | bytes] = words.to_pylist()
        return found


Batch = dict[str, Numbers | Words]
Read = Callable[[list[str], int], Iterator[Any]]
"""(columns, rows that are best read at once) -> pyarrow's record batches, validated."""


class Table:
    """An open table file. columns: in the order of the file. rows: as the file says; `batches` checks it."""

    def __init__(self, form: str, schema: Any, rows: int, read: Read) -> None:
        """form: parquet or arrow. schema: pyarrow's."""
        if len(schema) == 0 or len(schema) > MAX_COLUMNS:
            raise InvalidSpec("dataset", f"has {len(schema)} columns, allowed 1…{MAX_COLUMNS}")
        if not 0 <= rows <= MAX_ROWS:
            raise InvalidSpec("dataset", f"has {rows} rows, the most is {MAX_ROWS}")
        self.format, self.rows, self._read = form, rows, read
        self.columns = tuple(_column(field) for field in schema)
        try:
            check_columns(self.columns)
        except InvalidSpec as error:
            raise InvalidSpec(f"dataset.{error.path}", error.problem) from None

    def column(self, name: str) -> Column:
        for column in self.columns:
            if column.name == name:
                return column
        raise InvalidSpec(f"dataset.{name[:64]}", f"is no column; there are {self._names()}")

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        """These columns, every row once, in order. Raises InvalidSpec for a file that breaks off or lies."""
        chosen = {name: self.column(name) for name in names}
        row_numbers = max((math.prod(column.shape) for column in chosen.values()), default=1)
        batch_rows = max(1, min(MAX_BATCH_ROWS, BATCH_NUMBERS // row_numbers))
        left = self.rows
        with _reading(self.format):
            for whole in self._read(list(names), batch_rows):
                left -= whole.num_rows
                if left < 0:
                    break
                for start in range(0, whole.num_rows, batch_rows):
                    piece = whole.slice(start, batch_rows)
                    yield {name: _values(piece.column(name), column) for name, column in chosen.items()}
        if left:
            raise InvalidSpec("dataset", f"has not the {self.rows} rows that it says")

    def _names(self) -> str:
        return ", ".join(column.name for column in self.columns)[:128]


def file_format(path: Path) -> str:
    """`parquet`, `arrow`, or `safetensors` for everything else. Raises InvalidSpec for what cannot be read."""
    try:
        with path.open("rb") as file:
            return _MAGIC.get(file.read(4), "safetensors")
    except OSError as error:
        raise InvalidSpec("dataset", f"cannot be read: {error.strerror}") from error


@contextmanager
def open_table(path: Path) -> Iterator[Table]:
    """A Parquet file, or an Arrow file or stream. Raises InvalidSpec for one that is damaged or outside the bounds."""
    form = file_format(path)
    if form not in _OPEN:
        raise InvalidSpec("dataset", "is neither a Parquet nor an Arrow file")
    _one_thread()
    with _reading(form):
        source, table = _OPEN[form](path)
    try:
        yield table
    finally:
        source.close()


def _one_thread() -> None:
    import pyarrow as pa  # noqa: PLC0415  only a worker that reads tables pays for it

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)


@contextmanager
def _reading(form: str) -> Iterator[None]:
    """Whatever pyarrow says of a file becomes one error that says what is wrong with it."""
    import pyarrow as pa  # noqa: PLC0415

    try:
        yield
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError, UnicodeError) as error:
        if getattr(error, "errno", None) == errno.ENOMEM:
            raise MemoryError(str(error)) from error
        text = " ".join(str(error).split())[:200]
        raise InvalidSpec("dataset", f"is no readable {form} file: {text}") from error


# --- Parquet --------------------------------------------------------------------------------------------------------


def _open_parquet(path: Path) -> tuple[Any, Table]:
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    _check_footer(path)
    source = pa.OSFile(str(path))
    options = {
        "pre_buffer": False,
        "buffer_size": 1 << 20,
        "thrift_string_size_limit": MAX_FOOTER_BYTES,
        "thrift_container_size_limit": MAX_PARTS,
    }
    opened = pq.ParquetFile(source, **options)
    _check_metadata(opened.metadata)
    words = [field.name for field in opened.schema_arrow if _is_word(pa, field.type)]
    file = pq.ParquetFile(source, metadata=opened.metadata, read_dictionary=words, **options)

    def read(names: list[str], rows: int) -> Iterator[Any]:
        for batch in file.iter_batches(rows, columns=names, use_threads=False):
            batch.validate(full=True)
            yield batch

    return source, Table("parquet", opened.schema_arrow, opened.metadata.num_rows, read)


def _check_footer(path: Path) -> None:
    """How long the metadata say they are, before anything is allocated for them."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 8))
        tail = file.read(8)
    if size < 12 or tail[4:] != b"PAR1":
        raise InvalidSpec("dataset", "is no readable parquet file: it breaks off")
    (length,) = struct.unpack("<I", tail[:4])
    if length > min(MAX_FOOTER_BYTES, size - 12):
        raise InvalidSpec("dataset", f"is no readable parquet file: a footer of {length} bytes in {size}")


def _check_metadata(metadata: Any) -> None:
    if metadata.num_columns > MAX_COLUMNS or metadata.num_row_groups > MAX_PARTS:
        raise InvalidSpec(
            "dataset",
            f"has {metadata.num_columns} columns in {metadata.num_row_groups} row groups, "
            f"the most is {MAX_COLUMNS} in {MAX_PARTS}",
        )
    groups = [metadata.row_group(place) for place in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size for group in groups), default=0)
    if largest > MAX_ROW_GROUP_BYTES or any(group.total_byte_size < 0 or group.num_rows < 0 for group in groups):
        raise InvalidSpec("dataset", f"has a row group of {largest} bytes, the most is {MAX_ROW_GROUP_BYTES}")
    if sum(group.num_rows for group in groups) != metadata.num_rows:
        raise InvalidSpec("dataset", f"has not the {metadata.num_rows} rows that it says")


# --- Arrow ----------------------------------------------------------------------------------------------------------


def _open_arrow(path: Path) -> tuple[Any, Table]:
    """A file, or a stream in a file. Mapped: a batch that is not packed costs no memory of its own."""
    import pyarrow as pa  # noqa: PLC0415

    source = pa.memory_map(str(path))
    is_file = source.read(6) == b"ARROW1"

    def batches(places: list[int]) -> Iterator[Any]:
        options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=places)
        source.seek(0)
        if not is_file:
            with pa.ipc.open_stream(source, options=options) as stream:
                yield from stream
            return
        with pa.ipc.open_file(source, options=options) as file:
            if file.num_record_batches > MAX_PARTS:
                raise InvalidSpec("dataset", f"has {file.num_record_batches} batches, the most is {MAX_PARTS}")
            yield from (file.get_batch(place) for place in range(file.num_record_batches))

    def read(names: list[str], _rows: int) -> Iterator[Any]:
        for batch in batches(sorted(schema.get_field_index(name) for name in names)):
            batch.validate(full=True)
            yield batch

    source.seek(0)
    with (pa.ipc.open_file if is_file else pa.ipc.open_stream)(source) as opened:
        schema = opened.schema
    return source, Table("arrow", schema, sum(batch.num_rows for batch in batches([0])) if len(schema) else 0, read)


_OPEN: dict[str, Callable[[Path], tuple[Any, Table]]] = {"parquet": _open_parquet, "arrow": _open_arrow}


# --- one column -----------------------------------------------------------------------------------------------------


def place_of(name: str) -> str:
    """Where an error is, by the name of a column that nobody has checked yet."""
    return f"dataset.{name[:64]}" if name.isprintable() else f"dataset.{name[:64]!a}"


def _column(field: Any) -> Column:
    """What a field of a pyarrow schema is to us. Raises InvalidSpec for a kind that is no column of ours."""
    import pyarrow as pa  # noqa: PLC0415

    where, shape = place_of(field.name), list[int]()
    if not 1 <= len(field.name.encode("utf-8", "replace")) <= 128:
        raise InvalidSpec(where, "a column has a name of 1…128 bytes")
    kind = field.type
    while pa.types.is_fixed_size_list(kind) and len(shape) < MAX_DIMENSIONS:
        shape.append(kind.list_size)
        kind = kind.value_type
    dtype = _dtype(pa, kind)
    sizes = all(1 <= side <= MAX_SIDE for side in shape) and math.prod(shape) <= MAX_ROW_NUMBERS
    if dtype is None or not sizes or (shape and dtype not in NUMBERS):
        raise InvalidSpec(
            where,
            f"is {str(field.type)[:80]}; a column holds numbers, dates, text or bytes, "
            "or lists of one fixed number of numbers (fixed_size_list)",
        )
    return Column(field.name, dtype, tuple(shape))


def _dtype(pa: Any, kind: Any) -> str | None:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if _is_word(pa, kind):
        return "text" if kind in (pa.string(), pa.large_string(), pa.string_view()) else "bytes"
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return "date" if pa.types.is_date(kind) else "timestamp"
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return str(np.dtype(kind.to_pandas_dtype()))
    return None


def _is_word(pa: Any, kind: Any) -> bool:
    """Text or bytes of any width, not in a dictionary."""
    words = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())
    return kind in words or bool(pa.types.is_fixed_size_binary(kind))


def _values(array: Any, column: Column) -> Numbers | Words:
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
