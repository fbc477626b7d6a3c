"""A body as a torch module, whatever its kind."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from celluler.engines.build import build, idle_biases
from celluler.engines.graph.net import GraphNet
from celluler.engines.narrow import build_narrow
from celluler.models import graph_body
from celluler.models.body import Body
from celluler.models.graph_body import GraphBody
from celluler.models.layers import Dropout, walk
from celluler.models.narrow_weights import still_beside, wide_vector
from celluler.models.spec import Architecture
from celluler.models.weights import NOTHING_STILL, Still


def module_of(body: Body, vector: Tensor, still: Still = NOTHING_STILL) -> nn.Module:
    """A module whose parameters and running statistics are views of `vector`: (dimension,) float32.

    still: the rest of the weights file; copied. (batch, *input.shape) → (batch, *output).
    """
    match body:
        case Architecture() if body.narrow:
            return build_narrow(body, vector, still)
        case Architecture():
            return build(body, vector)
        case GraphBody() if body.narrow:
            whole = torch.from_numpy(wide_vector(body, vector.numpy(), still))
            return GraphNet(body.stored_as("float32"), whole, still_beside(body, still))
        case GraphBody():
            return GraphNet(body, vector, still)
    raise AssertionError(body.kind)


def parameters_of(body: Body, module: nn.Module) -> dict[str, nn.Parameter]:
    """By their names in the body."""
    if isinstance(module, GraphNet):
        return module.named()
    return dict(module.named_parameters())


def draws_noise(body: Body) -> bool:
    """Training draws random numbers on the way through the module."""
    match body:
        case Architecture():
            return any(isinstance(layer, Dropout) for layer in walk(body.layers))
        case GraphBody():
            return body.draws_noise
    raise AssertionError(body.kind)


def idle_of(body: Body) -> frozenset[str]:
    """Tensors whose gradient is rounding alone, see `idle_biases`."""
    match body:
        case Architecture():
            return idle_biases(body)
        case GraphBody():
            return graph_body.idle_biases(body)
    raise AssertionError(body.kind)
