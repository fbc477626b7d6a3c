"""Small language models: of initial weights, trained for a moment, and their narrow children."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from celluler.engines.build import build
from celluler.engines.modules import module_of
from celluler.models.body import Body
from celluler.models.narrow_weights import narrow_weights
from celluler.models.spec import parse_spec
from celluler.models.templates import fill
from celluler.models.weights import NOTHING_STILL, Still, Vector, initial_vector

LICENCE = Path(__file__).parents[2] / "LICENSE"


@dataclass(frozen=True, slots=True)
class Model:
    body: Body
    vector: Vector
    still: Still
    module: nn.Module

    @property
    def dtype(self) -> str:
        return getattr(self.body, "dtype", "float32")


def lm(*, seed: int, template: str = "transformer-lm") -> Model:
    """Of initial weights."""
    body = parse_spec(fill(template))
    return _model(body, initial_vector(body, bytes([seed]) * 32))


@cache
def grown(steps: int = 40, seed: int = 1) -> Model:
    """Has read a licence for a moment. Of the same steps and seed the same, on the same machine."""
    told = lm(seed=seed)
    vector = torch.from_numpy(told.vector.copy())
    module = build(parse_spec(fill("transformer-lm")), vector)
    text = np.frombuffer(LICENCE.read_bytes(), dtype=np.uint8)
    characters = torch.from_numpy(text[text < 128].astype(np.int64))
    optimiser = torch.optim.Adam(module.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(0, len(characters) - 65, (16,), generator=generator)
        x = torch.stack([characters[start : start + 65] for start in starts.tolist()])
        loss = nn.functional.cross_entropy(module(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return _model(told.body, vector.detach().numpy().copy())


def narrowed(model: Model, dtype: str) -> Model:
    """The same in int4, int8 or bfloat16, as `celluler compress` makes it."""
    return _model(*narrow_weights(model.body, model.vector, dtype))


def _model(body: Body, vector: Vector, still: Still = NOTHING_STILL) -> Model:
    return Model(body, vector, still, module_of(body, torch.from_numpy(vector), still).eval())
