"""The engine of every body: torch on the processor, specs and graphs, weights in the dtype in which they are stored.

It computes in no other dtype than the model's own: two peers that serve one version answer alike, and one that was
rounded further is a version of its own, with a digest of its own.
"""

from __future__ import annotations

from pathlib import Path

import torch

from celluler.engines.apart import stand_apart
from celluler.engines.engine import Caps
from celluler.engines.generation.slots import GeneratingSlots
from celluler.engines.load import load_model
from celluler.engines.predict import Predictor
from celluler.models.body import KINDS, Body
from celluler.models.narrow import DTYPES
from celluler.models.transforms.decoding import TextCodec


class TorchModel(Predictor):
    """See `celluler.engines.engine.Running`."""

    def stand_apart(self) -> bool:
        return stand_apart(self.architecture, self.module)

    def slots(
        self, count: int, *, length: int | None = None, memory_bytes: int | None = None, codec: TextCodec | None = None
    ) -> GeneratingSlots:
        return GeneratingSlots(
            self.architecture, self.module, slots=count, length=length, memory_bytes=memory_bytes, codec=codec
        )


class TorchEngine:
    """See `celluler.engines.engine.Engine`."""

    caps = Caps("torch", torch.__version__, "cpu", KINDS, DTYPES)

    def load(self, body: Body, weights: Path, *, memory_bytes: int | None = None) -> TorchModel:
        model = load_model(body, weights, memory_bytes=memory_bytes)
        return TorchModel(model.body, torch.from_numpy(model.vector), model.still)
