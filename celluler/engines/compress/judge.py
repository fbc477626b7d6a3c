"""What a model costs and how good it is, measured: the two halves of a before/after card."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
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
CALLS = 21
CALLS_S = 2.0
"""Calls are timed until there are so many, or so long; three at least."""


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
    one_ms: float | None
    many_ms: float | None


def judged(body: Body, weights: Path, data: Dataset | None, memory_bytes: int | None) -> tuple[Model, Figures]:
    """The model, and what it costs. Raises as `load_model`."""
    model = load_model(body, weights, memory_bytes=memory_bytes)
    predictor = model.predictor()
    evaluation = None if data is None else predictor.evaluate(data)
    figures = Figures(
        body.dtype,
        body.parameter_count,
        weights.stat().st_size,
        zeros(body, model.vector),
        "" if evaluation is None else evaluation.metric,
        None if evaluation is None else evaluation.value,
        None if evaluation is None else evaluation.accuracy,
        _latency_ms(predictor, _samples(body, data, 1)),
        _latency_ms(predictor, _samples(body, data, MANY)),
    )
    return model, figures


def _samples(body: Body, data: Dataset | None, count: int) -> npt.NDArray[np.generic] | None:
    """Of the data, over again where there are too few; else zeros."""
    least, most = body.batch
    if next(iter(outputs_of(body))) == SAMPLE or not least <= count <= most:
        return None
    if data is None:
        return np.zeros((count, *body.input.shape), dtype=body.input.dtype)
    return np.resize(data.x[: min(count, len(data))].numpy(), (count, *data.x.shape[1:]))


def _latency_ms(predictor: Predictor, x: npt.NDArray[np.generic] | None) -> float | None:
    if x is None:
        return None
    predictor.predict(x)
    took, began = list[float](), time.perf_counter()
    while len(took) < 3 or (len(took) < CALLS and time.perf_counter() - began < CALLS_S):
        start = time.perf_counter()
        predictor.predict(x)
        took.append(time.perf_counter() - start)
    return 1000 * statistics.median(took)
