"""What the endpoint counts of its own work. Plain numbers: they become Prometheus' text when somebody asks.

Labels are bounded whatever strangers send: routes, not paths; methods that there are; models that answered, the first
hundred of them.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from celluler.inference.questions import Finished
from celluler_node.gateway.references import plain_path

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
RATES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
"""Tokens a second."""
SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
MAX_MODELS = 100
OTHER = "other"
ERROR_KIND = "celluler.error"
"""Where a request's scope says which error it was answered with."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

Labels = tuple[str, ...]


class Histogram:
    """Values by label, in buckets up to each bound and one beyond."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}

    def add(self, labels: Labels, value: float) -> None:
        counts = self._counts.setdefault(labels, [0] * (len(self.bounds) + 1))
        counts[bisect_left(self.bounds, value)] += 1
        self._sums[labels] = self._sums.get(labels, 0.0) + value

    def read(self) -> Iterator[tuple[Labels, list[tuple[str, float]], float]]:
        """(labels, cumulative count by upper bound, sum)."""
        for labels, counts in self._counts.items():
            running, told = 0, []
            for bound, count in zip((*map(str, self.bounds), "+Inf"), counts, strict=True):
                running += count
                told.append((bound, float(running)))
            yield labels, told, self._sums[labels]


class Counted:
    """requests: seconds by (method, route, status). errors: by (route, kind). predictions, batches: seconds and samples
    by model. refused: predictions that failed, by kind of error. tokens: by (model, kind): `prompt`, `shared` of these,
    `generated`. first_words, answers: seconds by model, to the first token and to the last; rates: tokens a second from
    the first on. not_written: answers that failed, by kind of error."""

    def __init__(self) -> None:
        self.requests, self.errors = Histogram(SECONDS), Counter[Labels]()
        self.predictions, self.batches = Histogram(SECONDS), Histogram(SAMPLES)
        self.refused = Counter[str]()
        self.first_words, self.answers, self.rates = Histogram(SECONDS), Histogram(SECONDS), Histogram(RATES)
        self.tokens, self.not_written = Counter[Labels](), Counter[str]()
        self._models: set[str] = set()

    def predicted(self, model: str, samples: int, seconds: float) -> None:
        model = self._label(model)
        self.predictions.add((model,), seconds)
        self.batches.add((model,), samples)

    def first_said(self, model: str, seconds: float) -> None:
        self.first_words.add((self._label(model),), seconds)

    def written(self, model: str, finished: Finished, seconds: float, speaking_s: float) -> None:
        """seconds: of all; speaking_s: from the first token to the last."""
        model = self._label(model)
        self.answers.add((model,), seconds)
        if speaking_s > 0 and finished.generated > 1:
            self.rates.add((model,), (finished.generated - 1) / speaking_s)
        for kind, count in (
            ("prompt", finished.prompt),
            ("shared", finished.shared),
            ("generated", finished.generated),
        ):
            self.tokens[model, kind] += count

    def _label(self, model: str) -> str:
        if model not in self._models:
            if len(self._models) >= MAX_MODELS:
                model = OTHER
            self._models.add(model)
        return model


class Measure:
    """ASGI middleware, outermost: how long each answer took, to its last byte, and what it was."""

    def __init__(self, app: ASGIApp, counted: Counted) -> None:
        self._app, self._counted = app, counted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception:
            status, scope[ERROR_KIND] = 500, "Fault"
            raise
        finally:
            route = plain_path(getattr(scope.get("route"), "path", None) or "none")
            method = scope["method"] if scope["method"] in _METHODS else OTHER
            self._counted.requests.add((method, route, str(status)), time.monotonic() - began)
            if kind := scope.get(ERROR_KIND):
                self._counted.errors[route, kind] += 1
