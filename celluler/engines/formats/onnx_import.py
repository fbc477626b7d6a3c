"""ONNX to a graph of ours, with onnxruntime as the judge of what comes out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from celluler.engines.filled import TOLD
from celluler.engines.formats.onnx_module import Given, OnnxModule
from celluler.engines.graph.export import Exported, NotExportable, export_graph
from celluler.engines.graph.interpret import GraphModule
from celluler.engines.graph.measure import measured_body
from celluler.errors import InvalidSpec
from celluler.formats.imported import Imported, ordered
from celluler.formats.importing import Wishes
from celluler.formats.onnx_files import read_onnx
from celluler.formats.stored import Stored
from celluler.models.graph_body import GraphBody, format_graph_body
from celluler.models.graph_ops import DTYPES

MOST_BATCH = 1024
LONGEST_SEQUENCE = 512
"""Unless more is asked for."""
MOST_ELEMENTS = 1 << 25
"""Of the inputs that it is tried with, which are allocated before anything is known of what they become."""
TOLERANCE = 1e-3
"""Of the largest answer: beyond it the model is not what its file says, and is refused."""
COMMON_IR_VERSION = 10
WHOLE = (torch.int64, torch.int32)
"""Types of whole numbers that may come in; a graph of ours takes int64 for either."""
_TRIED = 3


def import_onnx(path: Path, wishes: Wishes) -> tuple[Imported, GraphBody, float | None]:
    """(body and tensors, the body read, largest difference to onnxruntime's answers relative to the largest answer).

    The last is None where onnxruntime is not installed. Raises InvalidSpec, also for a file that onnxruntime does not
    load: what the runtime of that format refuses is no model in it, or one for a later runtime.
    """
    model = read_onnx(path)
    module = OnnxModule(model)
    exported = _traced(module, wishes)
    body = measured_body(exported.graph, {"kind": wishes.objective or "regression"})
    found = {name: _stored(name, value) for name, value in exported.tensors.items()}
    notes = ["onnxruntime is not installed: the answers were not compared"]
    deviation = difference(model, module, exported.module().eval())
    if deviation is not None:
        notes = []
        if not deviation <= TOLERANCE:
            raise InvalidSpec(
                "file", f"as a graph it answers otherwise than onnxruntime, by {deviation:.2g} of the answer"
            )
    notes += [f"{one.name} is filled in: {TOLD[one.name]}" for one in module.filled]
    if not wishes.objective:
        notes.append("its objective is regression, since the file does not say; give --objective for another")
    document = format_graph_body(body)
    return Imported(body.kind, document, ordered(body, found), tuple(notes)), body, deviation


def _traced(module: OnnxModule, wishes: Wishes) -> Exported:
    given = module.given
    if given.dtype not in (torch.float32, *WHOLE) or not 2 <= len(given.sides) <= 5:
        told = f"is {given.dtype} of {len(given.sides)} axes, must be float32, int64 or int32, 2…5"
        raise InvalidSpec("graph.input", told)
    for axis, side in enumerate(given.sides[2:], 2):
        if isinstance(side, str):
            raise InvalidSpec(
                "graph.input",
                f"varies along axis {axis} ({side[:32]}); only the batch and the axis behind it may",
                hint="export it with a fixed size",
            )
    dynamic = {"batch": (1, MOST_BATCH)}
    sides: list[Any] = [3, *given.sides[1:]]
    if isinstance(sides[1], str):
        longest = wishes.context or LONGEST_SEQUENCE
        dynamic["sequence"] = (1, longest)
        sides[1] = min(7, longest)
    if (elements := math.prod(sides)) > MOST_ELEMENTS:
        raise InvalidSpec("graph.input", f"takes {elements} numbers for {sides[0]} samples, limit {MOST_ELEMENTS}")
    try:
        return export_graph(module, (_example(module, given, sides),), dynamic=dynamic)
    except NotExportable as error:
        fixed = "" if isinstance(given.sides[0], str) else "; it was exported for a fixed batch"
        raise InvalidSpec(
            "graph",
            f"cannot be traced{fixed}: {error}"[:600],
            hint="export it with a batch that varies (dynamic_axes), and --context for a shorter sequence",
        ) from error


def _example(module: OnnxModule, given: Given, sides: list[Any], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if given.dtype in WHOLE:
        return torch.randint(0, module.vocabulary(given.name) or 2, sides, generator=generator)
    return torch.randn(sides, generator=generator)


def difference(model: Any, module: OnnxModule, graph: GraphModule) -> float | None:
    """The largest difference between answers of the file, by onnxruntime, and of the graph; relative to the largest
    answer. None where onnxruntime is not installed. Raises InvalidSpec for a file that it does not load."""
    try:
        import onnxruntime  # noqa: PLC0415
    except ImportError:
        return None
    # The container's version may be newer than onnxruntime; what it holds is of the versions of its operators.
    model.ir_version = min(model.ir_version, COMMON_IR_VERSION)
    try:
        session = runtime(onnxruntime, model.SerializeToString())
    except Exception as error:  # its errors have no common class of their own
        raise InvalidSpec(
            "file",
            f"onnxruntime {onnxruntime.__version__} does not load it: {str(error)[:256]}",
            hint="pip install -U onnxruntime if the file is newer than that, or export it for earlier operators",
        ) from error
    given = module.given
    worst = 0.0
    for seed in range(_TRIED):
        sides = [1 + seed if isinstance(given.sides[0], str) else given.sides[0], *given.sides[1:]]
        if len(sides) > 1 and isinstance(sides[1], str):
            sides[1] = 5
        x = _example(module, given, sides, seed)
        with torch.inference_mode():
            ours = graph(x).numpy()
        told = {name: value.numpy() for name, value in module.feed(x).items()}
        if given.dtype == torch.int32:
            told[given.name] = told[given.name].astype(np.int32)
        theirs = run(session, told, module.output)
        if ours.shape != theirs.shape:
            raise InvalidSpec("file", f"as a graph it gives {ours.shape}, by onnxruntime {theirs.shape}")
        if ours.size:
            worst = max(worst, float(np.abs(ours - theirs).max() / max(1e-6, np.abs(theirs).max())))
    return worst


def runtime(onnxruntime: Any, model: Path | bytes) -> Any:
    """A session that computes as the file says, on one thread, and without a library of anybody's."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        str(model) if isinstance(model, Path) else model, options, providers=["CPUExecutionProvider"]
    )


def run(session: Any, given: Mapping[str, Any], output: str | None = None) -> Any:
    """The answer of a session: that output, or the first. Raises InvalidSpec where it has none."""
    try:
        return session.run(None if output is None else [output], dict(given))[0]
    except Exception as error:  # its errors have no common class of their own
        raise InvalidSpec("file", f"onnxruntime cannot run it: {str(error)[:256]}") from error


def _stored(name: str, value: Tensor) -> Stored:
    dtype = DTYPES[str(value.dtype).removeprefix("torch.")][0]
    return Stored(name, dtype, tuple(value.shape), lambda: value.detach().numpy())
