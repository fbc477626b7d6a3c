"""Templates: each is an architecture that learns from real data as it is, and can be changed."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from celluler.engines.config import TrainConfig
from celluler.engines.data import Dataset
from celluler.engines.predict import Predictor
from celluler.engines.steps import LocalSteps
from celluler.errors import InvalidSpec
from celluler.models.spec import format_spec, parse_spec
from celluler.models.templates import TEMPLATES, fill
from celluler.models.weights import initial_vector
from celluler_node.cli.root import run
from tests.support.specs import digits

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def text(name: str) -> Tensor:
    """Every 16th window of 64 characters: (n, 64) int64."""
    codes = np.frombuffer((ROOT / name).read_text("utf-8").encode("ascii", "ignore"), dtype=np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(codes, 64)[::16][:256]
    return torch.from_numpy(windows.astype(np.int64))


def real_data(name: str) -> Dataset:
    """What a template says it is for: scikit-learn's digits, or characters of texts that lie here."""
    if name.endswith("-lm"):
        x = text("LICENSE")[:, :32] if name == "lstm-lm" else text("LICENSE")
        return Dataset(x, x)
    if name == "text-encoder":
        pieces = [text("LICENSE"), text("README.md")]
        return Dataset(
            torch.cat(pieces), torch.cat([torch.full((len(one),), place) for place, one in enumerate(pieces)])
        )
    pixels, classes = digits()
    x = torch.from_numpy(pixels[:512])
    rows, images = x.reshape(-1, 8, 8), x.reshape(-1, 1, 8, 8)
    match name:
        case "lstm-forecast":
            return Dataset(rows[:, :7], rows[:, 7])
        case "unet":
            noise = np.random.default_rng(0).standard_normal(images.shape, dtype=np.float32)
            return Dataset(images + torch.from_numpy(noise) / 4, images)
        case "autoencoder" | "vae" | "gan":
            return Dataset(x, x)
        case "conv-autoencoder" | "contrastive" | "diffusion":
            return Dataset(images, images)
    return Dataset(x, torch.from_numpy(classes[:512]))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_learns_from_real_data_and_the_same_again(name: str) -> None:
    architecture = parse_spec(TEMPLATES[name].document)
    assert parse_spec(format_spec(architecture)) == architecture
    data = real_data(name)
    start = initial_vector(architecture, bytes(32))
    config = TrainConfig(bytes(32), index=0, members=1, inner_steps=12, batch=8, learning_rate=0.01)
    if name == "gan":
        config = replace(config, inner_steps=40, learning_rate=0.2, optimizer="sgd")
    steps = LocalSteps(architecture, config, data)
    steps.begin(start, 0, 0, None)
    steps.take()
    judged = Dataset(data.x[::8], data.y[::8])
    before, after = (
        Predictor(architecture, torch.from_numpy(vector)).evaluate(judged) for vector in (start, steps.vector.copy())
    )
    assert after.loss < 0.9 * before.loss
    assert (after.perplexity is None) is not name.endswith("-lm")
    once = steps.vector.copy()
    steps.begin(start, 0, 0, None)
    steps.take(lambda: True)
    few = steps.vector.copy()
    steps.begin(start, 0, 0, None)
    steps.take(lambda: True)
    assert np.array_equal(steps.vector, few)
    assert not np.array_equal(few, once)


def test_values_go_where_errors_say_they_are() -> None:
    settings = ["layers[0].width=32", "objective.classes=3", "layers[4].width=3", "layers[0].bias=false"]
    document = fill("mlp", settings)
    assert document["layers"][0] == {"kind": "dense", "width": 32, "bias": False}
    assert parse_spec(document).output == (3,)
    functions = [layer.get("function") for layer in fill("mlp", ["layers[1].function=tanh"])["layers"]]
    assert functions == [None, "tanh", None, "relu", None]
    assert fill("vae", ["nets.encoder[0].width=9"])["nets"]["encoder"][0]["width"] == 9
    assert fill("mlp", ["input.shape=[9]"])["input"]["shape"] == [9]
    assert TEMPLATES["mlp"].document["layers"][0] == {"kind": "dense", "width": 128}


@pytest.mark.parametrize(
    "setting",
    ["layers[9].width=1", "layers.width=1", "layers[0]", "=1", "layers[0].width[1]=2", "input..shape=3", "[0]=1"],
)
def test_a_place_that_is_not_there_is_refused(setting: str) -> None:
    with pytest.raises(InvalidSpec):
        fill("mlp", [setting])


def test_the_command_writes_a_document_that_can_be_added(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.json"
    new = ["model", "new", "--template", "cnn"]
    assert run([*new, "--set", "layers[6].width=7", "--set", "objective.classes=8", "-o", str(path)]) == 2
    assert "objective.classes" in capsys.readouterr().err
    assert not path.exists()
    assert run([*new, "-o", str(path)]) == 0
    assert parse_spec(path.read_bytes()) == parse_spec(TEMPLATES["cnn"].document)
    assert run([*new, "-o", str(path)]) == 2
    capsys.readouterr()
    assert run(new) == 0
    assert json.loads(capsys.readouterr().out) == TEMPLATES["cnn"].document
    assert run(["model", "new", "--list", "--json"]) == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)["templates"]] == list(TEMPLATES)
    assert run(["model", "new"]) == 2
    assert run(["model", "new", "--template", "gpt-5"]) == 2
