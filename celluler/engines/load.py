"""From a body and its weights file to what runs: one way for every kind of body.

Nothing of a model is allocated before its sizes are known from the document alone. Only a worker imports this.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from celluler.engines.graph.measure import check_measured
from celluler.engines.graph.net import check_finite
from celluler.engines.predict import Predictor
from celluler.models.body import Body
from celluler.models.graph_body import GraphBody
from celluler.models.memory import check_room, check_training
from celluler.models.narrow_weights import still_beside
from celluler.models.weights import Still, Vector, load_still, load_vector, need_float32


@dataclass(frozen=True, slots=True)
class Model:
    """vector: (dimension,) float32, what training moves; still: all else that the weights file holds."""

    body: Body
    vector: Vector
    still: Still

    def predictor(self) -> Predictor:
        return Predictor(self.body, torch.from_numpy(self.vector), self.still)


def load_model(body: Body, weights: Path, *, memory_bytes: int | None = None, micro: int | None = None) -> Model:
    """memory_bytes: that this process may take; micro: samples at once when it is to be trained, else None.

    Raises DoesNotFit before anything is allocated; InvalidSpec for a body that does other things than it says, or a
    file that does not fit, or holds values that are not finite.
    """
    check_room(body, memory_bytes, training=micro is not None)
    if micro is not None:
        need_float32(body, "trained")
    if isinstance(body, GraphBody):
        check_measured(body)
        if micro is not None:
            check_training(body, micro)
            check_measured(body, micro)
    model = Model(body, load_vector(body, weights), load_still(body, weights))
    if isinstance(body, GraphBody):
        check_finite(body.graph, still_beside(body, model.still))
    return model
