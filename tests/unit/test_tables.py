"""Tables become columns, the same from every format; what is no table, or no honest one, is refused in words."""

from __future__ import annotations

import datetime
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celluler.datasets.schema import Column, ColumnQuality, LabelCount, Selection
from celluler.datasets.sharding import key_numbers
from celluler.engines.data import load_dataset
from celluler.engines.summarise import summarise
from celluler.engines.tables import MAX_FOOTER_BYTES, open_table
from celluler.errors import InvalidSpec
from celluler.models.spec import parse_spec
from tests.support.specs import MLP, WORDS, digits, regression, save_tensors
from tests.support.tables import digits_table, false_rows, save_table, word_bomb

FORMS = ("parquet", "arrow", "arrow-stream")
DIGITS = parse_spec(MLP)
DAY = datetime.date(2020, 1, 2)
MIXED = pa.table(
    {
        "whole": pa.array([1, None, 3], pa.int32()),
        "real": pa.array([1.0, float("nan"), 3.0]),
        "half": pa.array([1.0, 2.0, None], pa.float16()),
        "flag": pa.array([True, None, False]),
        "large": pa.array([2**53, None, 0], pa.uint64()),
        "word": pa.array(["a", None, "bé"]),
        "view": pa.array(["a", "a", None], pa.large_string()),
        "bytes": pa.array([b"\xff", b"\xff", b""]),
        "coded": pa.array(["x", "y", "x"]).dictionary_encode(),
        "day": pa.array([DAY, None, DAY]),
        "time": pa.array([datetime.datetime(2020, 1, 2), None, None], pa.timestamp("ms", tz="UTC")),
        "pair": pa.array([[1.0, 2.0], None, [3.0, None]], pa.list_(pa.float32(), 2)),
        "grid": pa.array([[[1, 2, 3]]] * 3, pa.list_(pa.list_(pa.int16(), 3), 1)),
    }
)
AT_S = 1577923200.0


@pytest.mark.parametrize("form", FORMS)
def test_every_kind_of_column_is_read(tmp_path: Path, form: str) -> None:
    summary = summarise(save_table(tmp_path / "t", MIXED, form))
    assert (summary.format, summary.rows, summary.label) == (form.removesuffix("-stream"), 3, "")
    assert summary.schema == (
        Column("whole", "int32", ()),
        Column("real", "float64", ()),
        Column("half", "float16", ()),
        Column("flag", "bool", ()),
        Column("large", "uint64", ()),
        Column("word", "text", ()),
        Column("view", "text", ()),
        Column("bytes", "bytes", ()),
        Column("coded", "text", ()),
        Column("day", "date", ()),
        Column("time", "timestamp", ()),
        Column("pair", "float32", (2,)),
        Column("grid", "int16", (1, 3)),
    )
    assert [replace(one, mean=one.mean and round(one.mean, 6)) for one in summary.quality] == [
        ColumnQuality("whole", 1, 1.0, 3.0, 2.0, 2),
        ColumnQuality("real", 1, 1.0, 3.0, 2.0, 2),
        ColumnQuality("half", 1, 1.0, 2.0, 1.5, 2),
        ColumnQuality("flag", 1, 0.0, 1.0, 0.5, 2),
        ColumnQuality("large", 1, 0.0, 2.0**53, 2.0**52, 2),
        ColumnQuality("word", 1, None, None, None, 2),
        ColumnQuality("view", 1, None, None, None, 1),
        ColumnQuality("bytes", 0, None, None, None, 2),
        ColumnQuality("coded", 0, None, None, None, 2),
        ColumnQuality("day", 1, AT_S, AT_S, AT_S, 1),
        ColumnQuality("time", 2, AT_S, AT_S, AT_S, 1),
        ColumnQuality("pair", 2, 1.0, 3.0, 2.0, None),
        ColumnQuality("grid", 0, 1.0, 3.0, 2.0, None),
    ]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", [{}, {"compression": "zstd"}])
def test_a_summary_says_how_labels_are_spread(tmp_path: Path, form: str, options: dict[str, Any]) -> None:
    _, y = digits()
    path = save_table(tmp_path / "t", digits_table(), form, **options)
    summary = summarise(path, form.removesuffix("-stream"))
    assert summary.label == "label"
    assert summary.balance == tuple(LabelCount(str(digit), int((y == digit).sum())) for digit in range(10))
    writers = summarise(path, label="writer")
    assert (writers.label, len(writers.balance)) == ("writer", 30)


def test_tensors_are_columns_of_one_length(tmp_path: Path) -> None:
    x, y = digits()
    summary = summarise(save_tensors(tmp_path / "t", {"x": x, "y": y}), "safetensors")
    assert (summary.rows, summary.label, len(summary.balance)) == (1797, "y", 10)
    assert sorted(column.name for column in summary.schema) == ["x", "y"]
    with pytest.raises(InvalidSpec, match="one number of rows"):
        summarise(save_tensors(tmp_path / "u", {"x": x, "y": y[1:]}))


def test_a_summary_of_another_file_than_was_said_is_refused(tmp_path: Path) -> None:
    path = save_table(tmp_path / "t", digits_table(slice(3)))
    for arguments, where in ((("arrow",), "format"), (("", "digit"), "label")):
        with pytest.raises(InvalidSpec) as caught:
            summarise(path, *arguments)
        assert caught.value.path == where


# --- what a model learns from ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_table_is_the_same_dataset_as_the_tensors(tmp_path: Path, form: str) -> None:
    x, y = digits()
    path = save_table(tmp_path / "t", digits_table(), form)
    data = load_dataset(DIGITS, path, Selection(("pixels",), key="writer"))
    assert np.array_equal(data.x.numpy(), x)
    assert np.array_equal(data.y.numpy(), y)
    assert data.keys is not None
    assert data.keys[:60].tolist() == key_numbers([f"writer-{place}" for place in range(30)] * 2).tolist()


def test_columns_lie_side_by_side_in_the_order_in_which_they_are_named(tmp_path: Path) -> None:
    architecture = parse_spec(regression({"kind": "dense", "width": 1}, shape=(3,)))
    table = pa.table({"b": [1, 2], "a": pa.array([[3.0, 4.0]] * 2, pa.list_(pa.float64(), 2)), "price": [0.5, 1.5]})
    path = save_table(tmp_path / "t", table)
    chosen = load_dataset(architecture, path, Selection(("a", "b"), "price"))
    assert chosen.x.tolist() == [[3.0, 4.0, 1.0], [3.0, 4.0, 2.0]]
    assert chosen.y.tolist() == [[0.5], [1.5]]
    assert load_dataset(architecture, path, Selection((), "price")).x.tolist() == [[1.0, 3.0, 4.0], [2.0, 3.0, 4.0]]


def test_words_for_an_embedding_are_whole_numbers(tmp_path: Path) -> None:
    architecture = parse_spec(WORDS)
    rows = pa.array([[0, 1, 2, 3, 6]] * 2, pa.list_(pa.uint8(), 5))
    data = load_dataset(architecture, save_table(tmp_path / "t", pa.table({"words": rows, "label": [1.0, 2.0]})))
    assert data.x.tolist() == [[0, 1, 2, 3, 6]] * 2


SMALL = digits_table(slice(20))


@pytest.mark.parametrize(
    ("table", "selection", "path"),
    [
        (SMALL, Selection(), "dataset.writer"),
        (SMALL, Selection(("pixels",), "digit"), "dataset.digit"),
        (SMALL, Selection(("pixels",), "writer"), "dataset.writer"),
        (SMALL, Selection(("pixels",), "pixels"), "features"),
        (SMALL, Selection(("label",), "writer"), "dataset.x"),
        (SMALL, Selection(("pixels", "pixels")), "dataset.x"),
        (SMALL, Selection(("pixels",), key="pixels"), "dataset.pixels"),
        (SMALL.slice(0, 0), Selection(("pixels",)), "dataset.x"),
        (SMALL.set_column(2, "label", pa.array([10] * 20)), Selection(("pixels",)), "dataset.y"),
        (SMALL.set_column(2, "label", pa.array([2**64 - 1] * 20, pa.uint64())), Selection(("pixels",)), "dataset.y"),
        (SMALL.set_column(2, "label", pa.array([None] * 20, pa.int8())), Selection(("pixels",)), "dataset.label"),
        (SMALL.set_column(2, "label", pa.array([0.0] * 20)), Selection(("pixels",)), "dataset.label"),
        (
            SMALL.set_column(1, "writer", pa.array([None] * 20, pa.string())),
            Selection(("pixels",), key="writer"),
            "dataset.writer",
        ),
        (
            SMALL.set_column(1, "writer", pa.array(["x" * 5000] * 20)),
            Selection(("pixels",), key="writer"),
            "dataset.writer",
        ),
        (
            SMALL.set_column(0, "pixels", pa.array([[1e300] * 64] * 20, pa.list_(pa.float64(), 64))),
            Selection(("pixels",)),
            "dataset.x",
        ),
    ],
)
def test_a_table_that_does_not_fit_a_model_is_refused(
    tmp_path: Path, table: Any, selection: Selection, path: str
) -> None:
    with pytest.raises(InvalidSpec) as caught:
        load_dataset(DIGITS, save_table(tmp_path / "t", table), selection)
    assert caught.value.path == path


def test_tensors_may_have_other_names_and_a_key(tmp_path: Path) -> None:
    x, y = digits()
    path = save_tensors(tmp_path / "t", {"image": x, "digit": y, "writer": y % 3})
    data = load_dataset(DIGITS, path, Selection(("image",), "digit", "writer"))
    assert data.keys is not None
    assert np.array_equal(data.keys, y % 3)
    with pytest.raises(InvalidSpec, match="must hold the tensors"):
        load_dataset(DIGITS, path)


# --- hostile files --------------------------------------------------------------------------------------------------

NESTED = {
    "list": pa.list_(pa.int64()),
    "struct": pa.struct([("a", pa.int64())]),
    "map": pa.map_(pa.string(), pa.int64()),
    "list of text": pa.list_(pa.string(), 2),
    "decimal": pa.decimal128(10, 2),
    "nothing": pa.null(),
    "deep": pa.list_(pa.list_(pa.list_(pa.list_(pa.list_(pa.int8(), 1), 1), 1), 1), 1),
}


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("kind", NESTED)
def test_values_of_other_kinds_are_refused_by_name(tmp_path: Path, kind: str, form: str) -> None:
    table = pa.table({"odd": pa.array([None], NESTED[kind])})
    with pytest.raises(InvalidSpec, match="fixed_size_list") as caught:
        summarise(save_table(tmp_path / "t", table, form))
    assert caught.value.path == "dataset.odd"


@pytest.mark.parametrize("rows", [1798, 10**9, 2**40, 2**62])
def test_a_file_that_says_more_rows_than_it_has_is_refused(tmp_path: Path, rows: int) -> None:
    with pytest.raises(InvalidSpec, match="rows"):
        summarise(false_rows(tmp_path / "t", digits_table(), rows))


def test_one_long_word_written_many_times_costs_what_one_costs(tmp_path: Path) -> None:
    path = word_bomb(tmp_path / "t")
    assert path.stat().st_size < 1 << 16
    before = pa.total_allocated_bytes()
    assert summarise(path).rows == 200_000
    assert pa.total_allocated_bytes() - before < 8 << 20


def test_a_footer_that_claims_to_be_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "t"
    for length in (0xFFFFFFFF, MAX_FOOTER_BYTES + 1, 100):
        path.write_bytes(b"PAR1" + length.to_bytes(4, "little") + b"PAR1")
        with pytest.raises(InvalidSpec, match="footer"):
            summarise(path)


def test_columns_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    twice = pa.table([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pytest.raises(InvalidSpec, match="one name"):
        summarise(save_table(tmp_path / "t", twice, "arrow"))
    for name in ("", "\x1b[2J", "x" * 129):
        with pytest.raises(InvalidSpec):
            summarise(save_table(tmp_path / "t", pa.table({name: [1]}), "arrow"))
    with pytest.raises(InvalidSpec, match="1025 columns"):
        summarise(save_table(tmp_path / "t", pa.table({f"c{place}": [1] for place in range(1025)}), "arrow"))


@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_table_is_an_error_in_words_or_a_table(tmp_path: Path, form: str, data: Any) -> None:
    path = tmp_path / f"whole-{form}"
    whole = bytearray((path if path.exists() else save_table(path, SMALL, form)).read_bytes())
    if data.draw(st.booleans()):
        del whole[data.draw(st.integers(0, len(whole) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            whole[data.draw(st.integers(4, len(whole) - 1))] = data.draw(st.integers(0, 255))
    broken = tmp_path / "broken"
    broken.write_bytes(whole)
    try:
        summarise(broken)
    except (InvalidSpec, MemoryError):
        return


def test_noise_behind_a_tables_first_bytes_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "t"
    for magic in (b"PAR1", b"ARROW1\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\xff\xff\xff\xff\x7f", b""):
        path.write_bytes(magic + os.urandom(4096))
        with pytest.raises(InvalidSpec):
            summarise(path)
    with pytest.raises(InvalidSpec, match="cannot be read"), open_table(tmp_path / "absent"):
        pass
