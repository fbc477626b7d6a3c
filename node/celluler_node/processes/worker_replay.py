"""The worker's half of an audit: a member's round done again, and held against what it sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from celluler.aggregation.q16 import (
    WIRE_DTYPE,
    ZERO_EXPONENT,
    Quantised,
    decode,
    is_exponent,
    part_slices,
)
from celluler.aggregation.wires import FINEST
from celluler.engines.replay import Steps, deviation
from celluler.engines.train import Trainer, Vector, Work
from celluler.errors import LocalError
from celluler_node.processes.worker_wire import encode_update, steps_between
from celluler_node.processes.worker_words import Replay, Replayed, Replaying


class ReplayUnderWay:
    """One member's round on its way to be done again, in as many turns as the caller likes."""

    def __init__(
        self, run: Trainer, parts: int, wire: str, request: Replay, blobs: Sequence[bytearray], start: Vector
    ) -> None:
        """parts: into how many an update of this run is cut. wire: in which form it travels. start: (dimension,)
        float32, the public weights before that round. Raises LocalError for a request that means nothing."""
        if len(blobs) != 1 + bool(request.before) or list(request.parts) != sorted(set(request.parts)):
            raise LocalError(f"{len(blobs)} blobs for parts {request.parts}")
        if request.parts[-1] >= parts:
            raise LocalError(f"no part {request.parts[-1]} of {parts}")
        pieces = part_slices(run.dimension, parts)
        self._run, self._parts, self._wire = run, parts, wire
        self._chosen = [pieces[part] for part in request.parts]
        self._numbers = request.parts
        self._sent = _cut(self._chosen, request.exponents, blobs[0])
        self._before = _cut(self._chosen, request.before, blobs[1]) if request.before else None
        self._steps = run.replaying(request.round, request.index, start)

    def go_on(self, within_ms: int, clock: Callable[[], float] = time.monotonic) -> Replaying | Replayed:
        """At least one step; then until it is done or the time is over. within_ms: 0 for no end."""
        until = clock() + within_ms / 1000
        self._steps.take(lambda: bool(within_ms) and clock() >= until)
        return self._judge() if self._steps.done else Replaying(self._steps.left)

    def _judge(self) -> Replayed:
        before = None if self._before is None else _spread(self._run.dimension, self._chosen, self._before)
        work = self._run.work_of(self._steps, before)
        exponents, mantissas = encode_update(work.update, self._parts, self._wire)
        places = zip(self._numbers, self._chosen, strict=True)
        again = [Quantised(exponents[number], mantissas[piece]) for number, piece in places]
        compared = zip(self._sent, again, self._chosen, strict=True)
        deviations = tuple(self._deviation(work, piece, one, other) for one, other, piece in compared)
        return Replayed(all(map(_same, self._sent, again)), deviations)

    def _deviation(self, work: Work, piece: slice, sent: Quantised, again: Quantised) -> float:
        exact, added = work.update[piece], work.added[piece]
        return deviation(decode(sent), decode(again), exact, added, _unit(sent, again), _steps(self._wire, sent, again))


def _cut(chosen: Sequence[slice], exponents: Sequence[int], blob: bytearray) -> list[Quantised]:
    """The blob as the wires of these parts."""
    sizes = [piece.stop - piece.start for piece in chosen]
    if len(exponents) != len(chosen) or len(blob) != WIRE_DTYPE.itemsize * sum(sizes):
        raise LocalError(f"{len(exponents)} exponents and {len(blob)} bytes for {len(chosen)} parts")
    if not all(map(is_exponent, exponents)):
        raise LocalError("an exponent that no part has")
    values = np.frombuffer(blob, dtype=WIRE_DTYPE).astype(np.int16, copy=False)
    starts = np.cumsum([0, *sizes])
    cuts = (values[start : start + size] for start, size in zip(starts, sizes, strict=False))
    return [Quantised(exponent, cut) for exponent, cut in zip(exponents, cuts, strict=True)]


def _spread(dimension: int, chosen: Sequence[slice], parts: Sequence[Quantised]) -> npt.NDArray[np.float32]:
    """Their values at their places in the whole; zero elsewhere, where nothing is compared."""
    whole = np.zeros(dimension, dtype=np.float32)
    for piece, part in zip(chosen, parts, strict=True):
        whole[piece] = decode(part)
    return whole


def _same(one: Quantised, other: Quantised) -> bool:
    return one.exponent == other.exponent and bool((one.mantissas == other.mantissas).all())


def _unit(sent: Quantised, again: Quantised) -> float:
    """Between neighbouring mantissas. 0, which forgives nothing, where the exponents differ by more than rounding can
    explain: with a large one every value would lie within half a unit of zero."""
    if ZERO_EXPONENT in (sent.exponent, again.exponent) or abs(sent.exponent - again.exponent) > 1:
        return 0.0
    return float(2.0 ** max(sent.exponent, again.exponent))


def _steps(wire: str, sent: Quantised, again: Quantised) -> Steps | None:
    """Between neighbouring values of a wire that is coarser than mantissas."""
    if wire == FINEST:
        return None
    return steps_between(wire, sent.mantissas, again.mantissas)
