"""What passes over a graph hold, found on the meta device: shapes are followed, nothing is allocated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from celluler.engines.graph.interpret import GraphModule
from celluler.engines.graph.table import TORCH_DTYPES
from celluler.errors import InvalidSpec
from celluler.models.graph import DEFAULT_BUDGET, Graph, GraphBudget, plain_graph
from celluler.models.graph_body import FORMAT, GraphBody, parse_graph_body


@dataclass(frozen=True, slots=True)
class GraphCost:
    """Of one pass. operations: multiplications with an addition, and elements that are read and written; of views
    nothing. outputs: (dtype, shape) of each, as measured."""

    tensor_bytes: int
    activation_bytes: int
    operations: int
    outputs: tuple[tuple[str, tuple[int, ...]], ...]


def measure(
    graph: Graph, sizes: dict[str, int] | None = None, *, training: bool = True, budget: GraphBudget = DEFAULT_BUDGET
) -> GraphCost:
    """Follow the shapes of one pass. sizes: of the dimensions that vary; the largest where they are not given.

    Raises InvalidSpec at the first node whose shapes do not fit, or with which the budget is overdrawn.
    """
    largest = {name: high for name, _, high in graph.dimensions} | (sizes or {})
    module = GraphModule(graph).train(training)
    given = [
        torch.empty(
            [largest[side] if isinstance(side, str) else side for side in one.shape],
            dtype=TORCH_DTYPES[one.dtype],
            device="meta",
        )
        for one in graph.inputs
    ]
    total = touched = 0

    def observe(place: int, taken: Iterable[Any], out: Any) -> None:
        nonlocal total, touched
        made = [one for one in _tensors((out,)) if not one._is_view()]
        if made:
            touched += sum(one.numel() for one in (*made, *_tensors(taken)))
        total += sum(one.numel() * one.element_size() for one in made)
        if total > budget.activation_bytes:
            raise InvalidSpec(f"nodes[{place}]", f"needs {total} bytes, the budget is {budget.activation_bytes}")
        if touched + counted.get_total_flops() // 2 > budget.operations:
            raise InvalidSpec(f"nodes[{place}]", f"needs more operations than the {budget.operations} of the budget")

    with torch.inference_mode(False), torch.no_grad(), FlopCounterMode(display=False) as counted:
        outputs = module.run(given, observe)
    operations = touched + counted.get_total_flops() // 2
    several = outputs if isinstance(outputs, tuple) else (outputs,)
    shapes = tuple((str(one.dtype).removeprefix("torch."), tuple(one.shape)) for one in several)
    return GraphCost(graph.tensor_bytes, total, operations, shapes)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for one in values:
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, tuple | list):
            yield from _tensors(one)


def check_measured(body: GraphBody, samples: int | None = None) -> None:
    """A body gives what it says, and takes no more for it. Raises InvalidSpec.

    samples: of a pass in training; None for the smallest passes there are, in training and in evaluation. Of a length
    that varies both ends are tried.
    """
    passes = _smallest(*body.batch) if samples is None else ((samples, True),)
    for length in sorted(set(body.sequence or (1,))):
        for count, training in passes:
            budget = replace(
                DEFAULT_BUDGET,
                activation_bytes=count * body.activation_bytes,
                operations=count * DEFAULT_BUDGET.operations,
            )
            cost = measure(body.graph, {"batch": count, "sequence": length}, training=training, budget=budget)
            wanted = (count, *body.answer_shape(body.sample_shape(length)))
            if cost.outputs[0] != ("float32", wanted):
                raise InvalidSpec("output", f"must be float32 {wanted}, the graph gives {cost.outputs[0]}")


def measured_body(graph: Graph, objective: dict[str, Any]) -> GraphBody:
    """The author's side: what a document must say of its graph. Raises InvalidSpec for a graph that is no model.

    objective: as in a document; a number of classes or a vocabulary that is missing is the last side of the output.
    """
    ranges = {name: (low, high) for name, low, high in graph.dimensions}
    passes, ends = _smallest(*ranges.get("batch", (1, 1))), ranges.get("sequence", (1, 1))
    costs = [
        (count, [measure(graph, {"batch": count, "sequence": length}, training=training) for length in ends])
        for count, training in passes
    ]
    shortest, longest = (cost.outputs[0][1][1:] for cost in costs[0][1])
    sides = [side if side == other else "sequence" for side, other in zip(longest, shortest, strict=True)]
    width = {"classification": "classes", "next_token": "vocabulary"}.get(objective.get("kind", ""))
    body = parse_graph_body(
        {
            "body": FORMAT,
            "graph": plain_graph(graph),
            "objective": ({width: longest[-1]} if width and longest else {}) | objective,
            "output": sides,
            "activation_bytes": max(
                1, *(math.ceil(one.activation_bytes / count) for count, told in costs for one in told)
            ),
        }
    )
    check_measured(body)
    return body


def _smallest(least: int, most: int) -> tuple[tuple[int, bool], ...]:
    """(samples, training) of the smallest passes: a norm over the batch trains on two at least."""
    return (min(most, max(2, least)), True), (least, False)
