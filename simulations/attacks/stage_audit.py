"""An audit on the stage: a member's steps done again by the worker's own code, and held against what it sent."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from celluler.aggregation.digests import wire_bytes
from celluler.aggregation.wires import FINEST
from celluler.engines.train import Trainer
from celluler.learning.effects import Audit
from celluler_node.processes.worker_replay import ReplayUnderWay
from celluler_node.processes.worker_words import Replay, Replayed
from simulations.attacks.updates import Wire


def deviations_of(
    trainer: Trainer, effect: Audit, sent: Wire, before: Wire | None, start: npt.NDArray[np.float32]
) -> tuple[float, ...]:
    """One a part. start: (dimension,), the public weights before that round."""
    wires = [sent] if before is None else [sent, before]
    blobs = [bytearray(wire_bytes(wire.mantissas)) for wire in wires]
    carried = () if before is None else before.exponents
    request = Replay(effect.round, effect.member, effect.parts, sent.exponents, carried)
    done = ReplayUnderWay(trainer, len(effect.parts), FINEST, request, blobs, start).go_on(0)
    assert isinstance(done, Replayed), "without an end it goes on until it is done"
    return done.deviations
