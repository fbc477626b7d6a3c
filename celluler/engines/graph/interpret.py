"""A checked graph as a torch module: an interpreter over a frozen table.

Nothing is allocated when a module is built: its tensors are on the meta device until `put` gives them
bytes. Names of the document are never names of attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from celluler.engines.graph.table import FUNCTIONS, TORCH_DTYPES
from celluler.errors import InvalidSpec, LocalError
from celluler.models.graph import Graph, Node
from celluler.models.graph_arguments import Value
from celluler.models.graph_ops import FACTORIES

Observer = Callable[[int, Iterable[Any], Any], None]


class GraphModule(nn.Module):
    """The graph of a document. forward takes its inputs in their order, and gives a tensor, or a tuple of several."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self._places = {tensor.name: f"t{place}" for place, tensor in enumerate(graph.tensors)}
        for tensor in graph.tensors:
            meta = torch.empty(tensor.shape, dtype=TORCH_DTYPES[tensor.dtype], device="meta")
            self.put(tensor.name, meta)
        evaluated = graph.evaluated()
        self._training = _plan(graph), graph.outputs
        self._evaluation = _plan(evaluated), evaluated.outputs

    def put(self, name: str, value: Tensor) -> None:
        """Let a tensor of the graph be `value`; its shape and dtype must fit."""
        place = self._places[name]
        tensor = self.graph.tensors[int(place[1:])]
        if tuple(value.shape) != tensor.shape or value.dtype != TORCH_DTYPES[tensor.dtype]:
            raise LocalError(f"{name} is {tensor.dtype} {tensor.shape}, not {value.dtype} {tuple(value.shape)}")
        if tensor.role in ("parameter", "frozen"):
            self.register_parameter(place, nn.Parameter(value, requires_grad=tensor.trained))
        else:
            self.register_buffer(place, value)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their names in the document."""
        return {name: self._parameters.get(place, self._buffers.get(place)) for name, place in self._places.items()}  # type: ignore[misc]

    def forward(self, *given: Tensor) -> Any:
        self._check(given)
        return self.run(given)

    def run(self, given: Iterable[Tensor], observe: Observer | None = None) -> Any:
        """forward on inputs that the caller has checked. observe: is shown what each node is given and
        gives."""
        names = (one.name for one in self.graph.inputs)
        values: dict[str, Any] = dict(zip(names, given, strict=True))
        device = next(iter(values.values())).device
        tensors = self.tensors()
        plan, wanted = self._training if self.training else self._evaluation
        for step in plan:
            positional, named = step.arguments(values, tensors, device)
            out = step.run(positional, named)
            if observe is not None:
                observe(step.place, (*positional, *named.values()), out)
            values[step.name] = out
            for name in step.done:
                del values[name]
        outputs = tuple(tensors[one.name] if one.tensor else values[one.name] for one in wanted)
        return outputs[0] if len(outputs) == 1 else outputs

    def _check(self, given: tuple[Tensor, ...]) -> None:
        if len(given) != len(self.graph.inputs):
            raise InvalidSpec("inputs", f"must be {len(self.graph.inputs)}, not {len(given)}")
        ranges = {name: (low, high) for name, low, high in self.graph.dimensions}
        sizes: dict[str, int] = {}
        vocabularies = dict(self.graph.vocabularies)
        for one, value in zip(self.graph.inputs, given, strict=True):
            path = f"inputs.{one.name}"
            if value.dtype != TORCH_DTYPES[one.dtype]:
                raise InvalidSpec(path, f"must be {one.dtype}, not {value.dtype}")
            if value.dim() != len(one.shape):
                raise InvalidSpec(path, f"must have shape {one.shape}, not {tuple(value.shape)}")
            for side, size in zip(one.shape, value.shape, strict=True):
                if isinstance(side, str):
                    low, high = ranges[side]
                    if not low <= size <= high or sizes.setdefault(side, size) != size:
                        raise InvalidSpec(path, f"{side} is {size}, must be {low}…{high} and the same in all inputs")
                elif size != side:
                    raise InvalidSpec(path, f"must have shape {one.shape}, not {tuple(value.shape)}")
            if one.name in vocabularies and value.numel() and not value.is_meta:
                low, high = (int(edge) for edge in torch.aminmax(value))
                if low < 0 or high >= vocabularies[one.name]:
                    raise InvalidSpec(path, f"holds numbers outside 0…{vocabularies[one.name] - 1}")


# --- a plan: which function, with which arguments, in which order --------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Step:
    """place: of the node in the document. done: values that nothing needs after this step."""

    place: int
    name: str
    function: Callable[..., Any]
    positional: tuple[Any, ...]
    named: tuple[tuple[str, Any], ...]
    factory: bool
    done: tuple[str, ...]

    def arguments(
        self, values: dict[str, Any], tensors: dict[str, Tensor], device: torch.device
    ) -> tuple[list[Any], dict[str, Any]]:
        named = {name: _resolve(one, values, tensors) for name, one in self.named}
        if self.factory:
            named["device"] = device
        return [_resolve(one, values, tensors) for one in self.positional], named

    def run(self, positional: list[Any], named: dict[str, Any]) -> Any:
        try:
            return self.function(*positional, **named)
        except (
            LocalError,
            RuntimeError,
            TypeError,
            ValueError,
            IndexError,
            NotImplementedError,
            ArithmeticError,
            AssertionError,
        ) as error:
            raise InvalidSpec(f"nodes[{self.place}]", f"{self.name} cannot be computed: {str(error)[:256]}") from error


def _resolve(value: Any, values: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Value):
        return tensors[value.name] if value.tensor else values[value.name]
    if isinstance(value, tuple):
        return [_resolve(one, values, tensors) for one in value]
    return value


def _plan(graph: Graph) -> tuple[_Step, ...]:
    nodes = list(enumerate(graph.nodes))
    kept = {one.name for one in graph.outputs if not one.tensor}
    steps = []
    for place, node in reversed(nodes):
        used = {one.name for _, value in node.arguments for one in _references(value)} | {node.name}
        done = tuple(sorted(used - kept))
        kept |= used
        steps.append(_step(place, node, done))
    return tuple(reversed(steps))


def _references(value: Any) -> Iterable[Value]:
    if isinstance(value, Value):
        if not value.tensor:
            yield value
    elif isinstance(value, tuple):
        for one in value:
            yield from _references(one)


def _step(place: int, node: Node, done: tuple[str, ...]) -> _Step:
    function = FUNCTIONS[node.op]
    given = dict(node.arguments)
    for name, value in given.items():
        if name == "dtype" and value is not None:
            given[name] = TORCH_DTYPES[value]
    order = _positional_order(node, function)
    positional = []
    for name in order:
        if name not in given:
            break
        positional.append(given.pop(name))
    return _Step(place, node.name, function, tuple(positional), tuple(given.items()), node.op in FACTORIES, done)


def _positional_order(node: Node, function: Callable[..., Any]) -> list[str]:
    """Arguments that can be given without their names, as the function has them."""
    if not isinstance(function, torch._ops.OpOverload):
        return [one.name for one in node.operation.arguments]
    names = []
    for one, ours in zip(function._schema.arguments, node.operation.arguments, strict=False):
        if one.kwarg_only or one.name != ours.name:
            break
        names.append(one.name)
    return names
