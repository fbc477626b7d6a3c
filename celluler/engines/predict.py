"""Predicting and evaluating with a built model. Synchronous; the caller pins threads and owns the process."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from celluler.engines.data import Dataset, check_values
from celluler.engines.modules import module_of
from celluler.engines.objectives import finite, loss_of, right_of
from celluler.models.body import Body
from celluler.models.calls import check_call
from celluler.models.objectives import NextToken
from celluler.models.weights import NOTHING_STILL, Still

_BATCH_BYTES = 64 << 20
_MAX_BATCH = 1024
_LARGEST_EXPONENT = 100.0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """count: samples. loss: mean over them. accuracy: share of classes or tokens told right; None where answers are
    numbers. perplexity: of a language model, e to the loss; None of others."""

    count: int
    loss: float
    accuracy: float | None
    perplexity: float | None = None


class Predictor:
    """A model ready to answer."""

    def __init__(self, architecture: Body, vector: Tensor, still: Still = NOTHING_STILL) -> None:
        """vector: (dimension,) float32; the model goes on reading it. still: the rest of the weights file."""
        self.architecture = architecture
        self._module: nn.Module = module_of(architecture, vector, still).eval()
        least, most = architecture.batch
        # Activations of a whole batch stay within a bound that depends on the body alone.
        fitting = min(_MAX_BATCH, _BATCH_BYTES // max(1, architecture.activation_bytes))
        self._least, self._batch = least, max(least, min(most, fitting))

    def predict(self, x: npt.NDArray[Any], output: str = "raw") -> npt.NDArray[Any]:
        """x: (n, *input). raw: what the last layer gives (logits, or a regression's numbers), (n, *output) float32;
        probabilities: (n, classes) float32; labels: (n,) int64. Raises InvalidSpec for an input that does not fit.
        """
        check_call(self.architecture, x.dtype.name, x.shape, output)
        check_values(self.architecture, x, "input")
        pieces = [_shape_output(raw, output).numpy() for raw in self._batches(torch.from_numpy(x))]
        return np.concatenate(pieces)

    def evaluate(self, data: Dataset) -> Evaluation:
        total, right, asked, place = 0.0, 0, 0, 0
        for raw in self._batches(data.x):
            y = data.y[place : place + raw.shape[0]]
            place += raw.shape[0]
            total += float(loss_of(self.architecture, raw, y)) * raw.shape[0]
            if told := right_of(self.architecture, raw, y):
                right, asked = right + told[0], asked + told[1]
        loss = finite(total / len(data))
        speaks = isinstance(self.architecture.objective, NextToken)
        perplexity = finite(math.exp(min(loss, _LARGEST_EXPONENT))) if speaks else None
        return Evaluation(len(data), loss, right / asked if asked else None, perplexity)

    def _batches(self, x: Tensor) -> Iterator[Tensor]:
        with torch.inference_mode():
            start = 0
            for size in _sizes(x.shape[0], self._batch, self._least):
                yield self._module(x[start : start + size])
                start += size


def _sizes(count: int, most: int, least: int) -> list[int]:
    """How many at a time: the most, and what is left; where that is too few, all are about as many."""
    whole, left = divmod(count, most)
    if left == 0 or left >= least:
        return [most] * whole + [left] * (left > 0)
    pieces = whole + 1
    return [count // pieces + (place < count % pieces) for place in range(pieces)]


def _shape_output(raw: Tensor, output: str) -> Tensor:
    match output:
        case "probabilities":
            return torch.softmax(raw, dim=1)
        case "labels":
            return raw.argmax(dim=1)
        case _:
            return raw
