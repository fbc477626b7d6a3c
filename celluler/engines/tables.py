"""Tables: Parquet and Arrow files as batches of NumPy columns. For the worker alone: such a file is a stranger's.

What a file may be is bounded before it is read: rows, columns, bytes of a footer and of a row group; text is read as
codes into a dictionary, for one long word repeated is a small file and a huge array; every batch of an Arrow file is
validated before anything follows its offsets. What is left, such as a page that claims to unpack to terabytes, meets
the memory limit of the process and is a MemoryError. One thread reads: results and memory then depend on the file
alone. Knows neither what columns are for nor torch.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from celluler.datasets.schema import MAX_COLUMNS, MAX_ROWS, Column, check_columns
from celluler.engines.columns import Numbers, Words, column_of, is_word, reading, values_of
from celluler.errors import InvalidSpec

MAX_FOOTER_BYTES = 16 << 20
MAX_ROW_GROUP_BYTES = 1 << 30
MAX_PARTS = 1 << 16
"""Row groups of a Parquet file, batches of an Arrow file."""
BATCH_NUMBERS = 1 << 20
"""In one batch of one column: 8 MiB of doubles."""
MAX_BATCH_ROWS = 1 << 16

_MAGIC = {b"PAR1": "parquet", b"ARRO": "arrow", b"\xff\xff\xff\xff": "arrow"}

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
        self.columns = tuple(column_of(field) for field in schema)
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
        with reading(self.format):
            for whole in self._read(list(names), batch_rows):
                left -= whole.num_rows
                if left < 0:
                    break
                for start in range(0, whole.num_rows, batch_rows):
                    piece = whole.slice(start, batch_rows)
                    yield {name: values_of(piece.column(name), column) for name, column in chosen.items()}
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
    with reading(form):
        source, table = _OPEN[form](path)
    try:
        yield table
    finally:
        source.close()


def _one_thread() -> None:
    import pyarrow as pa  # noqa: PLC0415  only a worker that reads tables pays for it

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)


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
    words = [field.name for field in opened.schema_arrow if is_word(pa, field.type)]
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
