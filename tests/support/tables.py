"""Digits as tables, and tables that nobody should send."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.specs import digits


def digits_table(rows: slice = slice(None)) -> pa.Table:
    """pixels: 64 numbers a row. writer: text, of whom there are 30. label: the digit."""
    x, y = digits()
    x, y = x[rows], y[rows]
    writers = [f"writer-{place % 30}" for place in range(len(y))]
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 64)
    return pa.table({"pixels": pixels, "writer": writers, "label": y})


def save_table(path: Path, table: pa.Table, form: str = "parquet", **options: Any) -> Path:
    """form: parquet, arrow, or arrow-stream."""
    if form == "parquet":
        pq.write_table(table, path, **options)
        return path
    new = pa.ipc.new_file if form == "arrow" else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as out:
        out.write_table(table, max_chunksize=500)
    return path


def false_rows(path: Path, table: pa.Table, rows: int) -> Path:
    """A Parquet file of one row group whose footer says, in both places, that it has `rows` rows."""
    save_table(path, table)
    data = path.read_bytes()
    footer = int.from_bytes(data[-8:-4], "little")
    body, said = data[: -8 - footer], data[-8 - footer : -8]
    old, new = _varint(table.num_rows), _varint(rows)
    lying = said.replace(b"\x16" + old, b"\x16" + new)  # thrift's compact form: an i64 field one after the last
    assert lying != said
    path.write_bytes(body + lying + len(lying).to_bytes(4, "little") + b"PAR1")
    return path


def _varint(number: int) -> bytes:
    """Zigzag, then seven bits a byte."""
    number, out = number << 1, bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def word_bomb(path: Path, *, rows: int = 200_000, word_bytes: int = 1 << 20) -> Path:
    """A small Parquet file that is `rows` times one long word: 200 GB when it is written out."""
    words = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["a" * word_bytes]))
    return save_table(path, pa.table({"word": words, "label": pa.array(np.zeros(rows, np.int64))}), compression="zstd")


def unpacking_bomb(path: Path, claimed_bytes: int) -> Path:
    """A small Arrow file of one packed column that claims to unpack to so many bytes."""
    zeros = pa.table({"x": pa.array(np.zeros(1_234_567))})
    with pa.OSFile(str(path), "wb") as file:
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(file, zeros.schema, options=options) as out:
            out.write_table(zeros)
    honest = (8 * 1_234_567).to_bytes(8, "little", signed=True)  # stands before the packed bytes
    data = path.read_bytes()
    assert data.count(honest) == 1
    path.write_bytes(data.replace(honest, claimed_bytes.to_bytes(8, "little", signed=True)))
    return path
