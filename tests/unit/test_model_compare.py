from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from celluler.content.digest import digest_of
from celluler.content.manifest import Layout, describe
from celluler.errors import InvalidSpec
from celluler.models.access import SealedKey
from celluler.models.compare import FieldChange, check_bump, diff, new_bytes, required_bump
from celluler.models.manifest import Metric, ModelManifest, describe_model
from celluler.models.spec import parse_spec
from celluler.models.weights import initial_vector, save_vector
from tests.support.specs import RELU, TINY, as_bytes, dense

A, B = digest_of(b"a"), digest_of(b"b")
READER = SealedKey(b"r" * 32, bytes(80))


def manifest(spec: dict[str, Any] = TINY, weights: bytes = A, version: str = "1.0.0", **said: Any) -> ModelManifest:
    return describe_model("tiny", version, as_bytes(spec), weights, **{"created_s": 1, **said})


def wider(width: int = 5) -> dict[str, Any]:
    changed = copy.deepcopy(TINY)
    changed["layers"][0]["width"] = width
    return changed


@pytest.mark.parametrize(
    ("old", "new", "bump"),
    [
        (manifest(), manifest(), "patch"),
        (manifest(), manifest(description="better words", metrics=(Metric("accuracy", 0.5),)), "patch"),
        (manifest(), manifest(labels=("cat", "dog")), "patch"),
        (manifest(), manifest(weights=B), "minor"),
        (manifest(), manifest(wider()), "major"),
        (manifest(labels=("cat", "dog")), manifest(labels=("dog", "cat")), "major"),
        (manifest(labels=("cat", "dog")), manifest(), "major"),
        (manifest(sealed=(READER,), plain=A), manifest(weights=B, sealed=(READER,), plain=A), "patch"),
        (manifest(sealed=(READER,), plain=A), manifest(weights=B, sealed=(READER,), plain=B), "minor"),
        (manifest(), manifest(weights=B, sealed=(READER,), plain=A), "minor"),
    ],
    ids=[
        "nothing", "words", "names given", "weights", "architecture", "names exchanged", "names taken away",
        "keys changed", "encrypted weights", "made private",
    ],
)  # fmt: skip
def test_what_changed_says_how_large_the_step_must_be(old: ModelManifest, new: ModelManifest, bump: str) -> None:
    assert required_bump(old, new) == bump


def test_a_spec_written_in_another_way_is_the_same_architecture() -> None:
    spaced = replace(manifest(), spec=as_bytes(TINY).replace(b",", b" ,"))
    assert required_bump(manifest(), spaced) == "patch"


def test_a_version_that_is_too_low_is_refused_with_the_least_that_is_not() -> None:
    check_bump(manifest(), manifest(wider(), version="2.0.0"))
    check_bump(manifest(), manifest(weights=B, version="1.1.0"))
    with pytest.raises(InvalidSpec) as caught:
        check_bump(manifest(), manifest(wider(), version="1.1.0"))
    assert caught.value.path == "version"
    assert caught.value.hint is not None
    assert "2.0.0" in caught.value.hint
    check_bump(manifest(version="0.1.0"), manifest(wider(), version="0.2.0"))


# --- differences -----------------------------------------------------------------------------------------------


def saved(folder: Path, name: str, spec: dict[str, Any] = TINY, **added: float) -> tuple[ModelManifest, Layout, Path]:
    """A model whose first weight tensor is moved by `shift` and whose last bias is set to `bias`."""
    architecture = parse_spec(spec)
    vector = initial_vector(architecture, bytes(32))
    vector[: architecture.tensors[0].elements] += np.float32(added.get("shift", 0.0))
    vector[-1] += np.float32(added.get("bias", 0.0))
    path = folder / name
    save_vector(architecture, vector, path)
    described = describe(path, "model")
    return manifest(spec, described.root), described.layout(), path


def test_models_with_the_same_weights_differ_in_nothing(tmp_path: Path) -> None:
    one, layout, path = saved(tmp_path, "one")
    same = diff(one, one, content_old=layout, content_new=layout, file_old=path, file_new=path)
    assert (same.tensors, same.unchanged, same.unknown) == ((), 4, 0)
    assert (same.architecture, same.metadata, same.bytes_to_fetch, same.bump) == ((), (), 0, "patch")
    assert diff(one, one).unchanged == 4


def test_chunks_tell_which_tensors_changed_and_files_by_how_much(tmp_path: Path) -> None:
    old, layout_old, file_old = saved(tmp_path, "old")
    new, layout_new, file_new = saved(tmp_path, "new", shift=0.5, bias=2.0)
    by_chunks = diff(old, new, content_old=layout_old, content_new=layout_new)
    assert [(one.name, one.norm) for one in by_chunks.tensors] == [("0.weight", None), ("2.bias", None)]
    assert (by_chunks.unchanged, by_chunks.unknown, by_chunks.bump) == (2, 0, "minor")
    assert by_chunks.bytes_to_fetch == 4 * 12 + 4 * 2
    by_files = diff(old, new, file_old=file_old, file_new=file_new)
    assert by_files.bytes_to_fetch is None
    weight, bias = by_files.tensors
    assert weight.norm == pytest.approx(0.5 * 12**0.5, rel=1e-6)
    first = np.frombuffer(file_old.read_bytes(), dtype=np.uint8)[layout_old.manifest.tensors[0].offset :][:48]
    assert weight.relative == pytest.approx(weight.norm / np.linalg.norm(first.view(np.float32)), rel=1e-6)
    assert (bias.norm, bias.relative) == (2.0, None)  # the old bias is all zeros
    both = diff(old, new, content_old=layout_old, content_new=layout_new, file_old=file_old, file_new=file_new)
    assert both.tensors == by_files.tensors


def test_without_contents_only_names_and_shapes_are_compared() -> None:
    told = diff(manifest(), manifest(weights=B))
    assert (told.tensors, told.unchanged, told.unknown, told.bytes_to_fetch) == ((), 0, 4, None)


def test_tensors_come_and_go_with_their_layers(tmp_path: Path) -> None:
    deeper = copy.deepcopy(TINY)
    deeper["layers"][2:2] = [dense(6), RELU]
    told = diff(manifest(), manifest(deeper))
    assert [(one.name, one.old, one.new) for one in told.tensors] == [
        ("2.weight", (2, 4), (6, 4)),
        ("2.bias", (2,), (6,)),
        ("4.weight", None, (2, 6)),
        ("4.bias", None, (2,)),
    ]
    back = diff(manifest(deeper), manifest())
    assert [(one.name, one.new) for one in back.tensors][2:] == [("4.weight", None), ("4.bias", None)]
    assert [change.path for change in told.architecture] == ["layers[2]", "layers[3]"]
    assert all(change.old == "" for change in told.architecture)
    assert told.bump == "major"


def test_a_layer_that_changed_is_named_with_what_it_was() -> None:
    told = diff(manifest(), manifest(wider()))
    assert told.architecture == (FieldChange("layers[0].width", "4", "5"),)
    changed = copy.deepcopy(TINY)
    changed["layers"][1] = {"kind": "dropout", "rate": 0.5}
    (change,) = diff(manifest(), manifest(changed)).architecture
    assert change.path == "layers[1]"
    assert '"relu"' in change.old
    assert '"dropout"' in change.new


def test_words_that_changed_are_named() -> None:
    told = diff(manifest(licence="MIT"), manifest(metrics=(Metric("accuracy", 0.5),), tags=("small",)))
    assert told.metadata == (
        FieldChange("licence", '"MIT"', '""'),
        FieldChange("metrics.accuracy", "", "0.5"),
        FieldChange("tags", "[]", '["small"]'),
    )


def test_of_encrypted_weights_only_what_is_to_be_fetched_can_be_told(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"x" * (1 << 20) + b"old")
    (tmp_path / "new").write_bytes(b"x" * (1 << 20) + b"newer")
    layouts = [describe(tmp_path / name, "model").layout() for name in ("old", "new")]
    secret = {"sealed": (READER,)}
    told = diff(
        manifest(plain=A, **secret), manifest(plain=B, **secret), content_old=layouts[0], content_new=layouts[1]
    )
    assert (told.unknown, told.bytes_to_fetch) == (4, 5)


def test_a_chunk_that_occurs_twice_is_fetched_once(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "new").write_bytes(b"x" * (2 << 20))
    assert (
        new_bytes(describe(tmp_path / "empty", "blob").layout(), describe(tmp_path / "new", "blob").layout()) == 1 << 20
    )


def test_a_file_of_other_tensors_is_refused(tmp_path: Path) -> None:
    one, _, path = saved(tmp_path, "one")
    other, _, other_path = saved(tmp_path, "other", wider())
    with pytest.raises(InvalidSpec, match="weights"):
        diff(one, other, file_old=other_path, file_new=path)
