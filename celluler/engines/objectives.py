"""What a model's answers are held against while it trains and when it is judged: a closed table of objectives."""

from __future__ import annotations

import math

from torch import Tensor, nn

from celluler.models.body import Body
from celluler.models.objectives import Classification, NextToken

_WORST_LOSS = 1e30


def loss_of(architecture: Body, raw: Tensor, y: Tensor) -> Tensor:
    """Mean over the batch. raw: (batch, *output) float32. y: (batch) classes, (batch, time) tokens as they came in, or
    (batch, *output) numbers."""
    match architecture.objective:
        case Classification():
            return nn.functional.cross_entropy(raw, y)
        case NextToken():
            return nn.functional.cross_entropy(raw[:, :-1].flatten(0, 1), y[:, 1:].flatten())
        case _:
            return nn.functional.mse_loss(raw, y)


def right_of(architecture: Body, raw: Tensor, y: Tensor) -> tuple[int, int] | None:
    """(classes or tokens told right, all of them); None where answers are numbers, of which none is right."""
    match architecture.objective:
        case Classification():
            told, wanted = raw.argmax(dim=1), y
        case NextToken():
            told, wanted = raw[:, :-1].argmax(dim=2), y[:, 1:]
        case _:
            return None
    return int((told == wanted).sum()), wanted.numel()


def finite(loss: float) -> float:
    """A loss fit to be reported: one that is not finite becomes huge."""
    return min(loss, _WORST_LOSS) if math.isfinite(loss) else _WORST_LOSS
