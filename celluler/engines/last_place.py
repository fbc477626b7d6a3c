"""What a language model tells at one place of a text. Behind the last layer that looks at other places each place is on
its own, and only the one that is asked for is computed: the logits of all places are most of the work of a model with
many words and few layers, and most of its memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from celluler.models.body import Body
from celluler.models.layers import (
    Activation,
    Dense,
    Dropout,
    FeedForward,
    Layer,
    LayerNorm,
    Repeat,
    Residual,
    RmsNorm,
    SwiGLU,
)
from celluler.models.spec import Architecture

_ALONE = (Activation, Dense, Dropout, FeedForward, LayerNorm, RmsNorm, SwiGLU)


def told_at(body: Body, module: nn.Module, x: Tensor, places: Tensor) -> Tensor:
    """(batch, vocabulary) float32. x: (batch, time) tokens; places: (batch,), of each text."""
    rows = torch.arange(len(x))
    layers = list(module) if isinstance(body, Architecture) and isinstance(module, nn.Sequential) else [module]
    behind = _alone_behind(body.layers) if isinstance(body, Architecture) and len(layers) == len(body.layers) else 0
    for layer in layers[: len(layers) - behind]:
        x = layer(x)
    x = x[rows, places][:, None]
    for layer in layers[len(layers) - behind :]:
        x = layer(x)
    return x[:, 0].float()


def _alone_behind(layers: tuple[Layer, ...]) -> int:
    """Layers at the end that look at no other place than their own."""
    count = 0
    while count < len(layers) and _is_alone(layers[-1 - count]):
        count += 1
    return count


def _is_alone(layer: Layer) -> bool:
    match layer:
        case Residual(join="add") | Repeat():
            return all(map(_is_alone, layer.layers))
    return isinstance(layer, _ALONE)
