"""A model's architecture as data: JSON in, a checked `Architecture` out, nothing allocated, nothing executed.

The vocabulary stands in docs/reference/model-spec.md (rendered from `celluler.models.layers`). Whatever a stranger
writes is either an architecture within the budget or InvalidSpec with the place that is wrong. Knows no torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

from celluler.documents import read_json
from celluler.errors import InvalidSpec
from celluler.models.fields import Choice, Sizes, Whole, declare, read_fields
from celluler.models.layers import (
    FLOAT_BYTES,
    Body,
    Budget,
    Layer,
    Ledger,
    Place,
    Shape,
    Signal,
    TensorSpec,
    count_layers,
    plan_layers,
)
from celluler.models.objectives import OBJECTIVES, Objective, Planned

FORMAT = 1
MAX_SPEC_BYTES = 1 << 16
MAX_NESTING = 32
"""Of lists and objects: layers may nest about ten deep."""
DEFAULT_BUDGET = Budget()


@dataclass(frozen=True, slots=True)
class Input:
    """What one sample is."""

    dtype: str = declare(Choice(("float32", "int64")), "of its elements; int64 is for an embedding")
    shape: Shape = declare(Sizes(), "without the batch axis")  # noqa: RUF009


@dataclass(frozen=True, slots=True)
class Cost:
    """What a model of this architecture costs; all but parameters for one sample."""

    parameter_count: int
    parameter_bytes: int
    activation_bytes: int
    multiply_adds: int
    layers: int


@dataclass(frozen=True, slots=True)
class Architecture:
    """A checked architecture. Equal documents give equal architectures.

    tensors: every float32 tensor of the weights, in the order in which they make up the flat vector.
    vocabulary: integers that may come in are below it (int64 input only).
    """

    input: Input
    layers: tuple[Layer, ...]
    objective: Objective
    output: Shape
    tensors: tuple[TensorSpec, ...]
    vocabulary: int
    cost: Cost

    @property
    def dimension(self) -> int:
        """Length of the flat vector of all tensors, running statistics included."""
        return self.cost.parameter_bytes // FLOAT_BYTES

    @property
    def parameter_count(self) -> int:
        """Trained parameters alone."""
        return self.cost.parameter_count

    @property
    def parameter_bytes(self) -> int:
        """Of all tensors, running statistics included: the tensor bytes of the weights file."""
        return self.cost.parameter_bytes


def parse_spec(document: bytes | dict[str, Any], *, budget: Budget = DEFAULT_BUDGET) -> Architecture:
    """The architecture that a JSON document describes. Raises InvalidSpec with the path of what is wrong."""
    root = read_json(document, limit=MAX_SPEC_BYTES) if isinstance(document, bytes) else document
    _bound_nesting(root)
    values = read_fields(_Document, root, "")
    return _plan(values["input"], values["layers"], values["objective"], budget)


def format_spec(architecture: Architecture) -> bytes:
    """The canonical document of an architecture: sorted keys, no spaces, defaults left out."""
    document = {
        "spec": FORMAT,
        "input": _plain(architecture.input),
        "layers": [_plain(layer) for layer in architecture.layers],
        "objective": _plain(architecture.objective),
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")


# --- the outermost object --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Object:
    """The rule of a field that holds an object of fixed fields."""

    cls: type

    @property
    def text(self) -> str:
        return "object"

    def read(self, value: Any, path: str) -> Any:
        return self.cls(**read_fields(self.cls, value, path))


@dataclass(frozen=True, slots=True)
class _ObjectiveRule:
    @property
    def text(self) -> str:
        return "object with a kind: " + " · ".join(f"`{kind}`" for kind in OBJECTIVES)

    def read(self, value: Any, path: str) -> Objective:
        if not isinstance(value, dict):
            raise InvalidSpec(path, "must be an object")
        kind = value.get("kind")
        if not isinstance(kind, str) or kind not in OBJECTIVES:
            raise InvalidSpec(f"{path}.kind", f"must be one of {', '.join(OBJECTIVES)}")
        return OBJECTIVES[kind](**read_fields(OBJECTIVES[kind], value, path, besides=("kind",)))


@dataclass(frozen=True, slots=True)
class _Document:
    spec: int = declare(Whole(FORMAT, FORMAT), "version of this format")
    input: Input = declare(_Object(Input), "what one sample is")  # noqa: RUF009
    layers: tuple[Layer, ...] = declare(Body(), "in the order in which they are applied")
    objective: Objective = declare(_ObjectiveRule(), "what the model is for")  # noqa: RUF009


DOCUMENT: type = _Document
"""The outermost object's fields, for the reference page."""


def _plan(given: Input, layers: tuple[Layer, ...], objective: Objective, budget: Budget) -> Architecture:
    if (unrolled := count_layers(layers)) > budget.layers:
        raise InvalidSpec("layers", f"needs {unrolled} layers, the budget is {budget.layers}")
    start = Signal(given.dtype, given.shape)
    if FLOAT_BYTES * start.elements > budget.activation_bytes:
        raise InvalidSpec("input.shape", f"holds {start.elements} elements, over the budget")
    ledger = Ledger(budget)
    out = plan_layers(layers, start, Place(), ledger)
    if out.dtype != "float32":
        raise InvalidSpec("layers", f"give {out.dtype}, an objective needs float32")
    objective.check(Planned(start, out, ledger.vocabulary, layers))
    trained = sum(tensor.elements for tensor in ledger.tensors if tensor.trained)
    cost = Cost(trained, ledger.parameter_bytes, ledger.activation_bytes, ledger.multiply_adds, ledger.layers)
    return Architecture(given, layers, objective, out.shape, tuple(ledger.tensors), ledger.vocabulary, cost)


# --- JSON from strangers ---------------------------------------------------------------------------------------------


def _bound_nesting(root: Any) -> None:
    """Before anything recurses over the document. A cycle (in a dict made by a program) runs into the bound too."""
    level = [root]
    for _ in range(MAX_NESTING):
        level = [child for value in level for child in _children(value)]
        if not level:
            return
        if len(level) > MAX_SPEC_BYTES:
            break
    raise InvalidSpec("", f"nested deeper than {MAX_NESTING}, or larger than {MAX_SPEC_BYTES} values")


def _children(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _plain(part: Any) -> Any:
    """A declared object as JSON values."""
    if isinstance(part, tuple):
        return [_plain(item) for item in part]
    if not hasattr(part, "__dataclass_fields__"):
        return part
    kind = {"kind": part.KIND} if hasattr(part, "KIND") else {}
    declared = ((one, getattr(part, one.name)) for one in fields(part) if "rule" in one.metadata)
    return kind | {one.name: _plain(value) for one, value in declared if value != one.default}
