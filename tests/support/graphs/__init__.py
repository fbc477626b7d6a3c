"""Graphs of the modules in `tests.support.modules`, as the exporter wrote them.

`python -m tests.support.graphs` writes them anew: an export takes seconds, and reading one milliseconds.
"""

from __future__ import annotations

from pathlib import Path

from celluler.models.graph import Graph, parse_graph

FOLDER = Path(__file__).parent
NAMES = {0: "batch", 1: "sequence"}


def stored(name: str) -> Graph:
    return parse_graph((FOLDER / f"{name}.json").read_bytes())


def write(names: list[str]) -> None:
    from celluler.engines.graph.export import export_graph  # noqa: PLC0415
    from tests.support.modules import CASES  # noqa: PLC0415

    for name, (make, example, dynamic) in CASES.items():
        if not names or name in names:
            ranges = {NAMES[axis]: bounds for axis, bounds in dynamic.items()}
            document = export_graph(make(), (example(),), dynamic=ranges).document
            (FOLDER / f"{name}.json").write_bytes(document)
