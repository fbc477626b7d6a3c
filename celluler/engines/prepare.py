"""What the first model in a process waits for, done before there is one: modules that torch loads when it first needs
them (those of its meta device are 800), thread pools, kernels chosen. By models of our own, of a few numbers.
"""

from __future__ import annotations

import numpy as np

from celluler.engines.graph.measure import check_measured
from celluler.engines.load import Model
from celluler.models.body import GRAPH, SPEC, parse_body
from celluler.models.graph_body import GraphBody
from celluler.models.weights import NOTHING_STILL

_SPEC = b"""{
 "spec": 1, "input": {"dtype": "float32", "shape": [4]},
 "layers": [{"kind": "dense", "width": 3}], "objective": {"kind": "regression"}
}"""
_GRAPH = b"""{
 "body": 1, "objective": {"kind": "regression"}, "output": [3], "activation_bytes": 1000,
 "graph": {
  "graph": 1, "dimensions": {"batch": [1, 8]}, "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 4]}],
  "tensors": [{"name": "w", "role": "parameter", "dtype": "float32", "shape": [3, 4]}],
  "nodes": [{"name": "y", "op": "linear.default", "args": {"input": "x", "weight": "@w"}}], "outputs": ["y"]
 }
}"""


def prepare() -> None:
    """Takes seconds the first time in a process, and next to nothing again."""
    for kind, document in ((SPEC, _SPEC), (GRAPH, _GRAPH)):
        body = parse_body(kind, document)
        if isinstance(body, GraphBody):
            check_measured(body)
        Model(body, np.zeros(body.dimension, np.float32), NOTHING_STILL).predictor().warm_up()
