"""Predicting and evaluating with a built model. Synchronous; the caller pins threads and owns the process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from celluler.engines.data import Dataset, check_values
from celluler.engines.draws import Draws
from celluler.engines.evaluate import Evaluation, evaluate, pieces
from celluler.engines.last_place import told_at
from celluler.engines.modules import module_of
from celluler.engines.objectives_wired import Run, answer, sample
from celluler.models.body import Body
from celluler.models.calls import NEXT_TOKEN, SAMPLE, check_call, outputs_of
from celluler.models.spec import Architecture
from celluler.models.weights import NOTHING_STILL, Still

_BATCH_BYTES = 64 << 20
_MAX_BATCH = 1024
_SLOW = 10**10
"""Multiply-adds of a sample: about a second."""
_SAMPLE_KEY = b"celluler-sample".ljust(32, b"\0")


class Predictor:
    """A model ready to answer."""

    def __init__(self, architecture: Body, vector: Tensor, still: Still = NOTHING_STILL) -> None:
        """vector: (dimension,) float32; the model goes on reading it. still: the rest of the weights file."""
        self.architecture = architecture
        self.module = module_of(architecture, vector, still).eval()
        self._run = Run(self.module)
        least, most = architecture.batch
        # Activations of a whole batch stay within a bound that depends on the body alone.
        fitting = min(_MAX_BATCH, _BATCH_BYTES // max(1, architecture.activation_bytes))
        self._least, self._batch = least, max(least, min(most, fitting))

    def predict(self, x: npt.NDArray[Any], output: str = "raw") -> npt.NDArray[Any]:
        """x: (n, *input); for samples (n,) int64, of each a seed, of which a sample is a function.

        output: one of `outputs_of` the body, which says what it is. Raises InvalidSpec for an input that does not fit.
        """
        check_call(self.architecture, x.dtype.name, x.shape, output)
        if output == SAMPLE:
            return self._sampled(x)
        check_values(self.architecture, x, "input")
        if output == NEXT_TOKEN:
            return self._told_at(x, np.full(len(x), x.shape[1] - 1))
        with torch.inference_mode():
            told = [
                answer(self.architecture, self._run, piece, output).numpy()
                for piece, _ in pieces(torch.from_numpy(x), self._batch, self._least)
            ]
        return told[0] if len(told) == 1 else np.concatenate(told)

    def following(self, x: npt.NDArray[Any], places: Sequence[int]) -> npt.NDArray[Any]:
        """What a language model tells behind one place of each text, (n, vocabulary). Raises as `predict`."""
        check_call(self.architecture, x.dtype.name, x.shape, NEXT_TOKEN)
        check_values(self.architecture, x, "input")
        return self._told_at(x, np.asarray(places))

    def _told_at(self, x: npt.NDArray[Any], places: npt.NDArray[Any]) -> npt.NDArray[Any]:
        body, at = self.architecture, torch.from_numpy(places)
        with torch.inference_mode():
            told = [
                told_at(body, self.module, piece, at[rows.start : rows.stop]).numpy()
                for piece, rows in pieces(torch.from_numpy(x), self._batch, self._least)
            ]
        return np.concatenate(told)

    def warm_up(self) -> None:
        """Once through what answers: the first time is slow. Not where every time takes longer than that."""
        body = self.architecture
        if isinstance(body, Architecture) and body.cost.multiply_adds > _SLOW:
            return
        zeros = np.zeros((self._least, *body.input.shape), dtype=body.input.dtype)
        if (usual := next(iter(outputs_of(body)))) != SAMPLE:
            self.predict(zeros, usual)
        else:  # a sample may take a thousand passes, an evaluation takes one
            x = torch.from_numpy(zeros)
            self.evaluate(Dataset(x, x))

    def evaluate(self, data: Dataset) -> Evaluation:
        return evaluate(self.architecture, self._run, data, most=self._batch, least=self._least)

    def _sampled(self, seeds: npt.NDArray[Any]) -> npt.NDArray[Any]:
        body, made = self.architecture, []
        with torch.inference_mode():
            for start in range(0, len(seeds), self._batch):
                draws = Draws(_SAMPLE_KEY, b"", seeds[start : start + self._batch].tolist())
                made.append(sample(body.objective, self._run, draws, body.input.shape).numpy())
        return np.concatenate(made)
