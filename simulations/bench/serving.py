"""What it costs to ask a served model instead of computing in one's own process, and what batching brings.

`python -m simulations.bench.serving [--seconds 2] [--json]`

A model of the size of a digits MLP, 64 → 64 → 10, behind `ModelServer`: a confined worker, one thread, asked by tasks
of one node, each again as soon as it is answered. Beside it the engine alone in this process, and the same model behind
FastAPI on uvicorn, asked over loopback by one keep-alive connection a client, where these are installed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import structlog
import torch
import trio

from celluler.engines.load import load_model
from celluler.engines.predict import Predictor
from celluler.identity import Identity
from celluler.models.manifest import OpenedManifest, describe_model, open_manifest, seal_manifest
from celluler.models.spec import Architecture, format_spec, parse_spec
from celluler.models.templates import fill
from celluler.models.weights import initial_weights
from celluler_node.processes.confinement import Confinement
from celluler_node.processes.words import Limits
from celluler_node.processes.worker_words import WORKER
from celluler_node.scratch import open_scratch
from celluler_node.serving.server import ModelServer
from celluler_protocols.inference import Predict
from simulations.bench.models import figure

TOGETHER = 32
WARM_S = 0.5
AIM_ALONE_MS = 3.0
"""A request alone over the engine's own time."""
AIM_FASTAPI = 5.0
AUTHOR = Identity(b"b" * 32)
FASTAPI = Path(__file__).parent / "serving_fastapi.py"

Ask = Callable[[], Awaitable[Any]]


class OneModel:
    """A repository of one model, whose weights lie in a file."""

    def __init__(self, opened: OpenedManifest, weights: Path) -> None:
        self._opened, self._weights = opened, weights

    async def resolve(self, _: str, **__: Any) -> OpenedManifest:
        return self._opened

    async def sound(self, _: OpenedManifest, **__: Any) -> Path:
        return self._weights

    async def file(self, _: OpenedManifest, __: str, **___: Any) -> None:
        return None

    def hold(self, _: OpenedManifest) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


@asynccontextmanager
async def a_server(folder: Path, body: Architecture, weights: Path) -> AsyncIterator[ModelServer]:
    manifest = describe_model("digits", "1.0.0", format_spec(body), b"w" * 32, created_s=1)
    repository = OneModel(open_manifest(seal_manifest(AUTHOR, manifest)), weights)
    async with open_scratch(folder / "scratch") as scratch, trio.open_nursery() as nursery:
        yield ModelServer(
            cast(Any, repository), WORKER, Limits(memory_bytes=4 << 30), scratch, nursery,
            own=AUTHOR.peer_id, confinement=Confinement("full"), spares=0, on_start=lambda *_: None,
        )  # fmt: skip
        nursery.cancel_scope.cancel()


async def closed_loop(ask: Ask, clients: int, seconds: float) -> tuple[float, float]:
    """(requests a second, median milliseconds) of clients that each ask again as soon as they are answered."""
    took: list[float] = []
    counting = False

    async def client() -> None:
        while True:
            began = time.perf_counter()
            await ask()
            if counting:
                took.append(time.perf_counter() - began)

    async with trio.open_nursery() as nursery:
        for _ in range(clients):
            nursery.start_soon(client)
        await trio.sleep(WARM_S)
        counting, began = True, time.perf_counter()
        await trio.sleep(seconds)
        rate = len(took) / (time.perf_counter() - began)
        nursery.cancel_scope.cancel()
    return rate, 1000 * statistics.median(took)


def engine(predictor: Predictor, seconds: float, samples: int) -> tuple[float, float]:
    """(samples a second, median milliseconds of a call) of the engine in this process."""
    x, took = np.random.default_rng(0).normal(size=(samples, 64)).astype(np.float32), []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        predictor.predict(x)
        took.append(time.perf_counter() - began)
    return samples * len(took) / sum(took), 1000 * statistics.median(took)


async def ours(server: ModelServer, seconds: float) -> dict[int, tuple[float, float]]:
    data = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32).tobytes()

    async def ask() -> None:
        await server.predict(Predict("bench/digits", "raw", "float32", (1, 64), data))

    await ask()  # loads it
    return {clients: await closed_loop(ask, clients, seconds) for clients in (1, TOGETHER)}


async def fastapi(document: Path, weights: Path, seconds: float) -> dict[int, tuple[float, float]] | None:
    """The same model behind FastAPI on uvicorn; None where these are not installed."""
    if not all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn")):
        return None
    command = [sys.executable, str(FASTAPI), str(document), str(weights)]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        port = int(await process.stdout.receive_some())
        return {clients: await _over_http(port, clients, seconds) for clients in (1, TOGETHER)}
    finally:
        process.terminate()


async def _over_http(port: int, clients: int, seconds: float) -> tuple[float, float]:
    body = json.dumps({"inputs": np.zeros((1, 64)).tolist()}).encode()
    request = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    request += b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    free: list[trio.SocketStream] = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(clients)]

    async def ask() -> None:
        stream = free.pop()
        await stream.send_all(request)
        answer = b""
        while b"]]}" not in answer:
            answer += await stream.receive_some()
        free.append(stream)

    return await closed_loop(ask, clients, seconds)


async def measure(seconds: float) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        body = parse_spec(fill("mlp"))
        initial_weights(body, bytes(32), folder / "weights.safetensors")
        (folder / "spec.json").write_bytes(format_spec(body))
        predictor = load_model(body, folder / "weights.safetensors").predictor()
        predictor.warm_up()
        alone, batched = (engine(predictor, seconds / 2, samples) for samples in (1, TOGETHER))
        async with a_server(folder, body, folder / "weights.safetensors") as server:
            told = await ours(server, seconds)
        beside = await fastapi(folder / "spec.json", folder / "weights.safetensors", seconds)
    (rate_1, ms_1), (rate_n, ms_n) = told[1], told[TOGETHER]
    figures = [
        figure("engine alone, one sample at a time", alone[0], "samples/s"),
        figure(f"engine alone, {TOGETHER} at a time", batched[0], "samples/s"),
        figure(
            "served model, one client: median", ms_1, "ms", against=f"engine {alone[1]:.3f} ms",
            ratio=ms_1 / alone[1], aim=f"≤ engine + {AIM_ALONE_MS:g} ms", met=ms_1 <= alone[1] + AIM_ALONE_MS,
        ),
        figure(
            "served model, one client", rate_1, "requests/s", against=f"engine {alone[0]:.0f}",
            ratio=rate_1 / alone[0],
        ),
        figure(f"served model, {TOGETHER} clients: median", ms_n, "ms"),
        figure(
            f"served model, {TOGETHER} clients", rate_n, "requests/s", against=f"engine in batches {batched[0]:.0f}",
            ratio=rate_n / batched[0],
        ),
    ]  # fmt: skip
    if beside is None:
        missing = {
            "name": "served model against FastAPI on uvicorn (not installed)",
            "value": None,
            "unit": "requests/s",
        }
        return [*figures, missing | {"against": "", "ratio": None, "aim": f"≥ {AIM_FASTAPI:g} ×", "met": None}]
    rate, ms = beside[TOGETHER]
    return [
        *figures,
        figure("FastAPI on uvicorn, one client: median", beside[1][1], "ms"),
        figure(
            f"served model against FastAPI on uvicorn, {TOGETHER} clients", rate_n, "requests/s",
            against=f"FastAPI {rate:.0f}, {ms:.1f} ms", ratio=rate_n / rate, aim=f"≥ {AIM_FASTAPI:g} ×",
            met=rate_n >= AIM_FASTAPI * rate,
        ),
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="simulations.bench.serving", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    figures = trio.run(measure, options.seconds)
    if options.json:
        print(json.dumps(figures, indent=1))
        return 0
    from simulations.bench.__main__ import show  # noqa: PLC0415

    show(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
