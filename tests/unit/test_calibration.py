"""Tolerances between noise and laziness, and what a node remembers of them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celluler_node.calibrate import LEAST_LAZINESS, LEAST_RATIO, Measured, standings, tolerance_between, variations
from celluler_node.calibration import (
    FILE,
    Calibration,
    Standing,
    advertised_class,
    load_calibrations,
    save_calibration,
    torch_version,
)

OWN = "x86_64-avx512-t2-2.13.0+cpu-fp32-cpu-12345678"
OTHER = "x86_64-avx2-t2-2.13.0+cpu-fp32-cpu-87654321"
FOUND = Calibration("fp32", torch_version(), "a processor", 2, 1.5, Standing(OWN, 0.0, 0.05, 5e-4))

deviations = st.floats(0, 1e9, allow_nan=False)


@given(deviations, deviations)
def test_a_tolerance_lies_between_noise_and_laziness_or_there_is_none(noise: float, laziness: float) -> None:
    found = tolerance_between(noise, laziness)
    if found is None:
        assert laziness < LEAST_RATIO * noise or laziness < LEAST_LAZINESS
    else:
        assert noise < found < laziness


@pytest.mark.parametrize(("noise", "laziness"), [(0.11, 0.05), (0.0, 0.0), (0.1, 0.3), (0.0, math.inf), (1e9, 1e9)])
def test_what_does_not_separate_has_no_tolerance(noise: float, laziness: float) -> None:
    assert tolerance_between(noise, laziness) is None


def measured(task: str, kind: str, worst: float, least: float) -> Measured:
    return Measured(task, kind, kind, worst == 0, 0.0, worst, {"one step less": least, "half the batch": 0.5})


def test_a_class_is_as_good_as_its_worst_task() -> None:
    rows = [measured("mlp", OWN, 0.0, 0.08), measured("mlp", OTHER, 1e-5, 0.08), measured("cnn", OTHER, 0.1, 0.02)]
    own, others = standings(OWN, rows)
    assert own == Standing(OWN, 0.0, 0.08, 8e-4)
    assert others == (Standing(OTHER, 0.1, 0.02, None),)
    assert [row.separates for row in rows] == [True, True, False]


def test_a_machine_takes_on_the_ways_it_has() -> None:
    names = [kind.name for kind in variations(2, 6, ("avx2", "avx512f", "sse"), "x86_64")]
    assert names == ["as this node", "another process", "1 thread", "4 threads", "6 threads", "AVX2", "SSE4.2"]
    assert [kind.name for kind in variations(1, 1, (), "aarch64")] == ["as this node", "another process"]


def test_what_was_found_is_there_again_for_each_precision(tmp_path: Path) -> None:
    save_calibration(tmp_path, FOUND)
    other = replace(FOUND, precision="bf16", others=(Standing(OTHER, 0.1, 0.02, None),))
    save_calibration(tmp_path, other)
    assert load_calibrations(tmp_path) == {"fp32": FOUND, "bf16": other}
    assert advertised_class(tmp_path, "a processor", 2) == OWN
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_machine_that_has_changed_claims_nothing(tmp_path: Path) -> None:
    assert advertised_class(tmp_path, "a processor", 2) == ""
    save_calibration(tmp_path, FOUND)
    assert advertised_class(tmp_path, "another", 2) == advertised_class(tmp_path, "a processor", 3) == ""
    assert advertised_class(tmp_path, "a processor", 2, "fp16") == ""
    save_calibration(tmp_path, replace(FOUND, torch="1.0"))
    assert advertised_class(tmp_path, "a processor", 2) == ""


@pytest.mark.parametrize("text", ["", "[]", "{", '{"fp32": 1}', '{"fp32": {}}', '{"fp32": {"others": 1}}'])
def test_a_file_that_is_no_calibration_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    assert load_calibrations(tmp_path) == {}


@pytest.mark.parametrize("name", ["", "x" * 65, "two\nlines"])
def test_a_class_that_cannot_be_told_is_not_told(tmp_path: Path, name: str) -> None:
    save_calibration(tmp_path, replace(FOUND, own=replace(FOUND.own, audit_class=name)))
    assert load_calibrations(tmp_path) == {}
