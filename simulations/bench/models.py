"""What it costs that a model is data: a step of a graph beside its module's own, and a worker's way to an answer.

`python -m simulations.bench.models [--repeats 9] [--json]`

Both sides of a step are the same operations of torch on the same numbers, one thread, in turns, so that a busy machine
hits both; the best of the repeats is compared. A worker is opened as the node opens it, confined, for each answer:
cold, or one that waited with torch imported.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
import trio
from torch import Tensor, nn

from celluler.engines.graph.export import export_graph
from celluler.models.folder import DOCUMENT, WEIGHTS
from celluler.models.spec import format_spec, parse_spec
from celluler.models.templates import fill
from celluler.models.weights import initial_weights
from celluler.publishing import publish
from celluler_node.processes.words import Limits
from celluler_node.processes.worker_words import WORKER, LoadModel, Predict
from celluler_node.scratch import open_scratch
from celluler_node.serving.spares import Spares
from tests.support.modules import Llama, ResNetBlock

AIM_OVERHEAD = 1.2
AIM_WARM_S = 0.3
LIMITS = Limits(memory_bytes=4 << 30, file_bytes=1 << 30, threads=1)
_RUN_S = 60.0


class Pictures(nn.Module):
    """Eight residual blocks on 32 × 32."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((3, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 128, 1))
        self.blocks = nn.Sequential(*(ResNetBlock(*one) for one in widths))
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean((2, 3)))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "MLP 64-128-64-10, 32 samples": (mlp, lambda: torch.randn(32, 64)),
    "ResNet of 7 blocks, 16 pictures": (Pictures, lambda: torch.randn(16, 3, 32, 32)),
    "Llama 64 × 2, 8 × 32 tokens": (lambda: Llama(64, 4, 2, 2), lambda: torch.randint(0, 32, (8, 32))),
    "Llama 256 × 4, 8 × 64 tokens": (lambda: Llama(256, 8, 4, 4), lambda: torch.randint(0, 32, (8, 64))),
}


def step(module: nn.Module, x: Tensor) -> float:
    """Seconds of a forward and a backward pass."""
    module.zero_grad(set_to_none=True)
    start = time.perf_counter()
    module(x).square().mean().backward()
    return time.perf_counter() - start


def overhead(name: str, repeats: int) -> dict[str, Any]:
    make, example = CASES[name]
    module, x = make().train(), example()
    graph = export_graph(module, (x,), compare=False).module().train()
    ways = (module, graph)
    times = [[step(way, x) for way in ways] for _ in range(repeats + 2)][2:]
    eager, ours = (min(one[way] for one in times) for way in range(2))
    ratio = ours / eager
    return figure(
        f"step of a graph: {name}", 1000 * ours, "ms", against=f"its module {1000 * eager:.3g} ms",
        ratio=ratio, aim=f"≤ {AIM_OVERHEAD}", met=ratio <= AIM_OVERHEAD,
    )  # fmt: skip


async def first_answer(pool: Spares, body: str, document: bytes, weights: Path) -> float:
    """Seconds from nothing to an answer: by a worker that waits, if one does."""
    x = np.zeros((1, 64), dtype=np.float32)
    start = time.perf_counter()
    with trio.fail_after(_RUN_S):
        async with pool.open(weights) as (child, (path,)):
            await child.call(LoadModel(document, str(path), body))
            await child.call(Predict("float32", x.shape, "raw"), x.tobytes())
            return time.perf_counter() - start


async def first_answers(repeats: int) -> list[dict[str, Any]]:
    """Of one MLP as a spec and as a graph, by workers that start cold and by such that waited."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        publish(mlp(), torch.randn(2, 64), folder, objective="classification")
        spec = parse_spec(fill("mlp"))
        initial_weights(spec, bytes(32), folder / "spec.safetensors")
        bodies = {
            "spec": (format_spec(spec), folder / "spec.safetensors"),
            "graph": ((folder / DOCUMENT).read_bytes(), folder / WEIGHTS),
        }
        cold: dict[str, list[float]] = {kind: [] for kind in bodies}
        warm: dict[str, list[float]] = {kind: [] for kind in bodies}
        async with open_scratch(folder / "scratch") as scratch, trio.open_nursery() as nursery:
            pool = Spares(WORKER, LIMITS, scratch, nursery, wanted=0)
            for _ in range(repeats):
                for kind, (document, weights) in bodies.items():
                    cold[kind].append(await first_answer(pool, kind, document, weights))
                    await pool.start_one()
                    warm[kind].append(await first_answer(pool, kind, document, weights))
            nursery.cancel_scope.cancel()
    figures = [figure(f"cold worker to the first answer of a {kind}", min(cold[kind]), "s") for kind in bodies]
    for kind in bodies:
        best, beside = min(warm[kind]), min(cold[kind])
        figures.append(
            figure(
                f"waiting worker to the first answer of a {kind}", best, "s", against=f"cold {beside:.2f} s",
                ratio=best / beside, aim=f"≤ {AIM_WARM_S} s", met=best <= AIM_WARM_S,
            )
        )  # fmt: skip
    return figures


def figure(
    name: str, value: float, unit: str, *, against: str = "", ratio: float | None = None, aim: str = "",
    met: bool | None = None,
) -> dict[str, Any]:  # fmt: skip
    return {
        "name": name, "value": value, "unit": unit, "against": against, "ratio": ratio, "aim": aim, "met": met,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="simulations.bench.models", description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    torch.set_num_threads(1)
    figures = [overhead(name, options.repeats) for name in CASES]
    figures += trio.run(first_answers, 2)
    if options.json:
        print(json.dumps(figures, indent=1))
        return 0
    from simulations.bench.__main__ import show  # noqa: PLC0415

    show(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
