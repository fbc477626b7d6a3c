"""Whether samples of a batch stand apart is found out by trying."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from celluler.engines.apart import stand_apart
from celluler.engines.graph.net import GraphNet
from celluler.engines.modules import module_of
from celluler.inference.together import needs_trial
from celluler.models.body import parse_body
from celluler.models.graph_body import GraphBody, parse_graph_body
from celluler.models.interface import read_interface
from celluler.models.spec import parse_spec
from celluler.models.templates import fill

WIDTH = 8


def graph_of(*nodes: dict[str, Any], batch: tuple[int, int] = (1, 8)) -> GraphBody:
    """A linear layer, and what is done with what it gives."""
    linear: dict[str, Any] = {"name": "h", "op": "linear.default", "args": {"input": "x", "weight": "@w"}}
    graph = {
        "graph": 1,
        "dimensions": {"batch": batch},
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", WIDTH]}],
        "tensors": [{"name": "w", "role": "parameter", "dtype": "float32", "shape": [WIDTH, WIDTH]}],
        "nodes": [linear, *nodes],
        "outputs": [(nodes or (linear,))[-1]["name"]],
    }
    said = {"body": 1, "objective": {"kind": "regression"}, "output": [WIDTH], "activation_bytes": 1000}
    return parse_graph_body(json.dumps(said | {"graph": graph}).encode())


def apart(body: GraphBody) -> bool:
    torch.manual_seed(0)
    return stand_apart(body, GraphNet(body, torch.randn(body.dimension), {}).eval())


ALONG: dict[str, Any] = {"name": "y", "op": "softmax.int", "args": {"self": "h", "dim": 1}}
ACROSS: dict[str, Any] = {"name": "y", "op": "softmax.int", "args": {"self": "h", "dim": 0}}


def test_what_looks_along_a_sample_stands_apart() -> None:
    assert apart(graph_of())
    assert apart(graph_of(ALONG))


@pytest.mark.parametrize("batch", [(1, 8), (1, 2)])
def test_what_looks_across_the_batch_does_not(batch: tuple[int, int]) -> None:
    assert not apart(graph_of(ACROSS, batch=batch))


def test_who_takes_one_sample_at_a_time_joins_none() -> None:
    body = graph_of(ALONG, batch=(1, 1))
    assert not apart(body)
    assert not needs_trial(read_interface(body))
    assert needs_trial(read_interface(graph_of(ALONG)))


def test_layers_of_a_spec_look_at_one_sample() -> None:
    body = parse_spec(fill("mlp"))
    assert stand_apart(body, module_of(body, torch.randn(body.dimension)).eval())
    assert parse_body("spec", json.dumps(fill("mlp")).encode()) == body
