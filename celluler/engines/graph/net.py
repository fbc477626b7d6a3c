"""A graph as a model's body: one input, and of its outputs the first, on one flat vector."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from celluler.engines.graph.interpret import GraphModule
from celluler.engines.graph.table import TORCH_DTYPES
from celluler.errors import InvalidSpec, LocalError
from celluler.models.graph import Graph, GraphTensor
from celluler.models.graph_body import GraphBody
from celluler.models.weights import Still


class GraphNet(GraphModule):
    """What training moves are views of the vector, the rest are copies of `still`."""

    def __init__(self, body: GraphBody, vector: Tensor, still: Still) -> None:
        """vector: (dimension,) float32."""
        if vector.shape != (body.dimension,) or vector.dtype != torch.float32:
            raise LocalError(f"{vector.dtype} of shape {tuple(vector.shape)} is no vector of {body.dimension}")
        super().__init__(body.graph)
        start = 0
        for tensor in body.tensors:
            self.put(tensor.name, vector[start : start + tensor.elements].view(tensor.shape))
            start += tensor.elements
        self._still = still
        self.restart()

    def restart(self) -> None:
        """What is no part of the vector is again as the author published it."""
        for tensor in self.graph.tensors:
            if tensor.name in self._still:
                self.put(tensor.name, _tensor(tensor, self._still[tensor.name].copy()))

    def named(self) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self.tensors().items() if isinstance(value, nn.Parameter)}

    def forward(self, *given: Tensor) -> Any:
        out = super().forward(*given)
        return out[0] if isinstance(out, tuple) else out


def check_finite(graph: Graph, still: Still) -> None:
    """Of parameters that are not trained, or in another dtype than members train. Raises InvalidSpec.

    A constant or a buffer may hold infinities, as masks do.
    """
    for one in graph.tensors:
        checked = one.name in still and one.role in ("parameter", "frozen")
        if checked and not bool(torch.isfinite(_tensor(one, still[one.name])).all()):
            raise InvalidSpec(f"weights.{one.name}", "holds values that are not finite")


def _tensor(one: GraphTensor, data: npt.NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(data).view(TORCH_DTYPES[one.dtype]).reshape(one.shape)
