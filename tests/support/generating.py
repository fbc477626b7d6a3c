"""A model of which everybody knows what it says."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import trio

from celluler.engines.build import views_of
from celluler.models.spec import format_spec, parse_spec
from celluler.models.templates import fill
from celluler.models.weights import initial_vector, save_vector
from celluler_node.processes.words import Reply
from celluler_node.processes.worker import Worker
from celluler_node.processes.worker_generate_words import Step
from celluler_node.processes.worker_words import LoadModel


def reciting(text: bytes, folder: Path, *, length: int = 64) -> LoadModel:
    """A model that says of every byte the one after it in this text, whatever stands before. text: each byte once, but
    that the last may be the first, and then it never ends. length: tokens that it looks at."""
    sizes = ["layers[0].vocabulary=256", "layers[3].width=256", "objective.vocabulary=256", f"input.shape=[{length}]"]
    body = parse_spec(fill("transformer-lm", sizes))
    vector = initial_vector(body, b"s" * 32)
    views = views_of(body, torch.from_numpy(vector))
    for name, view in views.items():
        if name.endswith(("output.weight", "down.weight")) or name in ("0.weight", "3.weight"):
            view.zero_()
    for place, (byte, following) in enumerate(itertools.pairwise(text)):
        views["0.weight"][byte, place] = 1.0
        views["3.weight"][following, place] = 1.0
    save_vector(body, vector, folder / "weights.safetensors")
    return LoadModel(
        format_spec(body), str(folder / "weights.safetensors"), preprocess=json.dumps(_bytes(length)).encode()
    )  # fmt: skip


def _bytes(length: int) -> dict[str, Any]:
    """What makes tokens of a text."""
    given = {"name": "text", "dtype": "text", "shape": [length]}
    return {"transforms": 1, "input": given, "steps": [{"kind": "byte_tokens", "length": length}]}


class Worked:
    """A worker in this process, called as one at the end of a channel is."""

    def __init__(self, folder: Path, model: LoadModel) -> None:
        self._worker = Worker(folder)
        self._worker.load_model(model, ())
        self.asked: list[Any] = []
        self.broken: Callable[[Any], Any] | None = None

    async def call(self, request: Any, *blobs: bytes) -> Reply:
        self.asked.append(request)
        await trio.lowlevel.checkpoint()
        if self.broken is not None and isinstance(request, Step):
            return Reply(self.broken(request))
        answer = self._worker.handlers[type(request)](request, tuple(map(bytearray, blobs)))
        return answer if isinstance(answer, Reply) else Reply(answer)

    @property
    def widest(self) -> int:
        return max(len(one.decode) for one in self.asked if isinstance(one, Step))
