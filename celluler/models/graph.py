"""A model as a graph of allow-listed operations: JSON in, a checked `Graph` out, nothing allocated, nothing executed.

The document and what it may hold: docs/explanation/graph-models.md, docs/reference/graph-ops.md. A name in an argument
is a value that stands before it (an input or a node); with `@` in front it is a tensor of the weights file. Knows no
torch: `celluler.engines.graph` runs what this module has read.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

from celluler.documents import read_json
from celluler.errors import InvalidSpec
from celluler.models.graph_arguments import (
    Known,
    Value,
    flag,
    need_keys,
    one_of,
    plain_argument,
    read_argument,
    some,
    text,
    type_of,
    whole,
)
from celluler.models.graph_ops import DTYPES, FLIPS, OPERATIONS, WRITES, Operation

FORMAT = 1
MAX_GRAPH_BYTES = 4 << 20
MAX_RANK = 8
MAX_SIDE = 1 << 31
DIMENSIONS = ("batch", "sequence")
ROLES = ("parameter", "frozen", "buffer", "constant")
WHOLE = ("int64", "int32")
"""Types in which the numbers of a text come in, and to which they are cast before a table is looked up."""

Shape = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class GraphBudget:
    """What a graph may ask for; more is refused while the document is read, or measured (`engines.graph.measure`).

    tensor_bytes: of the weights file. activation_bytes: of all values of one pass together. operations: of one pass,
    over one sample; multiplications with an addition, and elements read and written.
    """

    tensor_bytes: int = 2 << 30
    activation_bytes: int = 4 << 30
    operations: int = 10**11
    nodes: int = 20_000
    tensors: int = 20_000


DEFAULT_BUDGET = GraphBudget()


@dataclass(frozen=True, slots=True)
class GraphInput:
    """shape: sizes, or the name of a dimension that may vary (`batch`, `sequence`)."""

    name: str
    dtype: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class GraphTensor:
    """One tensor of the weights file.

    role: `parameter`, trained; `frozen`, a parameter that is not; `buffer`, which the graph may write into;
    `constant`. persistent: False for a buffer that the author's module keeps out of its state. aliases: further names
    of the same tensor in the author's module (tied weights).
    """

    name: str
    role: str
    dtype: str
    shape: tuple[int, ...]
    persistent: bool = True
    aliases: tuple[str, ...] = ()

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def byte_count(self) -> int:
        return self.elements * DTYPES[self.dtype][1]

    @property
    def trained(self) -> bool:
        return self.role == "parameter"


@dataclass(frozen=True, slots=True)
class Node:
    """One operation. arguments: (name, value), in the order of its signature, defaults left out; a value is None, a
    bool, int, float, str, a `Value`, or a tuple of those. train_only: left out in evaluation. flip: in evaluation its
    argument for training is off (`graph_ops.FLIPS`)."""

    name: str
    op: str
    arguments: tuple[tuple[str, Any], ...]
    train_only: bool = False
    flip: bool = False

    @property
    def operation(self) -> Operation:
        return OPERATIONS[self.op]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is computed in evaluation, where `flip` and `train_only` cannot say it: nodes of its own, which write
    nothing."""

    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """A checked graph. Equal documents give equal graphs.

    dimensions: (name, least, most) of what may vary. outputs: one gives a tensor, several a tuple. vocabularies:
    (input, n) for inputs that index an embedding of n rows. evaluation: None where the nodes say it.
    """

    dimensions: tuple[tuple[str, int, int], ...]
    inputs: tuple[GraphInput, ...]
    tensors: tuple[GraphTensor, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]
    vocabularies: tuple[tuple[str, int], ...] = ()
    evaluation: Evaluation | None = None

    def evaluated(self) -> Graph:
        """The graph as it is in evaluation, in whatever mode it is run."""
        nodes = tuple(_flipped(node) for node in self.nodes if not node.train_only)
        branch = self.evaluation or Evaluation(nodes, self.outputs)
        return replace(self, nodes=branch.nodes, outputs=branch.outputs, evaluation=None)

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.byte_count for tensor in self.tensors)

    @property
    def parameter_count(self) -> int:
        return sum(tensor.elements for tensor in self.tensors if tensor.trained)


def _flipped(node: Node) -> Node:
    if not node.flip:
        return node
    argument, off = FLIPS[node.op]
    given = ((name, off if name == argument else value) for name, value in node.arguments)
    defaults = {one.name: one.default for one in node.operation.arguments}
    return replace(node, arguments=tuple(one for one in given if one != (argument, defaults[argument])), flip=False)


def parse_graph(document: bytes | dict[str, Any], *, budget: GraphBudget = DEFAULT_BUDGET) -> Graph:
    """The graph that a JSON document describes. Raises InvalidSpec with the path of what is wrong."""
    root = read_json(document, limit=MAX_GRAPH_BYTES) if isinstance(document, bytes) else document
    return _Reader(budget).graph(root)


def format_graph(graph: Graph) -> bytes:
    """The canonical document of a graph: sorted keys, no spaces, defaults left out."""
    return json.dumps(plain_graph(graph), sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def plain_graph(graph: Graph) -> dict[str, Any]:
    """The same as JSON values."""
    document: dict[str, Any] = {
        "graph": FORMAT,
        "dimensions": {name: [low, high] for name, low, high in graph.dimensions},
        "inputs": [{"name": one.name, "dtype": one.dtype, "shape": list(one.shape)} for one in graph.inputs],
        "tensors": [_plain_tensor(one) for one in graph.tensors],
        **_plain_nodes(graph),
    }
    return document if graph.evaluation is None else document | {"evaluation": _plain_nodes(graph.evaluation)}


def _plain_nodes(part: Graph | Evaluation) -> dict[str, Any]:
    return {
        "nodes": [_plain_node(one) for one in part.nodes],
        "outputs": [plain_argument(one) for one in part.outputs],
    }


def _plain_tensor(one: GraphTensor) -> dict[str, Any]:
    document: dict[str, Any] = {"name": one.name, "role": one.role, "dtype": one.dtype, "shape": list(one.shape)}
    if not one.persistent:
        document["persistent"] = False
    if one.aliases:
        document["aliases"] = list(one.aliases)
    return document


def _plain_node(one: Node) -> dict[str, Any]:
    document: dict[str, Any] = {"name": one.name, "op": one.op}
    document["args"] = {name: plain_argument(value) for name, value in one.arguments}
    if one.train_only:
        document["train_only"] = True
    if one.flip:
        document["flip"] = True
    return document


# --- reading -------------------------------------------------------------------------------------------------------


class _Reader:
    """Reads one document from front to back; what it has seen is all that the rest may name."""

    def __init__(self, budget: GraphBudget) -> None:
        self.budget = budget
        self.known = Known({}, {}, budget.activation_bytes)
        self.names: set[str] = set()
        self.dimensions: dict[str, tuple[int, int]] = {}
        self.vocabularies: dict[str, int] = {}
        self._given: set[str] = set()
        self._numbers: dict[str, str] = {}  # whole numbers as they came in, cast or not → the input
        self._shapes: dict[str, tuple[int, ...]] = {}

    def graph(self, root: Any) -> Graph:
        keys = ("graph", "inputs", "tensors", "nodes", "outputs")
        need_keys(root, "", keys, ("dimensions", "evaluation"))
        whole(root["graph"], "graph", FORMAT, FORMAT)
        ranges = root.get("dimensions", {})
        need_keys(ranges, "dimensions", (), DIMENSIONS)
        for name in DIMENSIONS:
            if name in ranges:
                self._range(name, ranges[name])
        inputs = tuple(
            self._input(one, f"inputs[{place}]") for place, one in enumerate(some(root["inputs"], "inputs", 1, 16))
        )
        used = {side for one in inputs for side in one.shape if isinstance(side, str)}
        for name in self.dimensions:
            if name not in used:
                raise InvalidSpec(f"dimensions.{name}", "is of no input")
        tensors = self._tensors(some(root["tensors"], "tensors", 0, self.budget.tensors))
        nodes, outputs = self._nodes(root, "")
        evaluation = self._evaluation(root["evaluation"], len(nodes)) if "evaluation" in root else None
        ordered = tuple((name, *self.dimensions[name]) for name in DIMENSIONS if name in self.dimensions)
        vocabularies = tuple(sorted(self.vocabularies.items()))
        return Graph(ordered, inputs, tensors, nodes, outputs, vocabularies, evaluation)

    def _nodes(self, root: Any, path: str, before: int = 0) -> tuple[tuple[Node, ...], tuple[Value, ...]]:
        """before: nodes that the document has besides."""
        entries = some(root["nodes"], f"{path}nodes", 0, self.budget.nodes - before)
        nodes = tuple(self._node(one, f"{path}nodes[{place}]") for place, one in enumerate(entries))
        outputs = tuple(
            read_argument(self.known, "Tensor", "", one, f"{path}outputs[{place}]")
            for place, one in enumerate(some(root["outputs"], f"{path}outputs", 1, 64))
        )
        return nodes, outputs

    def _evaluation(self, value: Any, before: int) -> Evaluation:
        need_keys(value, "evaluation", ("nodes", "outputs"))
        self.known.values = dict.fromkeys(self._given, "Tensor")
        self.names = set(self._given)
        self._numbers = {name: name for name in self._given if name in self._numbers}
        nodes, outputs = self._nodes(value, "evaluation.", before)
        for place, node in enumerate(nodes):
            if node.train_only or node.flip:
                raise InvalidSpec(f"evaluation.nodes[{place}]", "is of evaluation alone: it can neither write nor flip")
        return Evaluation(nodes, outputs)

    def _range(self, name: str, value: Any) -> None:
        path = f"dimensions.{name}"
        pair = some(value, path, 2, 2)
        low = whole(pair[0], f"{path}[0]", 1, 1 << 20)
        self.dimensions[name] = (low, whole(pair[1], f"{path}[1]", low, 1 << 20))

    def _input(self, value: Any, path: str) -> GraphInput:
        need_keys(value, path, ("name", "dtype", "shape"))
        name = self._name(value["name"], f"{path}.name")
        dtype = one_of(value["dtype"], f"{path}.dtype", tuple(DTYPES))
        sides: list[int | str] = []
        for place, side in enumerate(some(value["shape"], f"{path}.shape", 0, MAX_RANK)):
            if isinstance(side, str):
                sides.append(one_of(side, f"{path}.shape[{place}]", tuple(self.dimensions)))
            else:
                sides.append(whole(side, f"{path}.shape[{place}]", 1, 1 << 20))
        most = math.prod(self.dimensions[side][1] if isinstance(side, str) else side for side in sides)
        if most * DTYPES[dtype][1] > self.budget.activation_bytes:
            raise InvalidSpec(f"{path}.shape", f"holds up to {most} elements, over the budget")
        self.known.values[name] = "Tensor"
        self._given.add(name)
        if dtype in WHOLE:
            self._numbers[name] = name
        return GraphInput(name, dtype, tuple(sides))

    def _tensors(self, entries: list[Any]) -> tuple[GraphTensor, ...]:
        tensors, total = [], 0
        taken: set[str] = set()
        for place, value in enumerate(entries):
            path = f"tensors[{place}]"
            need_keys(value, path, ("name", "role", "dtype", "shape"), ("persistent", "aliases"))
            shape = tuple(
                whole(side, f"{path}.shape[{axis}]", 0, MAX_SIDE)
                for axis, side in enumerate(some(value["shape"], f"{path}.shape", 0, MAX_RANK))
            )
            aliases = [
                _tensor_name(one, f"{path}.aliases[{at}]")
                for at, one in enumerate(some(value.get("aliases", []), f"{path}.aliases", 0, 64))
            ]
            tensor = GraphTensor(
                _tensor_name(value["name"], f"{path}.name"),
                one_of(value["role"], f"{path}.role", ROLES),
                one_of(value["dtype"], f"{path}.dtype", tuple(DTYPES)),
                shape,
                flag(value.get("persistent", True), f"{path}.persistent"),
                tuple(aliases),
            )
            for name in (tensor.name, *tensor.aliases):
                if name in taken:
                    raise InvalidSpec(path, f"the name {name[:64]} occurs twice")
                taken.add(name)
            if tensor.trained and not tensor.dtype.startswith(("float", "bfloat")):
                raise InvalidSpec(f"{path}.dtype", f"a parameter that is trained cannot be {tensor.dtype}")
            if not tensor.persistent and tensor.role != "buffer":
                raise InvalidSpec(f"{path}.persistent", "is for buffers")
            total += tensor.byte_count
            if total > self.budget.tensor_bytes:
                raise InvalidSpec(path, f"needs {total} bytes of tensors, the budget is {self.budget.tensor_bytes}")
            tensors.append(tensor)
            self.known.tensors[tensor.name] = tensor.role
            self._shapes[tensor.name] = tensor.shape
        return tuple(tensors)

    def _node(self, value: Any, path: str) -> Node:
        need_keys(value, path, ("name", "op", "args"), ("train_only", "flip"))
        op = value["op"]
        if not isinstance(op, str) or op not in OPERATIONS:
            raise InvalidSpec(f"{path}.op", f"{str(op)[:64]!r} is not among the operations that a graph may hold")
        operation = OPERATIONS[op]
        given = value["args"]
        needed = tuple(one.name for one in operation.arguments if one.required)
        need_keys(given, f"{path}.args", needed, tuple(one.name for one in operation.arguments if not one.required))
        arguments = []
        for one in operation.arguments:
            if one.name in given:
                read = read_argument(self.known, one.kind, one.name, given[one.name], f"{path}.args.{one.name}")
                if one.required or plain_argument(read) != one.default or type(read) is not type_of(one.default):
                    arguments.append((one.name, read))
        train_only = flag(value.get("train_only", False), f"{path}.train_only")
        flip = flag(value.get("flip", False), f"{path}.flip")
        if flip and op not in FLIPS:
            raise InvalidSpec(f"{path}.flip", f"is for {', '.join(FLIPS)}")
        if train_only != (op in WRITES):
            raise InvalidSpec(f"{path}.train_only", f"must be true for {', '.join(sorted(WRITES))}, and for no other")
        self._check_writes(op, dict(arguments), flip, path)
        if op == "embedding.default":
            self._note_vocabulary(dict(arguments))
        # Only now: an operation may not name itself.
        name = self._name(value["name"], f"{path}.name")
        self.known.values[name] = operation.gives
        told = dict(arguments)
        if op == "to.dtype" and told["dtype"] in WHOLE and told["self"].name in self._numbers:
            self._numbers[name] = self._numbers[told["self"].name]
        return Node(name, op, tuple(arguments), train_only, flip)

    def _check_writes(self, op: str, arguments: dict[str, Any], flip: bool, path: str) -> None:
        names: tuple[str, ...] = ("self",) if op in WRITES else ()
        if op in ("batch_norm.default", "instance_norm.default"):
            names = ("running_mean", "running_var")
            given = [name for name in names if arguments[name] is not None]
            if flip and given != list(names):
                raise InvalidSpec(f"{path}.flip", "needs running statistics")
            if given and not flip and arguments[FLIPS[op][0]]:
                raise InvalidSpec(f"{path}.flip", "must be true: nothing may be written in evaluation")
        for name in names:
            target = arguments[name]
            if target is not None and not (target.tensor and self.known.tensors[target.name] == "buffer"):
                raise InvalidSpec(f"{path}.args.{name}", "only a buffer of the graph may be written into")

    def _note_vocabulary(self, arguments: dict[str, Any]) -> None:
        weight, indices = arguments["weight"], arguments["indices"]
        source = self._numbers.get(indices.name)
        if weight.tensor and source is not None and self._shapes[weight.name]:
            rows = self._shapes[weight.name][0]
            self.vocabularies[source] = min(rows, self.vocabularies.get(source, rows))

    def _name(self, value: Any, path: str) -> str:
        name = text(value, path)
        if not (name[0].isalpha() and name.isascii() and name.isidentifier()):
            raise InvalidSpec(path, "must be a name of letters, digits and underscores that begins with a letter")
        if name in self.names:
            raise InvalidSpec(path, f"the name {name[:64]} occurs twice")
        self.names.add(name)
        return name


def _tensor_name(value: Any, path: str) -> str:
    name = text(value, path)
    if not all(part.isidentifier() or part.isdigit() for part in name.split(".")) or not name.isascii():
        raise InvalidSpec(path, "must be names or numbers, joined by points")
    return name
