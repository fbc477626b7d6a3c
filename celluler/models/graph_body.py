"""A graph as a model's body: with an objective, and with what it gives, which only a runner can measure.

    {"body": 1, "graph": {…}, "objective": {"kind": "classification", "classes": 10}, "output": [10],
     "activation_bytes": 4096}

The graph takes one input, float32 or int64, of `batch` samples. `output`: the shape of its first output for one
sample; `activation_bytes`: of all values of one sample, at the longest sequence. A worker measures both on the meta
device before it allocates anything, and refuses a document that says otherwise.

`dtype`, where it is there: in what the file holds the matrices among the float32 tensors that training moves; they are
widened when the model is loaded. Knows no torch.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, get_args

from celluler.documents import read_json
from celluler.errors import InvalidSpec
from celluler.models.graph import Graph, GraphInput, Node, parse_graph, plain_graph
from celluler.models.graph_arguments import Value, need_keys, one_of, some, whole
from celluler.models.graph_ops import RANDOM, WRITES
from celluler.models.layers import Shape, Signal, TensorSpec
from celluler.models.narrow import DTYPES, SCALE, is_narrow, stored_as
from celluler.models.objectives import Planned, Straight
from celluler.models.spec import Input, plain, read_objective
from celluler.models.stored import Stored

FORMAT = 1
MAX_GRAPH_BODY_BYTES = 1 << 18
MAX_ACTIVATION_BYTES = 256 << 20
MAX_VOCABULARY = 1 << 20
_NORMS = ("batch_norm.default", "instance_norm.default")
_LAYERS = (
    "linear.default",
    *(f"conv{rank}d.default" for rank in (1, 2, 3)),
    "conv_transpose1d.default",
    "conv_transpose2d.input",
    "conv_transpose3d.input",
)


@dataclass(frozen=True, slots=True)
class GraphBody:
    """See `celluler.models.body.Body`. sides: of the first output for one sample, sizes or `sequence`."""

    kind: ClassVar[str] = "graph"

    graph: Graph
    objective: Straight
    sides: tuple[int | str, ...]
    activation_bytes: int
    planned: tuple[TensorSpec, ...]
    """What training moves: float32 parameters, and the float32 buffers that the graph writes into."""
    storage: str = "float32"
    """Of those among them that are matrices, see `celluler.models.narrow`."""

    @property
    def working_bytes(self) -> int:
        """All values: which of them are held at once nobody has counted."""
        return self.activation_bytes

    @property
    def input(self) -> Input:
        given = self.graph.inputs[0]
        return Input(given.dtype, self._sizes(given.shape[1:], self._longest))

    @property
    def output(self) -> Shape:
        return self._sizes(self.sides, self._longest)

    @property
    def vocabulary(self) -> int:
        return dict(self.graph.vocabularies).get(self.graph.inputs[0].name, MAX_VOCABULARY)

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        if self.storage == "float32":
            return self.planned
        return tuple(tensor for tensor in self.planned if not is_narrow(tensor.shape))

    @property
    def narrow(self) -> tuple[TensorSpec, ...]:
        return () if self.storage == "float32" else tuple(one for one in self.planned if is_narrow(one.shape))

    def stored_as(self, dtype: str) -> GraphBody:
        return replace(self, storage=dtype)

    @property
    def stored(self) -> tuple[Stored, ...]:
        narrow = {tensor.name for tensor in self.narrow}
        whole = (Stored(one.name, one.dtype, one.shape) for one in self.graph.tensors if one.name not in narrow)
        return (*whole, *(part for one in self.narrow for part in stored_as(self.storage, one.name, one.shape)))

    @property
    def dtype(self) -> str:
        if self.storage != "float32":
            return self.storage
        floats = {one.dtype for one in self.graph.tensors if "float" in one.dtype} or {"float32"}
        return floats.pop() if len(floats) == 1 else "mixed"

    @property
    def dimension(self) -> int:
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def parameter_count(self) -> int:
        return self.graph.parameter_count

    @property
    def parameter_bytes(self) -> int:
        if self.storage == "float32":
            return self.graph.tensor_bytes
        return sum(one.byte_count for one in self.stored)

    @property
    def batch(self) -> tuple[int, int]:
        return self._ranges["batch"]

    @property
    def sequence(self) -> tuple[int, int] | None:
        """Least and most, where the length of a sample may vary."""
        return self._ranges.get("sequence")

    @property
    def whole_batch(self) -> bool:
        """What writes into a buffer counts its batches; norms over a batch are among it, or draw from the batch."""
        return any(node.op in _NORMS or node.op in WRITES for node in self.graph.nodes)

    @property
    def draws_noise(self) -> bool:
        return any(node.op in RANDOM for node in self.graph.nodes)

    def sample_shape(self, sequence: int) -> Shape:
        """Of a sample that long, where the length may vary."""
        return self._sizes(self.graph.inputs[0].shape[1:], sequence)

    def answer_shape(self, sample: Shape) -> Shape:
        wanted = self.graph.inputs[0].shape[1:]
        sequence = self._longest
        fits = len(sample) == len(wanted)
        for side, size in zip(wanted, sample, strict=False):
            if isinstance(side, str):
                low, high = self._ranges[side]
                fits, sequence = fits and low <= size <= high, size
            else:
                fits = fits and size == side
        if not fits:
            raise InvalidSpec("input.shape", f"is (n, {_text(sample)}), must be (n, {self._text(wanted)})")
        return self._sizes(self.sides, sequence)

    @property
    def _ranges(self) -> dict[str, tuple[int, int]]:
        return {name: (low, high) for name, low, high in self.graph.dimensions}

    @property
    def _longest(self) -> int:
        return self._ranges.get("sequence", (1, 1))[1]

    def _sizes(self, sides: tuple[int | str, ...], sequence: int) -> Shape:
        return tuple(sequence if isinstance(side, str) else side for side in sides)

    def _text(self, sides: tuple[int | str, ...]) -> str:
        ranges = self._ranges
        return _text(tuple("{}…{}".format(*ranges[one]) if isinstance(one, str) else one for one in sides))


def parse_graph_body(document: bytes | dict[str, Any]) -> GraphBody:
    """Raises InvalidSpec with the path of what is wrong."""
    root = read_json(document, limit=MAX_GRAPH_BODY_BYTES) if isinstance(document, bytes) else document
    need_keys(root, "", ("body", "graph", "objective", "output", "activation_bytes"), ("dtype",))
    whole(root["body"], "body", FORMAT, FORMAT)
    try:
        graph = parse_graph(root["graph"])
    except InvalidSpec as error:
        raise InvalidSpec(f"graph.{error.path}" if error.path else "graph", error.problem) from error
    given = _only_input(graph)
    allowed = ("sequence",) if any(name == "sequence" for name, _, _ in graph.dimensions) else ()
    sides = tuple(
        one_of(side, f"output[{place}]", allowed)
        if isinstance(side, str)
        else whole(side, f"output[{place}]", 1, 1 << 20)
        for place, side in enumerate(some(root["output"], "output", 1, 4))
    )
    activation_bytes = whole(root["activation_bytes"], "activation_bytes", 1, MAX_ACTIVATION_BYTES)
    objective = read_objective(root["objective"], "objective")
    if not isinstance(objective, Straight):
        kinds = ", ".join(one.KIND for one in get_args(Straight))
        raise InvalidSpec("objective.kind", f"of a graph must be one of {kinds}")
    storage = one_of(root.get("dtype", "float32"), "dtype", DTYPES)
    body = GraphBody(graph, objective, sides, activation_bytes, tuple(_moved(graph)), storage)
    if len({one.name for one in body.stored}) != len(body.stored):
        raise InvalidSpec("graph.tensors", f"have a name that ends in {SCALE}, as scales do")
    out = Signal("float32", body.output)
    objective.check(Planned(Signal(given.dtype, body.input.shape), out, body.vocabulary, ()))
    if math.prod(body.output) * 4 > MAX_ACTIVATION_BYTES:
        raise InvalidSpec("output", "is over the budget")
    return body


def format_graph_body(body: GraphBody) -> bytes:
    """The canonical document: sorted keys, no spaces, defaults left out."""
    document = {
        "body": FORMAT,
        "graph": plain_graph(body.graph),
        "objective": plain(body.objective),
        "output": list(body.sides),
        "activation_bytes": body.activation_bytes,
        **({} if body.storage == "float32" else {"dtype": body.storage}),
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _only_input(graph: Graph) -> GraphInput:
    if len(graph.inputs) != 1:
        raise InvalidSpec("graph.inputs", f"are {len(graph.inputs)}; a model takes one")
    given = graph.inputs[0]
    if given.dtype not in ("float32", "int64"):
        raise InvalidSpec("graph.inputs[0].dtype", f"is {given.dtype}, a model takes float32 or int64")
    if not 2 <= len(given.shape) <= 5 or given.shape[0] != "batch" or "batch" in given.shape[1:]:
        raise InvalidSpec("graph.inputs[0].shape", "must be batch, then 1…4 sides of a sample")
    return given


def _moved(graph: Graph) -> Iterator[TensorSpec]:
    """What training moves, in the order of the flat vector. Where a graph writes an average over batches, training
    averages too; of a variance it knows that it is positive."""
    written = dict(_written(graph.nodes))
    for tensor in graph.tensors:
        if tensor.dtype == "float32" and (tensor.trained or tensor.name in written):
            yield TensorSpec(tensor.name, tensor.shape, written.get(tensor.name, "weight"))


def _written(nodes: tuple[Node, ...]) -> Iterator[tuple[str, str]]:
    """(buffer, role) of those that the graph writes into."""
    for node in nodes:
        arguments = dict(node.arguments)
        if node.op in WRITES and isinstance(target := arguments["self"], Value):
            yield target.name, "mean"
    for node in nodes:
        if node.op in _NORMS:
            for name, role in (("running_mean", "mean"), ("running_var", "variance")):
                if isinstance(target := dict(node.arguments).get(name), Value):
                    yield target.name, role


def check_trainable(body: GraphBody) -> None:
    """What travels between members is float32. Raises InvalidSpec for parameters of another dtype, and for none."""
    for place, tensor in enumerate(body.graph.tensors):
        if tensor.trained and tensor.dtype != "float32":
            raise InvalidSpec(f"graph.tensors[{place}].dtype", f"is {tensor.dtype}; members train float32")
    if not body.parameter_count:
        raise InvalidSpec("graph.tensors", "hold nothing to train")


def idle_biases(body: GraphBody) -> frozenset[str]:
    """Of layers right before a norm over the batch, which takes them out again: see `celluler.engines.build`."""
    used = Counter(one for node in body.graph.nodes for one in _values(node))
    used.update(body.graph.outputs)
    layers = {node.name: node for node in body.graph.nodes if "bias" in dict(node.arguments) and node.op in _LAYERS}
    normed = (dict(node.arguments).get("input") for node in body.graph.nodes if node.op in _NORMS)
    before = (layers[one.name] for one in normed if isinstance(one, Value) and one.name in layers and used[one] == 1)
    biases = (dict(node.arguments)["bias"] for node in before)
    return frozenset(one.name for one in biases if isinstance(one, Value) and one.tensor and used[one] == 1)


def _values(node: Node) -> Iterator[Value]:
    for _, value in node.arguments:
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, Value):
                yield one


def _text(sides: tuple[int | str, ...]) -> str:
    return ", ".join(map(str, sides))
