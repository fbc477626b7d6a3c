"""From a body and its weights file to what runs: one way for every kind of body.

Nothing of a model is allocated before its sizes are known from the document alone. Only a worker imports this.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from celluler.engines.predict import Predictor
from celluler.models.body import Body
from celluler.models.weights import Still, Vector, load_still, load_vector


@dataclass(frozen=True, slots=True)
class Model:
    """vector: (dimension,) float32, what training moves; still: all else that the weights file holds."""

    body: Body
    vector: Vector
    still: Still

    def predictor(self) -> Predictor:
        return Predictor(self.body, torch.from_numpy(self.vector), self.still)


def load_model(body: Body, weights: Path) -> Model:
    """Raises InvalidSpec for a file that does not fit, or holds values that are not finite."""
    return Model(body, load_vector(body, weights), load_still(body, weights))
