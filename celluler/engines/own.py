"""A model of one's own, for runs in which no state is public: local steps from it, and mixing with neighbours'.

What members show each other is their model less the one all began with, so that it is small, and zero means "nothing
learned". No momentum, of either kind: a member's model is moved by its neighbours too, and momentum carried through
that would push on in a direction that it no longer goes.

Knows nothing of rounds' order or of who the neighbours are. Stands on `Trainer`, whose public state is our own here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from celluler.engines.mixing import LARGEST_DEVIATION, Mixture, Vector, averaged, clipped, length_between
from celluler.engines.train import Trainer
from celluler.errors import LocalError
from celluler.models.weights import load_vector

_LARGEST = np.float32(2.0**96)
_LEAST_VARIANCE = np.float32(1e-5)


class OwnModel:
    """Around a trainer that has not trained yet: its state is what all began with."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._start = trainer.parameters.copy()
        self._shown: Vector | None = None
        self._step = 0.0

    def step(self, round_number: int, *, train: bool) -> tuple[Vector, float]:
        """(our model after the local steps less the one all began with, mean loss); 0 for a round without training.

        (dimension,) float32. The model itself moves in `mix`. Raises LocalError for a round that was mixed already.
        """
        model, loss = self._trainer.parameters, 0.0
        if train:
            update, loss = self._trainer.train(round_number, fresh=True)
            model, self._step = model - update, length_between(update, np.zeros_like(update))
        self._shown = np.clip(model - self._start, -_LARGEST, _LARGEST)
        return self._shown, loss

    def mix(
        self, round_number: int, rows: Sequence[Vector], weights: Sequence[float], *, trusted: int | None, clip: bool
    ) -> Mixture:
        """Move what `step` gave towards the rows, see `celluler.engines.mixing`. clip: False for the plain mean."""
        if self._shown is None:
            raise LocalError("nothing to mix: no step was taken since the last mixing")
        own, self._shown = self._shown, None
        if clip:
            mixture = clipped(own, rows, weights, trusted=trusted, step=self._step)
        else:
            mixture = averaged(own, rows, weights)
        model = np.clip(self._start + mixture.vector, -_LARGEST, _LARGEST)
        for place in self._variances():  # a liar may carry one to where no variance is
            np.maximum(model[place], _LEAST_VARIANCE, out=model[place])
        self._trainer.restore(round_number, model.astype("<f4").tobytes() + bytes(4 * len(model)))
        return mixture

    def deviation(self, weights: Path) -> float:
        """How far a weights file lies from our model, relative to how far ours has come. Raises InvalidSpec."""
        own = self._trainer.parameters
        other = load_vector(self._trainer.architecture, weights)
        come = length_between(own, self._start)
        distance = length_between(other, own)
        return min(distance / come, LARGEST_DEVIATION) if come > 0.0 else LARGEST_DEVIATION * (distance > 0.0)

    def _variances(self) -> list[slice]:
        places, start = [], 0
        for tensor in self._trainer.architecture.tensors:
            if tensor.role == "variance":
                places.append(slice(start, start + tensor.elements))
            start += tensor.elements
        return places
