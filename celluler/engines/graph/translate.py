"""A trace of torch.export in operations of the allow-list.

Writes in place become what they mean: a value of its own, by which all later mentions of the old one are replaced;
where a view would still see the old memory, the trace is refused. Writes into buffers stay.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx

from celluler.engines.graph.table import TORCH_DTYPES
from celluler.errors import LocalError
from celluler.models.graph import GraphInput, GraphTensor, Node
from celluler.models.graph_arguments import Value
from celluler.models.graph_ops import FLIPS, OPERATIONS, RANDOM, WRITES

_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}

_INTEGERS = {
    operator.add: "int.add",
    operator.sub: "int.sub",
    operator.mul: "int.mul",
    operator.floordiv: "int.floordiv",
    operator.mod: "int.mod",
}
_SAME = frozenset(("lift_fresh_copy.default", "lift_fresh.default", "detach_.default", "to.device"))
"""They give what they get, as far as a graph is concerned."""
_RENAMED = {"clone.default": "contiguous.default"}
_WRITTEN_OTHERWISE = {
    "__and__.Tensor": "bitwise_and.Tensor",
    "__or__.Tensor": "bitwise_or.Tensor",
    "min.other": "minimum.default",
    "max.other": "maximum.default",
}
_VIEWS = frozenset(
    (
        *(name for name, one in OPERATIONS.items() if one.group == "Shapes"),
        "getitem.default",
        "dropout.default",
        "feature_dropout.default",
        "alpha_dropout.default",
    )
)
"""What they give may lie in the memory of what they get."""


class NotExportable(LocalError):
    """A module cannot be written as a graph. module: its path (`layers.0.attention`); operation: what is in the way."""

    def __init__(self, module: str, operation: str, problem: str) -> None:
        where = f"{module}: " if module else ""
        super().__init__(
            f"{where}{operation}: {problem}",
            hint="write this part with operations of docs/reference/graph-ops.md, or as a model spec",
        )
        self.module = module
        self.operation = operation


class Translation:
    """One trace, translated from front to back."""

    def __init__(
        self,
        program: torch.export.ExportedProgram,
        tensors: tuple[GraphTensor, ...],
        inputs: tuple[GraphInput, ...],
    ) -> None:
        self._program = program
        self._roles = {one.name: one.role for one in tensors}
        self._canonical = {name: one.name for one in tensors for name in (one.name, *one.aliases)}
        self._inputs = inputs
        self._values: dict[fx.Node, Any] = {}
        # Nodes of one identity are one tensor; those of one memory may see each other's writes.
        self._identity: dict[fx.Node, fx.Node] = {}
        self._memory: dict[fx.Node, fx.Node] = {}
        self._used: set[str] = set()
        self._nodes: list[Node] = []

    def translate(self) -> tuple[tuple[Node, ...], tuple[Value, ...]]:
        self._take_placeholders()
        needed = self._needed()
        for node in self._program.graph.nodes:
            if node.op == "call_function" and node in needed:
                self._call(node)
            elif node.op == "get_attr":
                raise NotExportable(_path(node), str(node.target), "a part called as a whole, as of a condition")
        return tuple(self._nodes), self._outputs()

    def uses(self, name: str) -> bool:
        """Whether a node mentions this tensor."""
        return name in self._used

    def _take_placeholders(self) -> None:
        kinds = torch.export.graph_signature.InputKind
        placeholders = [node for node in self._program.graph.nodes if node.op == "placeholder"]
        given = iter(self._inputs)
        for node, spec in zip(placeholders, self._program.graph_signature.input_specs, strict=True):
            self._identity[node] = self._memory[node] = node
            if spec.kind is kinds.USER_INPUT:
                self._values[node] = Value(next(given).name)
            elif spec.kind in (kinds.PARAMETER, kinds.BUFFER, kinds.CONSTANT_TENSOR):
                name = (spec.target or "").removeprefix("module.")
                names = (name, f"constants.{name}", f"constants.evaluation.{name}")
                known = next((self._canonical[one] for one in names if one in self._canonical), None)
                if known is None:
                    raise NotExportable("", node.name, "a constant that is no tensor of the module")
                self._values[node] = Value(known, tensor=True)
            else:
                raise NotExportable("", node.name, f"a graph has no {spec.kind.name.lower()}")

    def _needed(self) -> set[fx.Node]:
        """What the outputs depend on, what writes, and what draws random numbers (the next draw depends on it)."""
        needed: set[fx.Node] = set()
        for node in reversed(list(self._program.graph.nodes)):
            name = _name(node)
            lasting = node.op == "output" or name in RANDOM or _writes(name) or "batch_norm" in name
            if lasting or any(user in needed for user in node.users):
                needed.add(node)
        return needed

    def _call(self, node: fx.Node) -> None:
        name = _name(node)
        if node.target is operator.getitem:
            source, index = node.args
            self._emit(node, "getitem.default", {"self": self._values[source], "index": index})  # type: ignore[index]
            if (
                isinstance(source, fx.Node) and _name(source) in _VIEWS
            ):  # pieces; other results have memory of their own
                self._share(node, source)
        elif node.target in _INTEGERS:
            a, b = (self._argument(node, "int", one) for one in node.args)
            self._emit(node, _INTEGERS[node.target], {"a": a, "b": b})
        elif name in _SAME or (name == "to.dtype_layout" and "dtype" not in node.kwargs):
            self._values[node] = self._values[node.args[0]]  # type: ignore[index]
            self._identity[node] = self._identity[node.args[0]]  # type: ignore[index]
            self._memory[node] = self._memory[node.args[0]]  # type: ignore[index]
        elif name in ("to.dtype_layout", "_to_copy.default"):
            dtype = self._argument(node, "dtype", node.kwargs["dtype"])
            self._emit(node, "to.dtype", {"self": self._values[node.args[0]], "dtype": dtype})  # type: ignore[index]
        elif _writes(name):
            self._write(node, name)
        elif name in OPERATIONS:
            if node.kwargs.get("memory_format") is torch.contiguous_format:
                name = _RENAMED.get(name, name)
            self._emit(node, name, self._arguments(node, name))
            if name in _VIEWS:
                self._share(node, node.args[0] if node.args else None)
        else:
            raise NotExportable(_path(node), name or str(node.target), "is not among the operations a graph may hold")

    def _share(self, node: fx.Node, source: Any) -> None:
        if isinstance(source, fx.Node):
            self._memory[node] = self._memory[source]

    def _write(self, node: fx.Node, name: str) -> None:
        target = node.args[0]
        assert isinstance(target, fx.Node)
        value = self._values[target]
        if value.tensor:
            if self._roles[value.name] != "buffer" or name not in WRITES:
                raise NotExportable(_path(node), name, f"writes into {value.name}")
            self._emit(node, name, self._arguments(node, name), train_only=True)
            self._values[node] = value
            return
        memory = self._memory[target]
        if memory.op == "placeholder":
            raise NotExportable(_path(node), name, "writes into what it is given; call it without inplace")
        order = {one: place for place, one in enumerate(self._program.graph.nodes)}
        for other, its in self._memory.items():
            same = self._identity[other] is self._identity[target]
            if its is memory and not same and any(order[user] > order[node] for user in other.users):
                raise NotExportable(_path(node), name, "writes in place what another value is a view of")
        functional = name.replace("_.", ".", 1)
        if functional not in OPERATIONS:
            raise NotExportable(_path(node), name, "writes in place, and has no counterpart that does not")
        self._emit(node, functional, self._arguments(node, functional))
        self._identity[node] = self._identity[target]
        self._memory[node] = memory
        for other, its in self._identity.items():
            if its is self._identity[target]:
                self._values[other] = self._values[node]

    def _emit(self, node: fx.Node, op: str, arguments: dict[str, Any], *, train_only: bool = False) -> None:
        name = f"v{len(self._nodes)}"
        for value in arguments.values():
            for one in value if isinstance(value, tuple) else (value,):
                if isinstance(one, Value) and one.tensor:
                    self._used.add(one.name)
        # In the order of the signature, as a parsed document has them.
        ordered = tuple((one.name, arguments[one.name]) for one in OPERATIONS[op].arguments if one.name in arguments)
        self._nodes.append(Node(name, op, ordered, train_only, flip=_flips(op, arguments)))
        self._values[node] = Value(name)
        self._identity[node] = self._memory[node] = node

    def _arguments(self, node: fx.Node, op: str) -> dict[str, Any]:
        kinds = {one.name: one.kind for one in OPERATIONS[op].arguments}
        assert isinstance(node.target, torch._ops.OpOverload)
        # What writes in place may call its first argument otherwise than what does not.
        first = OPERATIONS[op].arguments[0].name
        names = [first, *(one.name for one in node.target._schema.arguments[1:])]
        given = dict(zip(names, node.args, strict=False)) | node.kwargs
        return {name: self._argument(node, kinds[name], value, name) for name, value in given.items() if name in kinds}

    def _argument(self, node: fx.Node, kind: str, value: Any, name: str = "") -> Any:
        match value:
            case fx.Node():
                return self._values[value]
            case None:
                return None
            case list() | tuple():
                inner = kind.removesuffix("?").removesuffix("[]")
                return tuple(self._argument(node, inner, one, name) for one in value)
            case torch.dtype():
                if value not in _NAMES:
                    raise NotExportable(_path(node), _name(node), f"a graph has no {value}")
                return _NAMES[value]
            case bool() | str():
                return value
            case int():
                if kind.startswith("int[]"):
                    return (value,)
                return float(value) if kind.startswith("float") else value
            case float() if not math.isnan(value):
                return value
        raise NotExportable(_path(node), _name(node), f"{name or 'an argument'} is {str(value)[:64]}")

    def _outputs(self) -> tuple[Value, ...]:
        (last,) = (node for node in self._program.graph.nodes if node.op == "output")
        outputs = []
        for one in last.args[0]:
            if not isinstance(one, fx.Node) or not isinstance(one.meta.get("val"), torch.Tensor):
                raise NotExportable("", "output", "a graph gives a tensor, or a tuple of tensors")
            outputs.append(self._values[one])
        return tuple(outputs)


def _flips(op: str, arguments: dict[str, Any]) -> bool:
    if op not in FLIPS:
        return False
    if op in ("batch_norm.default", "instance_norm.default") and arguments.get("running_mean") is None:
        return False
    argument, off = FLIPS[op]
    return bool(arguments.get(argument, off) != off)


def _name(node: fx.Node) -> str:
    """`relu.default`, of an operation of ATen."""
    name = str(node.target).removeprefix("aten.") if isinstance(node.target, torch._ops.OpOverload) else ""
    return _WRITTEN_OTHERWISE.get(name, name)


def _writes(name: str) -> bool:
    return name.partition(".")[0].endswith("_") and name not in _SAME


def _path(node: fx.Node) -> str:
    """Of the module in which an operation stands, as the author's code names it."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = str(stack[-1][0]) if stack else ""
    return path.removeprefix("module").removeprefix(".")
