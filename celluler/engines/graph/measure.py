"""What one pass over a graph would hold, found on the meta device: shapes are followed, nothing is allocated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from celluler.engines.graph.interpret import GraphModule
from celluler.engines.graph.table import TORCH_DTYPES
from celluler.errors import InvalidSpec
from celluler.models.graph import DEFAULT_BUDGET, Graph, GraphBudget


@dataclass(frozen=True, slots=True)
class GraphCost:
    """Bytes of one pass. outputs: (dtype, shape) of each, as measured."""

    tensor_bytes: int
    activation_bytes: int
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
    total = 0

    def observe(place: int, out: Any) -> None:
        nonlocal total
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, Tensor) and not one._is_view():
                total += one.numel() * one.element_size()
        if total > budget.activation_bytes:
            raise InvalidSpec(f"nodes[{place}]", f"needs {total} bytes, the budget is {budget.activation_bytes}")

    with torch.inference_mode(False), torch.no_grad():
        outputs = module.run(given, observe)
    several = outputs if isinstance(outputs, tuple) else (outputs,)
    shapes = tuple((str(one.dtype).removeprefix("torch."), tuple(one.shape)) for one in several)
    return GraphCost(graph.tensor_bytes, total, shapes)
