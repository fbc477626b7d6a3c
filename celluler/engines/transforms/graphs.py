"""A graph of allowed operations as a step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from celluler.engines.graph.interpret import GraphModule
from celluler.engines.graph.measure import measure
from celluler.errors import InvalidSpec
from celluler.models.transforms.programs import GRAPH_BUDGET, GraphStep
from celluler.models.transforms.run import Program


def graph_program(step: GraphStep) -> Program:
    """Raises InvalidSpec for a graph that gives anything else than the step says, or is over the budget."""
    graph = step.parsed()
    most = step.batch(graph)[1]
    for samples in sorted({1, min(2, most)}):
        budget = replace(
            GRAPH_BUDGET,
            activation_bytes=samples * GRAPH_BUDGET.activation_bytes,
            operations=samples * GRAPH_BUDGET.operations,
        )
        ((dtype, shape),) = measure(graph, {"batch": samples}, training=False, budget=budget).outputs
        if (dtype, shape) != (step.dtype, (samples, *step.shape)):
            raise InvalidSpec("shape", f"is {step.dtype} {step.shape}, the graph gives {dtype} {shape[1:]}")
    cost = measure(graph, {"batch": 1}, training=False, budget=GRAPH_BUDGET)
    most = max(1, min(most, GRAPH_BUDGET.activation_bytes // max(1, cost.activation_bytes)))
    module = GraphModule(graph).eval()

    def run(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        given = torch.from_numpy(np.ascontiguousarray(x))
        with torch.inference_mode():
            made = [module(given[start : start + most]).numpy() for start in range(0, len(x), most)]
        return np.concatenate(made)

    return run
