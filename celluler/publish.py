"""On an author's machine: a torch module as a folder of data that a swarm can run without the author's code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from celluler.errors import LocalError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from celluler.models.graph import Graph

GRAPH_FILE = "graph.json"
WEIGHTS_FILE = "weights.safetensors"


def publish(
    module: nn.Module,
    example_inputs: Sequence[Tensor],
    path: Path | str,
    *,
    dynamic: Mapping[str, tuple[int, int]] | None = None,
) -> Graph:
    """Write `graph.json` and `weights.safetensors` into the folder `path`, which is made where it is missing.

    example_inputs: a tuple of what forward takes, with at least 2 along whatever may vary. dynamic: (least, most) of
    `batch` and of `sequence`, the first and the second axis; None: a batch of 1…1024. The graph is compared with the
    module, bit by bit, before anything is written. Raises NotExportable (a LocalError) that names the part of the
    module that a graph cannot hold. See docs/explanation/graph-models.md.
    """
    try:
        from safetensors.torch import save_file  # noqa: PLC0415

        from celluler.engines.graph.export import export_graph  # noqa: PLC0415
    except ImportError as error:
        raise LocalError(f"publishing a module needs torch and safetensors: {error.name} is missing") from error
    exported = export_graph(module, tuple(example_inputs), dynamic=dynamic)
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(exported.tensors, folder / WEIGHTS_FILE)
    (folder / GRAPH_FILE).write_bytes(exported.document)
    return exported.graph
