from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest

from celluler.aggregation.digests import part_hash, reduced_digest
from celluler.aggregation.q16 import Quantised, decode, encode
from celluler.aggregation.rules import RULES, rule_named
from celluler.errors import LocalError
from celluler.jobs.spec import Train, parse_job
from tests.support.jobs import JOB_YAML


def reduce_floats(name: str, rows: list[list[float]], f: int) -> tuple[np.ndarray, tuple[int, ...]]:
    parts = [encode(np.array(row, dtype=np.float32)) for row in rows]
    exponents = np.array([part.exponent for part in parts], dtype=np.int16)
    reduced = RULES[name](exponents, np.stack([part.mantissas for part in parts]), f)
    return decode(Quantised(reduced.exponent, reduced.mantissas)), reduced.weights


def test_one_update_times_minus_a_thousand_moves_the_mean_and_not_nk_or_the_median() -> None:
    honest = [[1.0, 2.0], [1.1, 2.1], [0.9, 1.9], [1.0, 2.05]]
    attack = [[-1000.0, -2000.0]]
    for name in RULES.keys() - {"clipping", "mean"}:
        values, _ = reduce_floats(name, honest + attack, 2)
        assert np.allclose(values, [1, 2], atol=0.15)
    moved, weights = reduce_floats("mean", honest + attack, 2)
    assert moved[0] < -190
    assert weights == (1, 1, 1, 1, 1)


def test_nk_weights_sum_to_the_square_of_the_trusted() -> None:
    _, weights = reduce_floats("nk", [[1.0, 2.0], [1.1, 2.1], [0.9, 1.9], [1.0, 2.05], [-9.0, 4.0]], 2)
    assert sum(weights) == 9
    assert weights[4] == 0


def test_only_zero_parts_give_a_zero_part() -> None:
    for name in RULES:
        values, _ = reduce_floats(name, [[0.0, 0.0]] * 4, 1)
        assert not values.any()


@pytest.mark.parametrize("name", RULES)
def test_every_rule_tells_what_each_of_its_inputs_weighs(name: str) -> None:
    """Also of those that it drops for being far too large, or of which it sees but the highest bits."""
    rows = [[3.0, 4.0], [1.5, 2.0], [1e6, 0.0], [3e-5, -4e-5], [0.0, 0.0], [6.0, 8.0], [-3.0, 4.0]]
    parts = [encode(np.array(row, dtype=np.float32)) for row in rows]
    exponents = np.array([part.exponent for part in parts], dtype=np.int16)
    told = RULES[name](exponents, np.stack([part.mantissas for part in parts]), 2).squares
    assert told == pytest.approx([float(np.square(decode(part).astype(np.float64)).sum()) for part in parts], rel=1e-12)
    assert told == pytest.approx([25.0, 6.25, 1e12, 25e-10, 0.0, 100.0, 25.0], rel=1e-3)


def test_the_median_of_an_even_number_is_the_middle_of_the_two() -> None:
    values, _ = reduce_floats("median", [[1.0], [2.0], [3.0], [5.0]], 0)
    assert values.tolist() == [2.5]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    ("exponents", "mantissas", "f"),
    [
        (np.zeros(2, np.int16), np.zeros((3, 4), np.int16), 0),
        (np.zeros(0, np.int16), np.zeros((0, 4), np.int16), 0),
        (np.zeros(65, np.int16), np.zeros((65, 4), np.int16), 0),
        (np.zeros(2, np.int16), np.zeros((2, 0), np.int16), 0),
        (np.zeros(2, np.int16), np.zeros((2, 4), np.float32), 0),
        (np.zeros(2, np.int32), np.zeros((2, 4), np.int16), 0),
        (np.full(2, 114, np.int16), np.zeros((2, 4), np.int16), 0),
        (np.full(2, -999, np.int16), np.zeros((2, 4), np.int16), 0),
        (np.zeros(2, np.int16), np.zeros((2, 4), np.int16), -1),
    ],
)
def test_inputs_of_another_shape_are_refused(name: str, exponents, mantissas, f: int) -> None:
    with pytest.raises(LocalError):
        RULES[name](exponents, mantissas, f)


def test_an_unknown_rule_is_refused_by_name() -> None:
    with pytest.raises(LocalError, match="bulyan"):
        rule_named("bulyan")


def test_a_job_may_name_every_rule_and_no_other() -> None:
    assert get_args(Train.model_fields["aggregator"].annotation) == ("auto", *RULES)


@pytest.mark.parametrize(("partition", "rule"), [("iid", "nk"), ("by-label", "winsorised-nk")])
def test_who_trains_on_data_of_its_own_gets_the_rule_for_that(partition: str, rule: str) -> None:
    job = parse_job(JOB_YAML.replace("aggregator: nk", "aggregator: auto"))
    data = job.data.model_copy(update={"partition": partition})
    assert job.model_copy(update={"data": data}).rule == rule


@pytest.mark.parametrize("name", RULES)
def test_what_no_encoder_writes_still_gives_what_the_wire_can_say(name: str) -> None:
    reduced = RULES[name](np.full(3, 113, np.int16), np.full((3, 2), -(2**15), np.int16), 1)
    assert np.isfinite(decode(Quantised(reduced.exponent, reduced.mantissas))).all()


def test_krum_gives_one_update_unchanged() -> None:
    values, weights = reduce_floats("krum", [[1.0, 2.0], [1.5, 2.5], [1.25, 2.25], [9.0, -4.0], [1.25, 2.5]], 1)
    assert sorted(weights) == [0, 0, 0, 0, 1]
    assert values.tolist() == [[1.0, 2.0], [1.5, 2.5], [1.25, 2.25], [9.0, -4.0], [1.25, 2.5]][weights.index(1)]


def test_the_trimmed_mean_leaves_out_f_on_either_side() -> None:
    values, _ = reduce_floats("trimmed-mean", [[1.0], [2.0], [3.0], [5.0], [-20.0]], 1)
    assert values.tolist() == [2.0]


def test_the_geometric_median_of_points_on_a_line_is_near_the_middle_one() -> None:
    values, weights = reduce_floats("geometric-median", [[1.0, 1.0], [2.0, 2.0], [40.0, 40.0]], 1)
    assert np.allclose(values, 2, atol=0.05)
    assert sum(weights) == 2**15


def test_clipping_makes_every_update_pull_alike_and_large_ones_small() -> None:
    values, weights = reduce_floats("clipping", [[40.0, 0.0], [0.0, 30.0], [40.0, 0.0]], 1)
    assert float(np.hypot(*values)) <= 3 * 2**-3
    assert sum(weights) < 2**15
    small, _ = reduce_floats("clipping", [[0.01, 0.0], [0.02, 0.0], [0.03, 0.0]], 1)
    assert np.allclose(small, [0.02, 0.0], atol=1e-5)


def test_values_of_another_type_are_refused() -> None:
    with pytest.raises(LocalError):
        encode(np.zeros(3, np.float64))  # type: ignore[arg-type]
    with pytest.raises(LocalError):
        encode(np.zeros((3, 1), np.float32))
    with pytest.raises(LocalError):
        decode(Quantised(200, np.ones(3, np.int16)))


def test_the_largest_value_is_clamped_rather_than_wrapped() -> None:
    top = np.nextafter(np.float32(1), np.float32(0))
    part = encode(np.array([top, -top], dtype=np.float32))
    assert part == Quantised(-15, part.mantissas)
    assert part.mantissas.tolist() == [32767, -32767]


def test_hashes_are_these_bytes() -> None:
    """Golden values: another implementation must arrive at them."""
    mantissas = np.array([1, -2, 32767], dtype=np.int16)
    part = part_hash(bytes(range(32)), 7, b"k" * 32, part=2, exponent=-19, mantissas=mantissas)
    digest = reduced_digest(
        bytes(range(32)), 7, b"s" * 32, part=2, exponent=-19, used=0b1011, weights=(4, 3, 0, 2), mantissas=mantissas
    )
    assert part.hex() == "de8c4b7e029a12ca8333dfad12cb76e5c420be8145e4f5ea537d509eaa0c9568"
    assert digest.hex() == "c63fa646a733ca7f6c7613d433e9d32b54aeefe7d62955bce6416106cc1b441f"


THREADS_SCRIPT = """
import hashlib, numpy as np
from celluler.aggregation.rules import RULES
random = np.random.default_rng(5)
matrix = random.integers(-32768, 32768, (9, 120_001)).astype(np.int16)
exponents = random.integers(-24, -16, 9).astype(np.int16)
total = hashlib.sha256()
for name in sorted(RULES):
    reduced = RULES[name](exponents, matrix, 4)
    total.update(repr((name, reduced.exponent, reduced.weights)).encode() + reduced.mantissas.tobytes())
print(total.hexdigest())
"""


def test_the_number_of_threads_does_not_matter() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", THREADS_SCRIPT],
            env={"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads, "OPENBLAS_CORETYPE": core},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for threads, core in (("1", "Haswell"), ("4", "Nehalem"))  # other kernels as well: another order of adding
    }
    assert len(digests) == 1
    assert len(digests.pop().strip()) == hashlib.sha256().digest_size * 2
