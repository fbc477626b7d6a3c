"""The worker's part of checking: claimed answers, scored by the model that is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from celluler.engines.generation.scoring import score
from celluler.engines.predict import Predictor
from celluler.engines.transforms.served import Served
from celluler.errors import InvalidSpec, LocalError
from celluler_node.processes.words import Reply
from celluler_node.processes.worker_score_words import Score, Scored, claim_of


class Scorer:
    """Made with the worker. Keeps nothing between two requests."""

    def __init__(self, model: Callable[[], tuple[Predictor, Served]], memory_bytes: int | None) -> None:
        """model: that is loaded. Raises LocalError while there is none. memory_bytes: what this process may take."""
        self._model, self._memory = model, memory_bytes

    @property
    def handlers(self) -> Mapping[type, Callable[[Any, tuple[bytearray, ...]], Any]]:
        return {Score: self.score}

    def score(self, request: Score, blobs: tuple[bytearray, ...]) -> Reply:
        if len(blobs) != 3:
            raise LocalError(f"{len(blobs)} blobs, a claim is three")
        if not 0.0 <= request.slack < math.inf:
            raise InvalidSpec("slack", "must be a number, 0 or above")
        model = self._model()[0]
        found = score(model.architecture, model.module, claim_of(request, blobs), request.slack, self._memory)
        return Reply(Scored(len(found)), (found.tobytes(),))
