"""How good a model is on data: a loss that training makes smaller, and the figure by which its objective is judged.

What an objective draws at random is drawn here by a key of its own and the sample's place in the data: the same model
on the same data is always judged the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from celluler.engines.data import Dataset
from celluler.engines.draws import Draws
from celluler.engines.objectives import finite, loss_of, right_of
from celluler.engines.objectives_wired import (
    Run,
    constant_of,
    contrast,
    denoising_error,
    energy_distance,
    evidence,
    sample,
)
from celluler.models.body import Body
from celluler.models.objectives import Adversarial, Classification, Contrastive, Denoising, NextToken, Variational

MOST_COMPARED = 512
"""Samples of a generator held against as many of the data: the pairs are their square."""
COMPARED_AT_ONCE = 64
"""Samples among which a contrastive model finds the other view."""
_KEY = b"celluler-evaluate".ljust(32, b"\0")
_LARGEST_EXPONENT = 100.0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """count: samples. loss: mean over them. accuracy: share of classes or tokens told right; None where answers are
    numbers. metric, value: what its objective is judged by, and how much it is."""

    count: int
    loss: float
    accuracy: float | None
    metric: str
    value: float

    @property
    def perplexity(self) -> float | None:
        """Of a language model, e to the loss; None of others."""
        return self.value if self.metric == NextToken.METRIC else None


def evaluate(body: Body, run: Run, data: Dataset, *, most: int, least: int) -> Evaluation:
    """most, least: samples that go through the model at once."""
    accuracy = None
    with torch.inference_mode():
        match objective := body.objective:
            case Adversarial():
                loss = _distance(body, run, data, most)
                value = loss
            case Contrastive():
                loss, value = _contrasted(objective, run, data, min(most, COMPARED_AT_ONCE))
            case Variational():
                bound, elements = _evidence(objective, run, data, most), data.x[0].numel()
                loss, value = bound / elements, -(bound + constant_of(objective, elements))
            case Denoising():
                loss = value = _denoised(objective, run, data, most)
            case _:
                loss, accuracy = _answered(body, run, data, most, least)
                value = loss
                if isinstance(objective, NextToken):
                    value = math.exp(min(loss, _LARGEST_EXPONENT))
                elif isinstance(objective, Classification) and accuracy is not None:
                    value = accuracy
    return Evaluation(len(data), finite(loss), accuracy, objective.METRIC, math.copysign(finite(abs(value)), value))


def sizes(count: int, most: int, least: int) -> list[int]:
    """How many at a time: the most, and what is left; where that is too few, all are about as many."""
    whole, left = divmod(count, most)
    if left == 0 or left >= least:
        return [most] * whole + [left] * (left > 0)
    pieces = whole + 1
    return [count // pieces + (place < count % pieces) for place in range(pieces)]


def pieces(x: Tensor, most: int, least: int = 1) -> Iterator[tuple[Tensor, range]]:
    """A few samples at a time, and their places."""
    start = 0
    for size in sizes(len(x), most, least):
        yield x[start : start + size], range(start, start + size)
        start += size


def _drawn(x: Tensor, most: int, least: int = 1) -> Iterator[tuple[Tensor, Draws]]:
    for piece, places in pieces(x, most, least):
        yield piece, Draws(_KEY, b"", places)


def _answered(body: Body, run: Run, data: Dataset, most: int, least: int) -> tuple[float, float | None]:
    total, right, asked = 0.0, 0, 0
    for x, places in pieces(data.x, most, least):
        raw, y = run(x), data.y[places.start : places.stop]
        total += float(loss_of(body, raw, y)) * len(x)
        if told := right_of(body, raw, y):
            right, asked = right + told[0], asked + told[1]
    return total / len(data), right / asked if asked else None


def _contrasted(objective: Contrastive, run: Run, data: Dataset, most: int) -> tuple[float, float]:
    loss, matched = 0.0, 0.0
    for x, draws in _drawn(data.x, most, 2):
        one, share = contrast(objective, run, x, draws)
        loss, matched = loss + float(one) * len(x), matched + float(share) * len(x)
    return loss / len(data), matched / len(data)


def _evidence(objective: Variational, run: Run, data: Dataset, most: int) -> float:
    return sum(float(evidence(objective, run, x, draws).sum()) for x, draws in _drawn(data.x, most)) / len(data)


def _denoised(objective: Denoising, run: Run, data: Dataset, most: int) -> float:
    errors = (float(denoising_error(objective, run, x, draws)) * len(x) for x, draws in _drawn(data.x, most))
    return sum(errors) / len(data)


def _distance(body: Body, run: Run, data: Dataset, most: int) -> float:
    count = min(len(data), MOST_COMPARED)
    real = data.x[torch.arange(count) * len(data) // count]
    made = [sample(body.objective, run, draws, body.input.shape) for _, draws in _drawn(real, most)]
    return energy_distance(real, torch.cat(made))
