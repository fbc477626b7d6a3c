"""From a torch module to a graph: on the author's own machine, with the author's own code.

`torch.export` traces the module while it trains; every operation of the trace is then translated into one of the
allow-list, or refused with the module that it is in. What comes out is compared with the module before it is given to
anybody. Never runs where strangers' models are run.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from celluler.engines.graph.inline import inline_parts
from celluler.engines.graph.interpret import GraphModule
from celluler.engines.graph.table import TORCH_DTYPES
from celluler.engines.graph.translate import NotExportable, Translation
from celluler.errors import InvalidSpec, LocalError
from celluler.models.graph import (
    DEFAULT_BUDGET,
    Evaluation,
    Graph,
    GraphBudget,
    GraphInput,
    GraphTensor,
    Node,
    format_graph,
    parse_graph,
)
from celluler.models.graph_arguments import Value

__all__ = ["Exported", "NotExportable", "export_graph"]

AXES = {"batch": 0, "sequence": 1}
_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Exported:
    """tensors: by their names in the graph, on the CPU."""

    graph: Graph
    tensors: dict[str, Tensor]

    @property
    def document(self) -> bytes:
        return format_graph(self.graph)

    def module(self) -> GraphModule:
        """The graph with a copy of its tensors."""
        module = GraphModule(self.graph)
        for name, value in self.tensors.items():
            module.put(name, value.clone())
        return module


def export_graph(
    module: nn.Module,
    examples: Sequence[Tensor],
    *,
    dynamic: Mapping[str, tuple[int, int]] | None = None,
    budget: GraphBudget = DEFAULT_BUDGET,
    compare: bool = True,
) -> Exported:
    """The graph of a module, and its tensors.

    examples: inputs as forward takes them, with at least 2 along whatever may vary. dynamic: (least, most) of `batch`,
    the first axis of every input, and of `sequence`, the second axis of those inputs that have it as long as the first
    input; None: a batch of 1…1024. compare: run both, training and evaluating, and refuse what is not bitwise equal.
    Raises NotExportable for what a graph cannot hold, InvalidSpec for what is over the budget.
    """
    module = copy.deepcopy(module).to("cpu").train()
    given = tuple(one.detach().to("cpu").contiguous() for one in examples)
    ranges = dict(dynamic) if dynamic is not None else {"batch": (1, 1024)}
    sides = [_sides(one, given[0], ranges) for one in given]
    traced = _translated(module, given, sides, ranges)
    exported = _exported(traced, None, ranges, budget)
    if compare:
        _compare(module, exported, given, training=True)
        if not _equal(module, exported, given, training=False):
            branch = _translated(module.eval(), given, sides, ranges)
            exported = _exported(traced, branch, ranges, budget)
        smallest = tuple(
            one[tuple(slice(ranges[named[axis]][0]) if axis in named else slice(None) for axis in range(one.dim()))]
            for one, named in zip(given, sides, strict=True)
        )
        _compare(module, exported, given, training=False)
        _compare(module, exported, smallest, training=False)
    return exported


@dataclass(frozen=True, slots=True)
class _Traced:
    """A trace in one mode. used: constants that its nodes mention. held: tensors by their names."""

    inputs: tuple[GraphInput, ...]
    tensors: tuple[GraphTensor, ...]
    held: dict[str, Tensor]
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]
    used: frozenset[str]


def _translated(
    module: nn.Module, given: tuple[Tensor, ...], sides: list[dict[int, str]], ranges: Mapping[str, tuple[int, int]]
) -> _Traced:
    program = _trace(module, given, sides, ranges)
    inline_parts(program.graph_module)
    tensors, held = _tensors(module, program, "constants" if module.training else "constants.evaluation")
    inputs = _inputs(program, given, sides)
    translation = Translation(program, tensors, inputs)
    nodes, outputs = translation.translate()
    used = frozenset(one.name for one in tensors if one.role == "constant" and translation.uses(one.name))
    return _Traced(inputs, tensors, held, nodes, outputs, used)


def _exported(
    traced: _Traced, branch: _Traced | None, ranges: Mapping[str, tuple[int, int]], budget: GraphBudget
) -> Exported:
    """branch: of evaluation, where it is a trace of its own."""
    varying = tuple((name, *ranges[name]) for name in AXES if any(name in one.shape for one in traced.inputs))
    tensors = [one for one in traced.tensors if one.role != "constant" or one.name in traced.used]
    evaluation, held = None, dict(traced.held)
    if branch is not None:
        tensors += [one for one in branch.tensors if one.name in branch.used]
        held |= {name: branch.held[name] for name in branch.used}
        evaluation = Evaluation(branch.nodes, branch.outputs)
    graph = Graph(varying, traced.inputs, tuple(tensors), traced.nodes, traced.outputs, evaluation=evaluation)
    graph = parse_graph(format_graph(graph), budget=budget)
    return Exported(graph, {one.name: held[one.name].detach().clone().contiguous() for one in graph.tensors})


def _sides(one: Tensor, first: Tensor, ranges: Mapping[str, tuple[int, int]]) -> dict[int, str]:
    for name in ranges:
        if name not in AXES:
            raise LocalError(f"{name!r} is no dimension that may vary; there are {', '.join(AXES)}")
        low, high = ranges[name]
        if not 1 <= low < high or high < 3:
            hint = "from 1 at least, to 3 at least; or leave it out"
            raise LocalError(f"{name} in {low}…{high} is no range", hint=hint)
    varying = {
        axis: name
        for name, axis in AXES.items()
        if name in ranges and one.dim() > axis and first.dim() > axis and one.shape[axis] == first.shape[axis]
    }
    for axis, name in varying.items():
        low, high = ranges[name]
        if not max(2, low) <= one.shape[axis] <= high:
            problem = f"an example has {one.shape[axis]} along axis {axis}, {name}, which may vary in {low}…{high}"
            raise LocalError(problem, hint="give an example within, and of 2 at least: a trace takes 1 for fixed")
    return varying


def _trace(
    module: nn.Module,
    given: tuple[Tensor, ...],
    sides: list[dict[int, str]],
    ranges: Mapping[str, tuple[int, int]],
) -> torch.export.ExportedProgram:
    # A trace takes sides of one for fixed; that it holds for them all the same is compared below.
    dimensions = {name: torch.export.Dim(name, min=max(2, low), max=high) for name, (low, high) in ranges.items()}
    shapes = tuple({axis: dimensions[name] for axis, name in one.items()} for one in sides)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            # As *args, so that the shapes are told one by one, whatever forward calls its arguments.
            return torch.export.export(_Flat(module), given, dynamic_shapes=(shapes,), strict=False)
    except Exception as error:  # torch.export raises what it likes; the author reads the text
        raise NotExportable("", "torch.export", str(error)[:2000]) from error


class _Flat(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *given: Tensor) -> object:
        return self.module(*given)


_PREFIX = "module."


def _tensors(
    module: nn.Module, program: torch.export.ExportedProgram, constants: str
) -> tuple[tuple[GraphTensor, ...], dict[str, Tensor]]:
    """What the module holds, one entry a tensor however many names it has, and the constants of the trace, below that
    name."""
    transient = {
        (spec.target or "").removeprefix(_PREFIX)
        for spec in program.graph_signature.input_specs
        if spec.persistent is False
    }
    first: dict[int, str] = {}
    found: dict[str, GraphTensor] = {}
    named: dict[str, Tensor] = {}
    for name, value, role in _held(module, program, constants):
        if id(value) in first:
            tied = found[first[id(value)]]
            found[tied.name] = replace(tied, aliases=(*tied.aliases, name))
            continue
        if value.dtype not in _NAMES:
            raise NotExportable(name, str(value.dtype), "a graph has no tensors of this dtype")
        first[id(value)] = name
        named[name] = value
        found[name] = GraphTensor(
            name, role, _NAMES[value.dtype], tuple(value.shape), persistent=role != "buffer" or name not in transient
        )
    places: dict[int, str] = {}
    for name, value in named.items():
        if value.numel() and places.setdefault(value.untyped_storage().data_ptr(), name) != name:
            other = places[value.untyped_storage().data_ptr()]
            raise NotExportable(name, "parameter", f"shares its memory with {other} without being the same tensor")
    return tuple(found.values()), named


def _held(
    module: nn.Module, program: torch.export.ExportedProgram, constants: str
) -> Iterator[tuple[str, Tensor, str]]:
    for name, parameter in module.named_parameters(remove_duplicate=False):
        yield name, parameter, "parameter" if parameter.requires_grad else "frozen"
    for name, buffer in module.named_buffers(remove_duplicate=False):
        yield name, buffer, "buffer"
    known = {id(value) for value in (*module.parameters(), *module.buffers())}
    for name, value in program.constants.items():
        if isinstance(value, Tensor) and id(value) not in known and not name.startswith(_PREFIX):
            yield f"{constants}.{name}", value, "constant"
        elif isinstance(value, Tensor) and id(value) not in known:
            short = name.removeprefix(_PREFIX)
            if short not in dict(module.named_buffers(remove_duplicate=False)):
                yield f"{constants}.{short}", value, "constant"


def _inputs(
    program: torch.export.ExportedProgram, given: tuple[Tensor, ...], sides: list[dict[int, str]]
) -> tuple[GraphInput, ...]:
    inputs = []
    for place, (value, named) in enumerate(zip(given, sides, strict=True)):
        if value.dtype not in _NAMES:
            raise NotExportable("", f"input {place}", f"a graph takes no {value.dtype}")
        shape = tuple(named.get(axis, size) for axis, size in enumerate(value.shape))
        inputs.append(GraphInput(f"in{place}", _NAMES[value.dtype], shape))
    return tuple(inputs)


def _compare(module: nn.Module, exported: Exported, given: tuple[Tensor, ...], *, training: bool) -> None:
    """The graph does what the module does, bit by bit, or the author is told where it does not."""
    mode = "training" if training else "evaluation"
    original, graph, equal = _both(module, exported, given, training=training)
    if not equal:
        raise NotExportable("", mode, f"the graph does otherwise than the module in {mode}")
    buffers = dict(original.named_buffers())
    for name, value in graph.tensors().items():
        if name in buffers and not same(buffers[name], value):
            raise NotExportable(name, mode, f"the graph leaves another buffer than the module in {mode}")


def _equal(module: nn.Module, exported: Exported, given: tuple[Tensor, ...], *, training: bool) -> bool:
    try:
        return _both(module, exported, given, training=training)[2]
    except InvalidSpec:  # what was traced in one mode may not go through in the other
        return False


def _both(
    module: nn.Module, exported: Exported, given: tuple[Tensor, ...], *, training: bool
) -> tuple[nn.Module, GraphModule, bool]:
    """(a copy of the module, the graph, whether they gave the same), both run once."""
    original, graph = copy.deepcopy(module).train(training), exported.module().train(training)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = _several(original(*given))
        torch.manual_seed(0)
        got = _several(graph(*given))
    return original, graph, len(expected) == len(got) and all(map(same, expected, got))


def same(one: Tensor, other: Tensor) -> bool:
    """Equal in shape, dtype and every value; a NaN is equal to a NaN."""
    if one.dtype != other.dtype or one.shape != other.shape or not torch.equal(one.isnan(), other.isnan()):
        return False
    return torch.equal(one.nan_to_num(), other.nan_to_num())


def _several(outputs: object) -> tuple[Tensor, ...]:
    """In the order in which a trace gives them: of tuples, mappings and what else torch can take apart."""
    return tuple(one for one in tree_leaves(outputs) if isinstance(one, Tensor))
