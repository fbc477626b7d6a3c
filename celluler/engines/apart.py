"""Whether samples of one batch have anything to do with each other, found out by trying: what a graph does with its
batch axis is nowhere written. A model made to deceive may pass, so what passes is still joined for one client alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from celluler.models.body import Body
from celluler.models.graph_body import GraphBody
from celluler.models.spec import Architecture

_NEAR = 1e-3
"""Of the largest value: batches of another size are summed in another order."""
_LENGTH = 16
_SEED = 20


def stand_apart(body: Body, module: nn.Module) -> bool:
    """A sample gives the same alone, among others, among other others, and at another place among them."""
    if isinstance(body, Architecture):
        return True
    if body.batch[0] > 1 or body.batch[1] < 2:
        return False
    size = min(3, body.batch[1])
    drawn = _drawn(body, 2 * size - 1)
    one, first, second = drawn[:1], drawn[1:size], drawn[size:]
    with torch.inference_mode():
        alone = module(one)[0].float()
        told = (
            module(torch.cat([one, first]))[0],
            module(torch.cat([one, second]))[0],
            module(torch.cat([second, one]))[-1],
        )
    return all(_near(alone, other.float()) for other in told)


def _near(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or not bool(torch.equal(one.isnan(), other.isnan())):
        return False
    largest = float(one.nan_to_num().abs().max()) if one.numel() else 0.0
    return bool(torch.allclose(one.nan_to_num(), other.nan_to_num(), rtol=_NEAR, atol=_NEAR * max(largest, 1e-6)))


def _drawn(body: Body, count: int) -> Tensor:
    shape = body.input.shape
    if isinstance(body, GraphBody) and body.sequence is not None:
        least, most = body.sequence
        shape = body.sample_shape(max(least, min(most, _LENGTH)))
    generator = torch.Generator().manual_seed(_SEED)
    if body.input.dtype == "int64":
        return torch.randint(body.vocabulary, (count, *shape), generator=generator)
    return torch.randn((count, *shape), generator=generator)
