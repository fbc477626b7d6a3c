"""The worker that makes a model smaller. Started confined, before this module and torch are imported."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3

from celluler.engines.compress.distil import Lesson, check_pair, distil
from celluler.engines.compress.judge import Figures, judged, timed
from celluler.engines.compress.prune import prune
from celluler.engines.compress.structure import prune_units
from celluler.engines.data import Dataset, load_dataset
from celluler.engines.load import Model, load_model
from celluler.errors import InvalidSpec
from celluler.models.body import Body, format_body, parse_body
from celluler.models.narrow_weights import narrow_weights
from celluler.models.objectives import Classification, Contrastive, Variational
from celluler.models.spec import Architecture
from celluler.models.weights import NOTHING_STILL, initial_vector, save_vector
from celluler_node.processes.refusals import refusing
from celluler_node.processes.serving import Link, serve_sync
from celluler_node.processes.worker_compress_words import (
    COMPRESS_REPLIES,
    COMPRESS_REQUESTS,
    OUT,
    Compressed,
    Distil,
    Given,
    Judged,
    Prune,
    Quantise,
)

Blobs = tuple[bytearray, ...]
_SMALLEST_FIRST = ("int4", "int8", "bfloat16")
_SHARES = (Classification.METRIC, Contrastive.METRIC)
_HIGHER = (*_SHARES, Variational.METRIC)


def main(link: Link) -> None:
    torch.set_num_threads(max(1, link.boot.limits.threads))
    torch.set_num_interop_threads(1)
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # as in `worker`
    compressor = Compressor(Path(link.boot.scratch), link.boot.limits.memory_bytes)
    serve_sync(link, COMPRESS_REQUESTS, COMPRESS_REPLIES, compressor.handlers)


class Compressor:
    """Keeps nothing between two requests but the file it wrote last."""

    def __init__(self, scratch: Path, memory_bytes: int | None = None) -> None:
        self._out, self._memory = scratch / OUT, memory_bytes

    @property
    def handlers(self) -> Mapping[type, Callable[[Any, Blobs], Any]]:
        return {Quantise: refusing(self.quantise), Prune: refusing(self.prune), Distil: refusing(self.distil)}

    def quantise(self, request: Quantise) -> Compressed:
        body = parse_body(request.model.body, request.model.spec)
        data = _data(body, request.data, request)
        model, before = judged(body, Path(request.model.weights), data, self._memory)
        if request.dtype:
            return self._as(request.dtype, model, before, data)
        if data is None:
            return self._as("int8", model, before, data)
        tried: list[str] = []
        for dtype in _SMALLEST_FIRST:
            done = self._as(dtype, model, before, data, tuple(tried))
            if hardly_worse(before, done.after, request.tolerance):
                return done
            tried.append(dtype)
        raise InvalidSpec(
            "tolerance", f"{request.tolerance:g} is kept by none of {', '.join(tried)}", hint="allow more"
        )

    def prune(self, request: Prune) -> Compressed:
        body = parse_body(request.model.body, request.model.spec)
        data = _data(body, request.data, request)
        model, before = judged(body, Path(request.model.weights), data, self._memory)
        if not request.structured:
            pruned = Model(body, prune(body, model.vector, request.share), model.still)
            return self._done(pruned, model, before, data)
        architecture = _spec_of(request.model)
        smaller, vector = prune_units(architecture, model.vector, request.share)
        return self._done(Model(smaller, vector, NOTHING_STILL), model, before, data)

    def distil(self, request: Distil) -> Compressed:
        given = request.teacher
        teacher, student = parse_body(given.body, given.spec), parse_body("spec", request.spec)
        check_pair(teacher, student)
        data = load_dataset(teacher, Path(request.data), request.selection)
        test = _data(teacher, request.test, request) or data
        lesson = Lesson(
            request.steps,
            request.batch,
            request.learning_rate,
            request.temperature,
            request.hard,
            request.seed,
        )
        master, before = judged(teacher, Path(given.weights), test, self._memory)
        if request.weights:
            pupil = load_model(student, Path(request.weights), memory_bytes=self._memory, micro=lesson.batch)
        else:
            seed = blake3(f"celluler initial weights {lesson.seed}".encode()).digest()
            pupil = Model(student, initial_vector(student, seed), NOTHING_STILL)
        vector, loss = distil(master.predictor(), pupil, data, lesson)
        return self._done(Model(student, vector, NOTHING_STILL), master, before, test, loss=loss)

    def _as(
        self, dtype: str, model: Model, before: Figures, data: Dataset | None, tried: tuple[str, ...] = ()
    ) -> Compressed:
        narrow = Model(*narrow_weights(model.body, model.vector, dtype, model.still))
        return self._done(narrow, model, before, data, tried=tried)

    def _done(
        self,
        made: Model,
        parent: Model,
        before: Figures,
        data: Dataset | None,
        *,
        tried: tuple[str, ...] = (),
        loss: float | None = None,
    ) -> Compressed:
        """Judged as whoever fetches it will load it: from its file."""
        save_vector(made.body, made.vector, self._out, made.still)
        model, after = judged(made.body, self._out, data, self._memory)
        before, after = timed((parent, model), (before, after), data)
        return Compressed(format_body(made.body), made.body.kind, _told_of(before), _told_of(after), tried, loss)


def _told_of(figures: Figures) -> Judged:
    return Judged(*astuple(figures))


def hardly_worse(before: Figures, after: Judged, tolerance: float) -> bool:
    """Of what the objective is judged by. tolerance: of a share, such as accuracy, the difference; else a share."""
    assert before.value is not None
    assert after.value is not None
    least = tolerance if before.metric in _SHARES else tolerance * abs(before.value)
    lost = before.value - after.value if before.metric in _HIGHER else after.value - before.value
    return lost <= least


def _spec_of(given: Given) -> Architecture:
    body = parse_body(given.body, given.spec)
    if not isinstance(body, Architecture):
        raise InvalidSpec("body", f"is a {body.kind}: its operations fix what they read", hint="leave --structured out")
    return body


def _data(body: Body, path: str, request: Quantise | Prune | Distil) -> Dataset | None:
    return load_dataset(body, Path(path), request.selection) if path else None
