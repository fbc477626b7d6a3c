"""A model's architecture as data: JSON in, a checked `Architecture` out, nothing allocated, nothing executed.

The vocabulary stands in docs/reference/model-spec.md (rendered from `celluler.models.layers`). Whatever a stranger
writes is either an architecture within the budget or InvalidSpec with the place that is wrong. Knows no torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from celluler.documents import read_json
from celluler.errors import InvalidSpec
from celluler.models.fields import MAX_SIZE, Choice, Sizes, Whole, declare, read_fields
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
from celluler.models.narrow import DTYPES, is_narrow, stored_as
from celluler.models.objectives import NET_NAMES, OBJECTIVES, Contrastive, Denoising, Objective
from celluler.models.stored import Stored

FORMAT = 1
MAX_SPEC_BYTES = 1 << 16
MAX_NESTING = 32
"""Of lists and objects: layers may nest about ten deep."""
DEFAULT_BUDGET = Budget()

Bodies = dict[str, tuple[Layer, ...]]
"""Layers of each net by its name; under the empty one those of a document with `layers`."""


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
    working_bytes: int


@dataclass(frozen=True, slots=True)
class Net:
    """Layers in a row. name: in the document; empty of the one net of a document with `layers`. given, out: of a
    sample, before the first and after the last."""

    name: str
    layers: tuple[Layer, ...]
    given: Signal
    out: Signal


@dataclass(frozen=True, slots=True)
class Architecture:
    """A checked architecture, the body of kind `spec`. Equal documents give equal architectures.

    nets: in the order in which its objective names them.
    planned: every tensor of the weights, in the order in which they make up the flat vector of a float32 model.
    vocabulary: integers that may come in are below it (int64 input only).
    cost: of a float32 model. dtype: of the weights file, see `celluler.models.narrow`.
    """

    kind: ClassVar[str] = "spec"

    input: Input
    nets: tuple[Net, ...]
    objective: Objective
    output: Shape
    planned: tuple[TensorSpec, ...]
    vocabulary: int
    cost: Cost
    dtype: str = "float32"

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Of all nets, one net behind another."""
        return tuple(layer for net in self.nets for layer in net.layers)

    def net(self, name: str) -> Net | None:
        """The net of that name, or None."""
        return next((net for net in self.nets if net.name == name), None)

    def stored_as(self, dtype: str) -> Architecture:
        """The same with weights of that dtype."""
        return replace(self, dtype=dtype)

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Those that the file holds as float32: all of them, or what is no matrix."""
        if self.dtype == "float32":
            return self.planned
        return tuple(tensor for tensor in self.planned if not is_narrow(tensor.shape))

    @property
    def narrow(self) -> tuple[TensorSpec, ...]:
        """Those that the file holds in `dtype`."""
        return () if self.dtype == "float32" else tuple(one for one in self.planned if is_narrow(one.shape))

    @property
    def dimension(self) -> int:
        """Length of the flat vector of all float32 tensors, running statistics included."""
        if self.dtype == "float32":
            return self.cost.parameter_bytes // FLOAT_BYTES
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def parameter_count(self) -> int:
        """Trained parameters alone."""
        return self.cost.parameter_count

    @property
    def parameter_bytes(self) -> int:
        """Of all tensors, running statistics included: the tensor bytes of the weights file."""
        if self.dtype == "float32":
            return self.cost.parameter_bytes
        return sum(one.byte_count for one in self.stored)

    @property
    def stored(self) -> tuple[Stored, ...]:
        """The weights file holds what makes up the flat vector, and behind it what is narrower."""
        wide = tuple(Stored(tensor.name, "float32", tensor.shape) for tensor in self.tensors)
        return (*wide, *(one for tensor in self.narrow for one in stored_as(self.dtype, tensor.name, tensor.shape)))

    @property
    def activation_bytes(self) -> int:
        """Of one sample."""
        return self.cost.activation_bytes

    @property
    def working_bytes(self) -> int:
        """Of one sample, held at once by a layer that answers."""
        return self.cost.working_bytes

    @property
    def batch(self) -> tuple[int, int]:
        """Samples that one pass takes: any number."""
        return 1, MAX_SIZE

    @property
    def whole_batch(self) -> bool:
        """The batch is part of what a batch norm computes, and of what samples are told apart from."""
        return isinstance(self.objective, Contrastive) or any(tensor.role == "mean" for tensor in self.planned)

    def answer_shape(self, sample: Shape) -> Shape:
        """What comes of a sample of this shape. Raises InvalidSpec (`input.shape`) for one that does not fit."""
        if sample != self.input.shape:
            given, wanted = (", ".join(map(str, one)) for one in (sample, self.input.shape))
            raise InvalidSpec("input.shape", f"is (n, {given}), must be (n, {wanted})")
        return self.output


def parse_spec(document: bytes | dict[str, Any], *, budget: Budget = DEFAULT_BUDGET) -> Architecture:
    """The architecture that a JSON document describes. Raises InvalidSpec with the path of what is wrong."""
    root = read_json(document, limit=MAX_SPEC_BYTES) if isinstance(document, bytes) else document
    _bound_nesting(root)
    values = read_fields(_Document, root, "")
    bodies = _bodies(values["objective"], values.get("layers"), values.get("nets"))
    return replace(_plan(values["input"], bodies, values["objective"], budget), dtype=values.get("dtype", "float32"))


def format_spec(architecture: Architecture) -> bytes:
    """The canonical document of an architecture: sorted keys, no spaces, defaults left out."""
    bodies = {net.name: plain(net.layers) for net in architecture.nets}
    document = {
        "spec": FORMAT,
        "input": plain(architecture.input),
        **({"layers": bodies[""]} if "" in bodies else {"nets": bodies}),
        "objective": plain(architecture.objective),
        **({} if architecture.dtype == "float32" else {"dtype": architecture.dtype}),
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
        return read_objective(value, path)


def read_objective(value: Any, path: str) -> Objective:
    """An objective of the closed table. Raises InvalidSpec."""
    if not isinstance(value, dict):
        raise InvalidSpec(path, "must be an object")
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in OBJECTIVES:
        raise InvalidSpec(f"{path}.kind", f"must be one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[kind](**read_fields(OBJECTIVES[kind], value, path, besides=("kind",)))


@dataclass(frozen=True, slots=True)
class _NetsRule:
    @property
    def text(self) -> str:
        return "object of lists of layers: " + " · ".join(f"`{name}`" for name in NET_NAMES)

    def read(self, value: Any, path: str) -> Bodies:
        if not isinstance(value, dict):
            raise InvalidSpec(path, "must be an object")
        for name in value:
            if name not in NET_NAMES:
                raise InvalidSpec(f"{path}.{str(name)[:64]}", f"unknown net; allowed: {', '.join(NET_NAMES)}")
        return {name: Body().read(value[name], f"{path}.{name}") for name in NET_NAMES if name in value}


@dataclass(frozen=True, slots=True)
class _Document:
    spec: int = declare(Whole(FORMAT, FORMAT), "version of this format")
    input: Input = declare(_Object(Input), "what one sample is")  # noqa: RUF009
    objective: Objective = declare(_ObjectiveRule(), "what the model is for")  # noqa: RUF009
    layers: tuple[Layer, ...] | None = declare(Body(), "in the order in which they are applied", default=None)
    nets: Bodies | None = declare(  # noqa: RUF009
        _NetsRule(), "in place of `layers`: those that its objective joins", default=None
    )
    dtype: str = declare(Choice(DTYPES), "of the weights file; only float32 ones are trained", default="float32")


DOCUMENT: type = _Document
"""The outermost object's fields, for the reference page."""


def _bodies(objective: Objective, layers: tuple[Layer, ...] | None, nets: Bodies | None) -> Bodies:
    """The nets of a document in the order in which its objective names them."""
    if nets is None:
        if layers is None:
            raise InvalidSpec("layers", "is missing")
        nets = {"": layers}
    elif layers is not None:
        raise InvalidSpec("nets", "stand beside layers: a document has one of the two")
    for names in objective.NETS:
        if set(nets) == set(names or ("",)):
            return {name: nets[name] for name in names or ("",)}
    wanted = " or ".join(f"the nets {' and '.join(names)}" if names else "layers" for names in objective.NETS)
    raise InvalidSpec("nets" if layers is None else "layers", f"{objective.KIND} takes {wanted}")


class _Planner:
    """The nets of a document while its objective joins them."""

    def __init__(self, bodies: Bodies, ledger: Ledger) -> None:
        self._bodies, self._ledger = bodies, ledger
        self.planned: list[Net] = []

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in self._bodies if name)

    @property
    def layers(self) -> tuple[Layer, ...]:
        return tuple(layer for body in self._bodies.values() for layer in body)

    @property
    def vocabulary(self) -> int:
        return self._ledger.vocabulary

    def through(self, name: str, given: Signal) -> Signal:
        path = f"nets.{name}" if name else "layers"
        if FLOAT_BYTES * given.elements > self._ledger.budget.working_bytes:
            raise InvalidSpec(path, f"takes {given.elements} elements, over the budget")
        at = Place("nets", f"{name}.", body=name) if name else Place()
        self._ledger.given = given.elements
        out = plan_layers(self._bodies[name], given, at, self._ledger)
        if out.dtype != "float32":
            raise InvalidSpec(path, f"give {out.dtype}, an objective needs float32")
        self.planned.append(Net(name, self._bodies[name], given, out))
        return out


def _plan(given: Input, bodies: Bodies, objective: Objective, budget: Budget) -> Architecture:
    if (unrolled := sum(map(count_layers, bodies.values()))) > budget.layers:
        raise InvalidSpec(
            "nets" if "" not in bodies else "layers", f"need {unrolled} layers, the budget is {budget.layers}"
        )
    start = Signal(given.dtype, given.shape)
    if FLOAT_BYTES * start.elements > budget.working_bytes:
        raise InvalidSpec("input.shape", f"holds {start.elements} elements, over the budget")
    ledger = Ledger(budget, timed=isinstance(objective, Denoising))
    planner = _Planner(bodies, ledger)
    output = objective.plan(start, planner)
    ledger.again(Place("objective.kind"), objective.PASSES - 1)
    trained = sum(tensor.elements for tensor in ledger.tensors if tensor.trained)
    cost = Cost(
        trained,
        ledger.parameter_bytes,
        ledger.activation_bytes,
        ledger.multiply_adds,
        ledger.layers,
        ledger.working_bytes,
    )
    return Architecture(
        given, tuple(planner.planned), objective, output, tuple(ledger.tensors), ledger.vocabulary, cost
    )


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


def plain(part: Any) -> Any:
    """A declared object as JSON values."""
    if isinstance(part, tuple):
        return [plain(item) for item in part]
    if not hasattr(part, "__dataclass_fields__"):
        return part
    kind = {"kind": part.KIND} if hasattr(part, "KIND") else {}
    declared = ((one, getattr(part, one.name)) for one in fields(part) if "rule" in one.metadata)
    return kind | {one.name: plain(value) for one, value in declared if value != one.default}
