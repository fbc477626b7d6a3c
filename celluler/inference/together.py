"""Which predictions may be computed in one batch without one having anything to do with another.

Layers of a spec look at one sample at a time, batch norms too where nothing is trained. What a graph does is its
author's: it is computed together only where the worker found samples to stand apart, and then for one client alone, so
that nothing of one client's reaches another. Programs before or after a model may see the batch, and so go alone.
"""

from __future__ import annotations

from collections.abc import Hashable

from celluler.models.calls import SAMPLE
from celluler.models.graph_body import GraphBody
from celluler.models.interface import Interface
from celluler.models.layers import Shape
from celluler.models.transforms.programs import GraphStep, Wasm


def needs_trial(interface: Interface) -> bool:
    """Only running the model shows whether its samples stand apart."""
    body = interface.body
    return isinstance(body, GraphBody) and body.batch[1] > 1 and _may(interface)


def group_of(
    interface: Interface, dtype: str, shape: Shape, output: str, client: str, *, apart: bool
) -> Hashable | None:
    """Calls of equal groups may be joined along the batch axis; None for one that goes alone.

    The call fits the interface. apart: what a trial has shown, where one is needed.
    """
    if interface.source(output) == SAMPLE or not _may(interface):
        return None
    own = isinstance(interface.body, GraphBody)
    if own and not apart:
        return None
    return dtype, shape[1:], output, client if own else ""


def most_together(interface: Interface, samples: int) -> int:
    """Samples of one batch, of at most so many."""
    return max(1, min(samples, interface.body.batch[1]))


def _may(interface: Interface) -> bool:
    body = interface.body
    if body.batch[0] > 1 or any(isinstance(step, GraphStep | Wasm) for one in interface.chains for step in one.steps):
        return False
    return not (isinstance(body, GraphBody) and (body.whole_batch or body.draws_noise))
