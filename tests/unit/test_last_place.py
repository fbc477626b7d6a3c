"""Who asks for what follows a text gets it without the logits of every place before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from celluler.engines.modules import module_of
from celluler.engines.predict import Predictor
from celluler.errors import InvalidSpec
from celluler.models.spec import Architecture, parse_spec
from celluler.models.templates import TEMPLATES

WORDS, TIME = 17, 9
EMBEDDING = {"kind": "embedding", "vocabulary": WORDS, "width": 8}
HEAD = {"kind": "dense", "width": WORDS}
ATTENTION = {"kind": "residual", "layers": [{"kind": "attention", "heads": 2, "causal": True}]}
ALONE = {"kind": "residual", "layers": [{"kind": "rms_norm"}, {"kind": "swiglu", "hidden": 12}]}
BODIES: dict[str, tuple[list[dict[str, Any]], int]] = {
    "a head alone": ([EMBEDDING, {"kind": "repeat", "times": 2, "layers": [ATTENTION, ALONE]}, HEAD], 1),
    "and all that stands before it": ([EMBEDDING, ATTENTION, ALONE, {"kind": "layer_norm"}, HEAD], 3),
    "attention at the end": ([EMBEDDING, HEAD, {"kind": "attention", "heads": 1, "causal": True}], 0),
    "an LSTM": ([EMBEDDING, {"kind": "lstm", "hidden": 8}, HEAD], 1),
}
"""Layers, and how many at the end are computed for one place alone."""


def body_of(layers: list[dict[str, Any]]) -> Architecture:
    given = {"dtype": "int64", "shape": [TIME]}
    objective = {"kind": "next_token", "vocabulary": WORDS}
    return parse_spec({"spec": 1, "input": given, "layers": layers, "objective": objective})


def predictor_of(body: Architecture) -> Predictor:
    return Predictor(body, torch.randn(body.dimension, generator=torch.Generator().manual_seed(1)) * 0.3)


@pytest.mark.parametrize("name", BODIES)
def test_one_place_is_told_as_all_places_are(name: str) -> None:
    layers, alone = BODIES[name]
    predictor = predictor_of(body_of(layers))
    x = np.random.default_rng(0).integers(0, WORDS, (5, TIME))
    every = predictor.predict(x)
    assert isinstance(predictor.module, nn.Sequential)
    seen: list[int] = []
    for layer in predictor.module:
        layer.register_forward_hook(lambda _, __, out: seen.append(out.shape[1]))
    assert np.allclose(predictor.predict(x, "next_token"), every[:, -1], atol=1e-6)
    assert seen == [TIME] * (len(layers) - alone) + [1] * alone
    places = [0, 3, TIME - 1, 5, 1]
    assert np.allclose(predictor.following(x, places), every[range(5), places], atol=1e-6)


def test_what_is_no_language_model_tells_nothing_behind_a_place() -> None:
    body = parse_spec(TEMPLATES["mlp"].document)
    predictor = Predictor(body, torch.zeros(body.dimension))
    with pytest.raises(InvalidSpec, match="output"):
        predictor.following(np.zeros((1, 64), np.float32), [0])
    language = body_of(BODIES["a head alone"][0])
    assert isinstance(module_of(language, torch.zeros(language.dimension)), nn.Sequential)
    with pytest.raises(InvalidSpec, match="input"):
        predictor_of(language).following(np.full((1, TIME), WORDS), [0])
