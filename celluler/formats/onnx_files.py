"""ONNX, read by the protobuf of the `onnx` package once its skeleton has been walked over.

Refused: data in other files (their paths reach wherever their author likes), operators of other domains (they are
libraries to be loaded), functions, graphs within graphs. Source: onnx/onnx.proto.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celluler.errors import InvalidSpec, LocalError
from celluler.formats.onnx_messages import MODEL
from celluler.formats.protobuf_walk import Walk
from celluler.formats.stored import MAX_ELEMENTS, MAX_TENSORS

if TYPE_CHECKING:
    import onnx

MAX_ONNX_BYTES = (2 << 30) - 1
MAX_NODES = 20_000
LEAST_OPSET, MOST_OPSET = 7, 26
DOMAINS = ("", "ai.onnx")
NAMED_ONLY = ("ai.onnx.ml", "ai.onnx.preview.training", "com.microsoft")
"""Domains that makers of files name though no node is of them, as tf2onnx does."""


def walk_onnx(path: Path) -> None:
    """The file is one ONNX message, and none of its counts is over a limit. Raises InvalidSpec. Needs no package."""
    size = path.stat().st_size
    if size > MAX_ONNX_BYTES:
        raise InvalidSpec("file", f"has {size} bytes; protobuf ends at {MAX_ONNX_BYTES}")
    if not size:
        raise InvalidSpec("file", "is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        Walk(data).message(MODEL)


def read_onnx(path: Path) -> onnx.ModelProto:
    """A model whose parts are all in the file and of the standard. Raises InvalidSpec; LocalError without `onnx`."""
    try:
        import onnx  # noqa: PLC0415
    except ImportError as error:
        raise LocalError("reading ONNX needs the package onnx", hint="pip install 'celluler[formats]'") from error
    walk_onnx(path)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError, which is of another class in each of its builds
        raise InvalidSpec("file", "is a damaged ONNX file") from error
    _check(model)
    return model


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operators that the model was written for."""
    return max((one.version for one in model.opset_import if one.domain in DOMAINS), default=0)


def _check(model: Any) -> None:
    kept = [one for one in model.opset_import if one.domain not in NAMED_ONLY]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    for one in kept:
        if one.domain not in DOMAINS:
            raise InvalidSpec(
                "opset_import",
                f"asks for operators of {one.domain[:64]!r}, which a library would have to bring",
                hint="export with the standard operators alone",
            )
    opset = opset_of(model)
    if not LEAST_OPSET <= opset <= MOST_OPSET:
        raise InvalidSpec("opset_import", f"is {opset}; read are {LEAST_OPSET}…{MOST_OPSET}")
    if len(model.functions) or len(model.training_info):
        raise InvalidSpec("functions", "are not read", hint="export with inlined functions")
    graph = model.graph
    if len(graph.node) > MAX_NODES or len(graph.initializer) > MAX_TENSORS:
        raise InvalidSpec("graph", f"has {len(graph.node)} nodes and {len(graph.initializer)} tensors: over the limit")
    if len(graph.sparse_initializer):
        raise InvalidSpec("graph.sparse_initializer", "is not read")
    for place, node in enumerate(graph.node):
        if node.domain not in DOMAINS:
            raise InvalidSpec(f"graph.node[{place}]", f"is of the domain {node.domain[:64]!r}, not of the standard")
        for attribute in node.attribute:
            if attribute.HasField("g") or len(attribute.graphs):
                raise InvalidSpec(f"graph.node[{place}]", f"{node.op_type[:64]} holds a graph of its own: not read")
    for path, tensor in _tensors(graph):
        _check_tensor(path, tensor)


def _tensors(graph: Any) -> Iterator[tuple[str, Any]]:
    for tensor in graph.initializer:
        yield f"graph.initializer.{tensor.name[:64]}", tensor
    for place, node in enumerate(graph.node):
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor") or len(attribute.sparse_tensors):
                raise InvalidSpec(f"graph.node[{place}]", "holds a sparse tensor: not read")
            for tensor in (*([attribute.t] if attribute.HasField("t") else ()), *attribute.tensors):
                yield f"graph.node[{place}].{attribute.name[:64]}", tensor


def _check_tensor(path: str, tensor: Any) -> None:
    if len(tensor.external_data) or tensor.data_location != 0:
        raise InvalidSpec(
            path,
            "lies in another file, which may be any file of this machine",
            hint="put the tensors into the model: onnx.save(onnx.load(path), path, save_as_external_data=False)",
        )
    if len(tensor.dims) > 8 or not all(0 <= side < MAX_ELEMENTS for side in tensor.dims):
        raise InvalidSpec(path, "has a shape that none has")
    # The smallest elements, of four bits, have two to a byte; a tensor cannot have more than its message has bytes.
    if math.prod(tensor.dims) > 2 * max(1, tensor.ByteSize()):
        raise InvalidSpec(path, "announces more elements than it holds")
