"""Layers over time and over images: what they compute, and that training by them is done again bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from celluler.engines.build import build, idle_biases, views_of
from celluler.engines.config import PRECISIONS, TrainConfig
from celluler.engines.data import Dataset
from celluler.engines.steps import LocalSteps
from celluler.errors import InvalidSpec
from celluler.models.spec import Architecture, parse_spec
from celluler.models.weights import initial_vector
from tests.support.specs import dense, digits, regression

CONFIG = TrainConfig(bytes(32), index=0, members=1, inner_steps=2, batch=8, learning_rate=0.01)
LLAMA: tuple[dict[str, Any], ...] = (
    {
        "kind": "residual",
        "layers": [
            {"kind": "rms_norm"},
            {"kind": "attention", "heads": 4, "kv_heads": 2, "causal": True, "rope_base": 10000},
        ],
    },
    {"kind": "residual", "layers": [{"kind": "rms_norm"}, {"kind": "swiglu", "hidden": 12}]},
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(*layers: dict[str, Any], shape: tuple[int, ...]) -> tuple[Architecture, Tensor, torch.nn.Module]:
    architecture = parse_spec(regression(*layers, shape=shape))
    vector = torch.from_numpy(initial_vector(architecture, bytes(32)))
    return architecture, vector, build(architecture, vector).eval()


def drawn(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))


def test_a_causal_place_does_not_depend_on_later_ones() -> None:
    for layers in (LLAMA, ({"kind": "lstm", "hidden": 5, "layers": 2},)):
        _, _, module = made(*layers, shape=(6, 8))
        x = drawn(2, 6, 8)
        other = x.clone()
        other[:, 4:] += 1
        one, two = module(x), module(other)
        assert torch.allclose(one[:, :4], two[:, :4], atol=1e-6)
        assert not torch.allclose(one[:, 4:], two[:, 4:], atol=1e-3)


def test_attention_is_the_sum_of_values_weighed_by_how_queries_fit_keys() -> None:
    layer = {"kind": "attention", "heads": 2, "kv_heads": 1, "bias": True}
    architecture, vector, module = made(layer, shape=(5, 6))
    views = views_of(architecture, vector)
    vector.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    x = drawn(1, 5, 6)
    query, key, value = (
        x[0] @ views[f"0.{part}.weight"].T + views[f"0.{part}.bias"] for part in ("query", "key", "value")
    )
    heads = [torch.softmax(one @ key.T / 3**0.5, dim=1) @ value for one in torch.split(query, 3, dim=1)]
    expected = torch.cat(heads, dim=1) @ views["0.output.weight"].T + views["0.output.bias"]
    assert torch.allclose(module(x)[0], expected, atol=1e-5)


def test_rotary_positions_tell_places_apart_by_their_distance_alone() -> None:
    layer = {"kind": "attention", "heads": 1, "causal": True, "rope_base": 100}
    _, _, module = made(layer, shape=(8, 4))
    attention: Any = next(module.children())
    query, key = (drawn(1, 1, 1, 4).expand(1, 1, 8, 4) * factor for factor in (1, -2))
    one, other = attention._turned(query, key)
    scores = (one @ other.transpose(2, 3))[0, 0]
    for distance in (1, 3):
        assert torch.allclose(scores.diagonal(distance), scores[0, distance], atol=1e-4)
    assert not torch.allclose(scores[0, 1], scores[0, 3], atol=1e-3)
    assert torch.equal(one[0, 0, 0], query[0, 0, 0])


def test_an_lstm_remembers_by_its_gates() -> None:
    architecture, vector, module = made({"kind": "lstm", "hidden": 3, "output": "last"}, shape=(4, 2))
    views = views_of(architecture, vector)
    vector.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    x = drawn(1, 4, 2)
    state = cell = torch.zeros(3)
    for step in x[0]:
        summed = views["0.weight_ih_l0"] @ step + views["0.bias_ih_l0"]
        gates = summed + views["0.weight_hh_l0"] @ state + views["0.bias_hh_l0"]
        let_in, keep, new, out = torch.split(gates, 3)
        cell = torch.sigmoid(keep) * cell + torch.sigmoid(let_in) * torch.tanh(new)
        state = torch.sigmoid(out) * torch.tanh(cell)
    assert torch.allclose(module(x)[0], state, atol=1e-6)


def test_what_is_concatenated_skips_the_way_down_and_up() -> None:
    down_and_up = [
        {"kind": "conv2d", "channels": 4, "kernel": 2, "stride": 2},
        {"kind": "group_norm", "groups": 2},
        {"kind": "conv_transpose2d", "channels": 3, "kernel": 2, "stride": 2},
    ]
    skip = {"kind": "residual", "join": "concat", "layers": down_and_up}
    architecture, _, module = made(skip, {"kind": "upsample2d"}, shape=(1, 8, 8))
    assert architecture.output == (4, 16, 16)
    x = drawn(2, 1, 8, 8)
    out = module(x)
    assert out.shape == (2, 4, 16, 16)
    assert torch.equal(out[:, 0, ::2, 1::2], x[:, 0])


@pytest.mark.parametrize(
    ("layer", "shape", "path"),
    [
        ({"kind": "attention", "heads": 3}, (4, 8), "layers[0].heads"),
        ({"kind": "attention", "heads": 4, "kv_heads": 3}, (4, 8), "layers[0].kv_heads"),
        ({"kind": "attention", "heads": 8, "rope_base": 10000}, (4, 8), "layers[0].rope_base"),
        ({"kind": "attention", "heads": 1}, (8,), "layers[0]"),
        ({"kind": "lstm", "hidden": 2}, (2, 2, 2), "layers[0]"),
        ({"kind": "group_norm", "groups": 2}, (3, 4), "layers[0].groups"),
        ({"kind": "group_norm", "groups": 4}, (4,), "layers[0].groups"),
        ({"kind": "mean_pool"}, (4,), "layers[0]"),
        ({"kind": "conv_transpose2d", "channels": 1, "kernel": 1, "padding": 2}, (1, 4, 4), "layers[0].padding"),
        ({"kind": "upsample2d"}, (4, 4), "layers[0]"),
        ({"kind": "lstm", "hidden": 1 << 20, "layers": 16}, (1, 1), "layers[0]"),
        ({"kind": "swiglu", "hidden": 1 << 20}, (1, 1 << 10), "layers[0]"),
        ({"kind": "attention", "heads": 1}, (1 << 20, 32), "layers[0]"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(layer: dict[str, Any], shape: tuple[int, ...], path: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_spec(regression(layer, shape=shape))
    assert caught.value.path == path


EVERYTHING = {
    "time": regression(
        dense(8),
        {"kind": "positions"},
        *LLAMA,
        {"kind": "residual", "layers": [{"kind": "feed_forward", "hidden": 12}, {"kind": "dropout", "rate": 0.2}]},
        {"kind": "lstm", "hidden": 6},
        {"kind": "residual", "layers": [{"kind": "attention", "heads": 2, "bias": True}]},
        {"kind": "lstm", "hidden": 5, "output": "last"},
        dense(1),
        shape=(8, 8),
    ),
    "images": regression(
        {"kind": "reshape", "shape": [1, 8, 8]},
        {
            "kind": "residual",
            "join": "concat",
            "layers": [
                {"kind": "conv2d", "channels": 4, "kernel": 2, "stride": 2},
                {"kind": "group_norm", "groups": 2},
                {"kind": "conv_transpose2d", "channels": 2, "kernel": 2, "stride": 2},
                {"kind": "group_norm", "groups": 2},
            ],
        },
        {"kind": "max_pool2d", "size": 2},
        {"kind": "upsample2d"},
        {"kind": "global_avg_pool"},
        dense(1),
        shape=(8, 8),
    ),
}


def test_biases_that_are_taken_out_again_are_told() -> None:
    assert idle_biases(parse_spec(EVERYTHING["time"])) == {"6.0.key.bias"}
    assert idle_biases(parse_spec(EVERYTHING["images"])) == {"1.2.bias"}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", EVERYTHING)
def test_steps_through_every_layer_are_done_again_bit_for_bit(name: str, precision: str) -> None:
    architecture = parse_spec(EVERYTHING[name])
    x, y = digits()
    data = Dataset(torch.from_numpy(x[:256]).reshape(-1, 8, 8), torch.from_numpy(y[:256]).float()[:, None])
    start = initial_vector(architecture, bytes(32))

    def walked(number: int) -> Any:
        steps = LocalSteps(architecture, replace(CONFIG, precision=precision), data)
        steps.begin(start, number, 0, None)
        steps.take()
        return steps.vector.copy()

    idle, once = idle_biases(architecture), walked(1)
    assert np.isfinite(once).all()
    place = 0
    for tensor in architecture.tensors:
        moved = (once != start)[place : place + tensor.elements]
        place += tensor.elements
        assert bool(moved.any()) is (tensor.name not in idle), tensor.name
    assert np.array_equal(once, walked(1))
    assert not np.array_equal(once, walked(2))
