"""A graph as a model's body: one input, and of its outputs the first, on one flat vector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from celluler.engines.graph.interpret import GraphModule
from celluler.engines.graph.table import TORCH_DTYPES
from celluler.errors import LocalError
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
        self._body, self._still = body, still
        self.restart()

    def restart(self) -> None:
        """What is no part of the vector is again as the author published it."""
        by_name = {one.name: one for one in self._body.stored}
        for name, data in self._still.items():
            one = by_name[name]
            self.put(name, torch.from_numpy(data.copy()).view(TORCH_DTYPES[one.dtype]).reshape(one.shape))

    def named(self) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self.tensors().items() if isinstance(value, nn.Parameter)}

    def forward(self, *given: Tensor) -> Any:
        out = super().forward(*given)
        return out[0] if isinstance(out, tuple) else out
