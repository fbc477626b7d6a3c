"""What a model costs and how good it is, measured: the two halves of a before/after card."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from celluler.engines.compress.prune import zeros
from celluler.engines.data import Dataset
from celluler.engines.load import Model, load_model
from celluler.engines.predict import Predictor
from celluler.models.body import Body
from celluler.models.calls import SAMPLE, outputs_of

MANY = 64
CALLS, FEWEST = 31, 3
CALLS_S = 2.0
"""Calls are timed until there are so many, or so long, and never fewer than the fewest."""


@dataclass(frozen=True, slots=True)
class Figures:
    """file_bytes: of the weights file. zeros: share of the values of its float32 matrices that is zero. metric, value,
    accuracy: as of `Evaluation`, empty and None without data. one_ms, many_ms: median of a call with one sample, with
    `MANY`; None where the model answers seeds, or takes no such batch."""

    dtype: str
    parameters: int
    file_bytes: int
    zeros: float
    metric: str
    value: float | None
    accuracy: float | None
    one_ms: float | None = None
    many_ms: float | None = None


def judged(body: Body, weights: Path, data: Dataset | None, memory_bytes: int | None) -> tuple[Model, Figures]:
    """The model, and what it costs but for time. Raises as `load_model`."""
    model = load_model(body, weights, memory_bytes=memory_bytes)
    evaluation = None if data is None else model.predictor().evaluate(data)
    figures = Figures(
        body.dtype,
        body.parameter_count,
        weights.stat().st_size,
        zeros(body, model.vector),
        "" if evaluation is None else evaluation.metric,
        None if evaluation is None else evaluation.value,
        None if evaluation is None else evaluation.accuracy,
    )
    return model, figures


def timed(pair: tuple[Model, Model], figures: tuple[Figures, Figures], data: Dataset | None) -> tuple[Figures, Figures]:
    """Both with their times. The two are called in turns, so that whatever else the machine does slows both."""
    predictors = tuple(model.predictor() for model in pair)
    one = _in_turns(predictors, [_samples(model.body, data, 1) for model in pair])
    many = _in_turns(predictors, [_samples(model.body, data, MANY) for model in pair])
    before, after = (
        replace(told, one_ms=few_ms, many_ms=many_ms) for told, few_ms, many_ms in zip(figures, one, many, strict=True)
    )
    return before, after


def _samples(body: Body, data: Dataset | None, count: int) -> npt.NDArray[np.generic] | None:
    """Of the data, over again where there are too few; else zeros."""
    least, most = body.batch
    if next(iter(outputs_of(body))) == SAMPLE or not least <= count <= most:
        return None
    if data is None:
        return np.zeros((count, *body.input.shape), dtype=body.input.dtype)
    return np.resize(data.x[: min(count, len(data))].numpy(), (count, *data.x.shape[1:]))


def _in_turns(predictors: Sequence[Predictor], inputs: Sequence[npt.NDArray[np.generic] | None]) -> list[float | None]:
    """Median time of a call of each, in ms; None where one has no input to be called with."""
    called = [(predictor, x) for predictor, x in zip(predictors, inputs, strict=True) if x is not None]
    if len(called) < len(predictors):
        return [None] * len(predictors)
    took: list[list[float]] = [[] for _ in called]
    began = time.perf_counter()
    for turn in range(1 + CALLS):
        for place, (predictor, x) in enumerate(called):
            start = time.perf_counter()
            predictor.predict(x)
            if turn:  # the first one warms up
                took[place].append(time.perf_counter() - start)
        if turn >= FEWEST and time.perf_counter() - began > CALLS_S:
            break
    return [1000 * statistics.median(times) for times in took]
