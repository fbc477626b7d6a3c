"""A model's body: what to compute, as data. Its kind says how the document is read.

    spec    a declarative architecture        celluler.models.spec
    graph   a graph of allowed operations     celluler.models.graph_body

Whatever a stranger wrote is a body within the budget, or InvalidSpec with the place that is wrong: nothing is
allocated and nothing executed. Knows no torch; `celluler.engines.load` makes modules of bodies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from celluler.errors import InvalidSpec
from celluler.models.graph_body import MAX_GRAPH_BODY_BYTES, GraphBody, format_graph_body, parse_graph_body
from celluler.models.layers import Shape, TensorSpec
from celluler.models.objectives import Objective
from celluler.models.spec import MAX_SPEC_BYTES, Architecture, Input, format_spec, parse_spec
from celluler.models.stored import Stored

MAX_BODY_BYTES = max(MAX_SPEC_BYTES, MAX_GRAPH_BODY_BYTES)
SPEC, GRAPH = "spec", "graph"


class Body(Protocol):
    """What everybody who trains, serves or describes a model may know of it. Equal documents give equal bodies.

    kind: key of `KINDS`. input: one sample, with the longest sequence where its length may vary; output: what comes
    of it. vocabulary: integers that may come in are below it (int64 input only). tensors: what training moves, all
    float32, in the order in which they make up the flat vector. stored: everything that the weights file holds.
    """

    @property
    def kind(self) -> str: ...

    @property
    def input(self) -> Input: ...

    @property
    def output(self) -> Shape: ...

    @property
    def objective(self) -> Objective: ...

    @property
    def vocabulary(self) -> int: ...

    @property
    def tensors(self) -> tuple[TensorSpec, ...]: ...

    @property
    def planned(self) -> tuple[TensorSpec, ...]:
        """The same of a float32 model: what `tensors` and `narrow` hold, in one order."""

    @property
    def narrow(self) -> tuple[TensorSpec, ...]:
        """Those of `planned` that the file holds in less than float32, see `celluler.models.narrow`. A model that has
        any is not trained."""

    def stored_as(self, dtype: str) -> Body:
        """The same with weights of that dtype, `float32` or a narrow one."""

    @property
    def stored(self) -> tuple[Stored, ...]: ...

    @property
    def dtype(self) -> str:
        """Of the floating-point tensors in the file; `mixed` when there are several."""

    @property
    def dimension(self) -> int:
        """Length of the flat vector."""

    @property
    def parameter_count(self) -> int:
        """Trained parameters alone."""

    @property
    def parameter_bytes(self) -> int:
        """Tensor bytes of the weights file."""

    @property
    def activation_bytes(self) -> int:
        """Of all values of one sample, on the way there: what training keeps."""

    @property
    def working_bytes(self) -> int:
        """Of one sample, held at once where nothing is trained."""

    @property
    def batch(self) -> tuple[int, int]:
        """Samples that one pass takes, least and most."""

    @property
    def whole_batch(self) -> bool:
        """The batch is part of what is computed, as with batch norms: a step's must not be cut."""

    def answer_shape(self, sample: Shape) -> Shape:
        """What comes of a sample of this shape. Raises InvalidSpec (`input.shape`) for one that does not fit."""


_READERS: dict[str, Callable[[bytes], Body]] = {SPEC: parse_spec, GRAPH: parse_graph_body}
KINDS = tuple(_READERS)


def parse_body(kind: str, document: bytes) -> Body:
    """Raises InvalidSpec: `body` for a kind that nobody knows, else the path in the document."""
    if kind not in _READERS:
        raise InvalidSpec("body", f"is {kind[:32]!r}, must be {' or '.join(KINDS)}")
    return _READERS[kind](document)


def format_body(body: Body) -> bytes:
    """The canonical document of a body: sorted keys, no spaces, defaults left out."""
    match body:
        case Architecture():
            return format_spec(body)
        case GraphBody():
            return format_graph_body(body)
    raise AssertionError(body.kind)


def read_body(kind: str, document: dict[str, Any]) -> Body:
    """A body from a parsed document, as a person or a program on this machine hands it over. Raises InvalidSpec."""
    match kind:
        case "spec":
            return parse_spec(document)
        case "graph":
            return parse_graph_body(document)
    return parse_body(kind, b"{}")
