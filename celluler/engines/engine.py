"""The port of engines: what computes a model inside a worker.

Every engine gives, of one body and one weights file, the same answers up to rounding, and refuses what it cannot
compute before anything is allocated. `tests/conformance/test_engine.py` holds every engine to it. What an engine does
not know: peers, requests, batching and whose turn it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from celluler.engines.data import Dataset
from celluler.engines.evaluate import Evaluation
from celluler.engines.generation.slots import GeneratingSlots
from celluler.models.body import Body
from celluler.models.transforms.decoding import TextCodec


@dataclass(frozen=True, slots=True)
class Caps:
    """What an engine can do. device: on which it computes. bodies: kinds that it runs. dtypes: of weights that it
    computes with as they are stored, or widens to what it computes with."""

    name: str
    version: str
    device: str
    bodies: tuple[str, ...]
    dtypes: tuple[str, ...]


class Running(Protocol):
    """A model that is loaded. One call at a time; equal calls give equal bits as long as it is loaded."""

    @property
    def architecture(self) -> Body: ...

    def predict(self, x: npt.NDArray[Any], output: str = "raw") -> npt.NDArray[Any]:
        """x: (n, *input), or seeds (n,). output: one of `outputs_of` the body. → (n, …)

        Raises InvalidSpec: `input…` or `output`, for what does not fit, and for values that are not finite or no token.
        """
        ...

    def evaluate(self, data: Dataset) -> Evaluation: ...

    def warm_up(self) -> None:
        """Do what the first answer would wait for."""
        ...

    def stand_apart(self) -> bool:
        """A sample's answer does not depend on what else is in its batch, as far as trying shows."""
        ...

    def slots(
        self, count: int, *, length: int | None = None, memory_bytes: int | None = None, codec: TextCodec | None = None
    ) -> GeneratingSlots:
        """Prefill, decode and release sequences side by side, see there. Raises InvalidSpec for a model that does not
        tell the next token, DoesNotFit before anything is allocated."""
        ...


class Engine(Protocol):
    """Made once in a worker."""

    @property
    def caps(self) -> Caps: ...

    def load(self, body: Body, weights: Path, *, memory_bytes: int | None = None) -> Running:
        """memory_bytes: what this process may take. The file is read again while the model lives, never written.

        Raises DoesNotFit before anything is allocated; InvalidSpec for a body that does other things than it says, or a
        file that does not fit, or holds values that are not finite.
        """
        ...
