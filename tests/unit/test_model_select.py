from __future__ import annotations

from pathlib import Path

import pytest

from celluler.content.manifest import describe
from celluler.errors import InvalidSpec
from celluler.models.select import pieces_of, tensors_of_layers
from celluler.models.spec import parse_spec
from celluler.models.templates import TEMPLATES
from celluler.models.weights import initial_weights
from tests.support.specs import CNN, MLP

DIGITS = parse_spec(MLP)  # dense, relu, dense, relu, dense


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ("0", {"0.weight", "0.bias"}),
        ("0:3", {"0.weight", "0.bias", "2.weight", "2.bias"}),
        (":1", {"0.weight", "0.bias"}),
        ("3:", {"4.weight", "4.bias"}),
        ("0, 4", {"0.weight", "0.bias", "4.weight", "4.bias"}),
        (":", {tensor.name for tensor in DIGITS.tensors}),
        ("1", set()),
    ],
)
def test_layers_are_counted_as_they_stand_in_the_spec(layers: str, names: set[str]) -> None:
    assert tensors_of_layers(DIGITS, layers) == names


def test_a_repeat_is_one_layer_with_everything_inside() -> None:
    architecture = parse_spec(CNN)
    names = tensors_of_layers(architecture, "4")
    assert names
    assert names == {tensor.name for tensor in architecture.tensors if tensor.name.startswith("4.")}


@pytest.mark.parametrize("layers", ["", "a", "-1", "5", "0:6", "2:2", "3:1", "1:2:3", "0,,1", "٣", "0" * 9])
def test_layers_that_are_not_there_are_refused(layers: str) -> None:
    with pytest.raises(InvalidSpec):
        tensors_of_layers(DIGITS, layers)


def test_layers_of_named_nets_are_named_with_them() -> None:
    architecture = parse_spec(TEMPLATES["vae"].document)
    assert tensors_of_layers(architecture, "encoder.2") == {"encoder.2.weight", "encoder.2.bias"}
    both = tensors_of_layers(architecture, "decoder, encoder.:1")
    assert both == {
        f"{place}.{part}" for place in ("encoder.0", "decoder.0", "decoder.2") for part in ("weight", "bias")
    }
    for layers in ("0", "coder", "encoder.", "encoder.9", ".0", ""):
        with pytest.raises(InvalidSpec):
            tensors_of_layers(architecture, layers)


def test_pieces_of_layers_are_the_header_and_their_chunks(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    initial_weights(DIGITS, bytes(32), path)
    manifest = describe(path, "model", chunk_size=1 << 14).manifest  # the first weight takes two chunks
    assert pieces_of(manifest, tensors_of_layers(DIGITS, "0")) == (0, 1, 2, 3)
    assert pieces_of(manifest, ()) == (0,)
    with pytest.raises(InvalidSpec, match=r"9\.weight"):
        pieces_of(manifest, {"0.weight", "9.weight"})


def test_a_content_that_is_not_cut_at_tensors_has_no_parts(tmp_path: Path) -> None:
    path = tmp_path / "encrypted"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(InvalidSpec, match="encrypted"):
        pieces_of(describe(path, "model").manifest, {"0.weight"})
