"""The worker's part of a run without certificates: its own model, and its neighbours' as they come."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from celluler.aggregation.q16 import WIRE_DTYPE, Values, decode_parts, encode_parts, is_exponent
from celluler.engines.own import OwnModel
from celluler.engines.train import Trainer
from celluler.errors import InvalidSpec, LocalError
from celluler_node.processes.words import Reply
from celluler_node.processes.worker_mix_words import (
    Compared,
    CompareOwn,
    MixedOwn,
    MixOwn,
    MixRow,
    StepOwn,
    Stepped,
)

Blobs = tuple[bytearray, ...]


class Mixer:
    """Made with the worker; takes over a run's trainer with the first step asked of it."""

    def __init__(self, scratch: Path, run: Callable[[], tuple[Trainer, int]]) -> None:
        """run: the trainer and the number of parts. Raises LocalError while no run is started."""
        self._scratch, self._run = scratch, run
        self._model: tuple[Trainer, OwnModel] | None = None

    @property
    def handlers(self) -> Mapping[type, Callable[[Any, Blobs], Any]]:
        return {StepOwn: self.step, MixOwn: self.mix, CompareOwn: self.compare}

    def step(self, request: StepOwn, _: Blobs) -> Reply:
        trainer, parts = self._run()
        if self._model is None or self._model[0] is not trainer:
            if trainer.applied >= 0:
                raise LocalError("a run that has begun with certificates goes on with them")
            self._model = trainer, OwnModel(trainer)
        difference, loss = self._model[1].step(request.round, train=request.train)
        exponents, mantissas = encode_parts(difference, parts)
        return Reply(Stepped(loss, exponents), (mantissas.astype(WIRE_DTYPE, copy=False).data.cast("B"),))

    def mix(self, request: MixOwn, blobs: Blobs) -> MixedOwn:
        trainer, parts = self._run()
        rows = _Rows(request.rows, blobs, parts, trainer.dimension)
        weights = [row.weight for row in request.rows]
        mixture = self._own().mix(request.round, rows, weights, trusted=request.trusted, clip=request.clip)
        return MixedOwn(mixture.deviations, mixture.pulls, trainer.state_root())

    def compare(self, request: CompareOwn, _: Blobs) -> Compared:
        if Path(request.name).name != request.name or request.name.startswith("."):
            raise InvalidSpec("name", f"{request.name!r} is no plain file name")
        return Compared(self._own().deviation(self._scratch / request.name))

    def _own(self) -> OwnModel:
        if self._model is None or self._model[0] is not self._run()[0]:
            raise LocalError("no step was taken in this run")
        return self._model[1]


class _Rows(Sequence[Values]):
    """Neighbours' models, each made into floats when it is asked for: all at once would be twice what came."""

    def __init__(self, rows: tuple[MixRow, ...], blobs: Blobs, parts: int, dimension: int) -> None:
        if len(rows) != len(blobs):
            raise LocalError(f"{len(blobs)} blobs for {len(rows)} rows")
        for row, blob in zip(rows, blobs, strict=True):
            if len(row.exponents) != parts or len(blob) != 2 * dimension or not all(map(is_exponent, row.exponents)):
                raise LocalError("a row that is no model of this run")
        self._rows, self._blobs = rows, blobs

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Values: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Values]: ...

    def __getitem__(self, place: int | slice) -> Values | Sequence[Values]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        return decode_parts(self._rows[place].exponents, np.frombuffer(self._blobs[place], dtype=WIRE_DTYPE))
