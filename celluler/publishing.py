"""On an author's machine: a torch module as a folder of data that a swarm can run without the author's code."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celluler.errors import LocalError
from celluler.models.folder import DOCUMENT, WEIGHTS
from celluler.models.graph_body import GraphBody, format_graph_body
from celluler.models.weights import save_vector, still_of

if TYPE_CHECKING:
    from torch import Tensor, nn


def publish(
    module: nn.Module,
    example_inputs: Sequence[Tensor] | Mapping[str, Tensor] | Tensor,
    path: Path | str,
    *,
    objective: str | Mapping[str, Any] = "regression",
    dynamic: Mapping[str, tuple[int, int]] | None = None,
) -> GraphBody:
    """Write `model.json` and `weights.safetensors` into the folder `path`, which is made where it is missing; then
    `celluler model add me/name:1.0.0 FOLDER` publishes it.

    example_inputs: what forward takes, one tensor, with at least 2 along whatever may vary. Beside tokens (int64, two
    axes) there may be attention_mask, token_type_ids and position_ids of a text without gaps, in the order of forward
    or by name: the model computes them from then on, and a warning says so. objective: what the model
    is for, of docs/reference/model-spec.md: `classification`, `regression`, `next_token` or `reconstruction`; classes
    and vocabulary are the last side of the output where they are not given. dynamic: (least, most) of `batch` and of
    `sequence`, the first and the second axis; None: a batch of 1…1024. The graph is compared with the module, bit by
    bit, before anything is written. Raises NotExportable (a LocalError) that names the part of the module that a graph
    cannot hold, InvalidSpec for what is over a budget. See docs/explanation/graph-models.md.
    """
    try:
        import torch  # noqa: PLC0415

        from celluler.engines.filled import TOLD, of_one_input  # noqa: PLC0415
        from celluler.engines.graph.export import export_graph  # noqa: PLC0415
        from celluler.engines.graph.measure import measured_body  # noqa: PLC0415
    except ImportError as error:
        raise LocalError(f"publishing a module needs torch: {error.name} is missing") from error
    examples = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else example_inputs
    module, example, filled = of_one_input(module, examples)
    for name in filled:
        warnings.warn(f"{name} is filled in: {TOLD[name]}", stacklevel=2)
    exported = export_graph(module, (example,), dynamic=dynamic)
    body = measured_body(exported.graph, {"kind": objective} if isinstance(objective, str) else dict(objective))
    moved = [exported.tensors[tensor.name].reshape(-1) for tensor in body.tensors]
    still = {one.name: exported.tensors[one.name].reshape(-1).view(torch.uint8).numpy() for one in still_of(body)}
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    save_vector(body, torch.cat(moved).numpy() if moved else torch.zeros(0).numpy(), folder / WEIGHTS, still)
    (folder / DOCUMENT).write_bytes(format_graph_body(body))
    return body
