from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from celluler.errors import InvalidSpec, LocalError
from celluler.models.spec import parse_spec
from celluler.models.weights import check_weights, initial_vector, initial_weights, load_vector, save_vector
from tests.support.specs import CNN, TINY, save_tensors

ARCHITECTURE = parse_spec(TINY)
SEED = b"s" * 32


def tensors(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "0.weight": np.ones((4, 3), np.float32),
        "0.bias": np.ones(4, np.float32),
        "2.weight": np.ones((2, 4), np.float32),
        "2.bias": np.ones(2, np.float32),
    }
    return {name: value for name, value in (made | changes).items() if value is not None}


def test_untrained_weights_are_the_same_on_any_machine() -> None:
    vector = initial_vector(ARCHITECTURE, SEED)
    assert vector.tobytes().hex()[:32] == "af3638bff690a43f813c8f3f0267acbf"
    assert not np.array_equal(vector, initial_vector(ARCHITECTURE, b"t" * 32))
    assert np.abs(vector).max() <= 2**0.5
    assert not vector[12:16].any()  # the offsets of layer 0


def test_a_batch_norm_starts_as_nothing() -> None:
    vector = initial_vector(parse_spec(CNN), SEED)
    norm = vector[16 * 9 + 16 :][:64].reshape(4, 16)
    assert norm.tolist() == [[1.0] * 16, [0.0] * 16, [0.0] * 16, [1.0] * 16]


def test_a_weights_file_is_safetensors_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    initial_weights(ARCHITECTURE, SEED, path)
    assert {name: value.shape for name, value in load_file(path).items()} == {
        tensor.name: tensor.shape for tensor in ARCHITECTURE.tensors
    }
    assert np.array_equal(load_vector(ARCHITECTURE, path), initial_vector(ARCHITECTURE, SEED))
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_another_order_gives_the_same_vector(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    mixed = {name: rng.normal(size=value.shape).astype(np.float32) for name, value in tensors().items()}
    path = save_tensors(tmp_path / "w", dict(reversed(mixed.items())))
    expected = np.concatenate([mixed[tensor.name].ravel() for tensor in ARCHITECTURE.tensors])
    assert np.array_equal(load_vector(ARCHITECTURE, path), expected)


def test_the_vector_of_a_file_may_be_written_and_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "w"
    initial_weights(ARCHITECTURE, SEED, path)
    before = path.read_bytes()
    load_vector(ARCHITECTURE, path)[:] = 7
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"0.bias": None}, "weights.0.bias"),
        ({"extra": np.ones(1, np.float32)}, "weights.extra"),
        ({"0.bias": np.ones(5, np.float32)}, "weights.0.bias"),
        ({"0.weight": np.ones((3, 4), np.float32)}, "weights.0.weight"),
        ({"0.bias": np.ones(4, np.int64)}, "weights.0.bias"),
        ({"0.bias": np.ones(4, np.float64)}, "weights.0.bias"),
        ({"0.bias": np.array([1, np.nan, 1, 1], np.float32)}, "weights"),
        ({"2.bias": np.array([np.inf, 0], np.float32)}, "weights"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], path: str) -> None:
    file = save_tensors(tmp_path / "w", tensors(**changes))
    with pytest.raises(InvalidSpec) as caught:
        load_vector(ARCHITECTURE, file)
    assert caught.value.path == path


def entry(**changes: Any) -> bytes:
    document = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}
    return json.dumps(document).encode()


def file_of(header: bytes, data: bytes = b"\0" * 8, length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        b"\xff" * 64,
        file_of(b"[]"),
        file_of(b"{" * 100),
        file_of(b"[" * 50_000),
        file_of(b"\xff\xff"),
        file_of(entry(), length=1 << 62),
        file_of(entry(), b"\0" * 4),
        file_of(entry(), b"\0" * 12),
        file_of(entry(shape=[3])),
        file_of(entry(shape=[-2])),
        file_of(entry(shape=[1 << 60, 0])),
        file_of(entry(shape=[True, 2])),
        file_of(entry(data_offsets=[4, 12])),
        file_of(entry(data_offsets=[8, 0])),
        file_of(entry(data_offsets=[0, 8, 8])),
        file_of(entry(dtype="F8_E4M3")),
        file_of(entry(dtype=["F32"])),
        file_of(entry(code="import os")),
        file_of(b'{"x": null}'),
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w"
    path.write_bytes(content)
    with pytest.raises(InvalidSpec, match="weights"):
        check_weights(ARCHITECTURE, path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="cannot be read"):
        check_weights(ARCHITECTURE, tmp_path / "none")


def test_a_vector_of_another_length_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(LocalError):
        save_vector(ARCHITECTURE, np.zeros(3, np.float32), tmp_path / "w")
    assert not list(tmp_path.iterdir())
