"""The weights file of a graph: safetensors, exactly the tensors that the graph names. Knows no torch."""

from __future__ import annotations

from pathlib import Path

from celluler.errors import InvalidSpec
from celluler.models.graph import Graph
from celluler.models.graph_ops import DTYPES
from celluler.models.weights import TensorView, read_header


def check_graph_weights(graph: Graph, path: Path) -> dict[str, TensorView]:
    """Where each tensor lies in the file. Reads the header alone.

    Raises InvalidSpec that names the first tensor that is missing, unknown, or of another shape or dtype.
    """
    views = read_header(path, "weights")
    expected = {tensor.name: tensor for tensor in graph.tensors}
    for name in views:
        if name not in expected:
            raise InvalidSpec(f"weights.{name[:64]}", "is not a tensor of this graph")
    for name, tensor in expected.items():
        if name not in views:
            raise InvalidSpec(f"weights.{name}", "is missing")
        view, dtype = views[name], DTYPES[tensor.dtype][0]
        if view.dtype != dtype or view.shape != tensor.shape:
            raise InvalidSpec(f"weights.{name}", f"is {view.dtype} {view.shape}, must be {dtype} {tensor.shape}")
    return views
