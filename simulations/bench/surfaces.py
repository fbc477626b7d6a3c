"""What a model's own rate is worth behind a node's HTTP endpoint, and behind one more peer.

`python -m simulations.bench.surfaces [--seconds 3] [--tokens 160] [--repeats 3] [--json]`

Two real nodes on loopback: one serves, the other has that role not, and asks it. Predictions of an MLP of digits' size
by KServe with tensors in binary; texts of a Llama-shaped model by `/v1/completions`, streamed, greedy, by 16 clients at
once. Beside them the same engines alone in this process, one thread as a worker has them, and FastAPI on uvicorn where
these are installed. The ways take turns, best of the repeats; medians are of all requests.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
import trio

from celluler.client import Client
from celluler.engines.load import load_model
from celluler.engines.predict import Predictor
from celluler.models.spec import format_spec, parse_spec
from celluler.models.templates import fill
from celluler.models.weights import initial_weights
from simulations.bench import inference, serving
from simulations.bench.models import figure
from simulations.swarm import NodeProcess, open_swarm

BATCH = 32
CLIENTS = 16
WARM_S = 0.5
TIMEOUT_S = 60.0
AIM_ALONE_MS = 3.0
AIM_FASTAPI = 5.0
AIM_TEXT = 0.9
"""Of the engine's own rate, through the endpoint and a remote peer."""
WRITER, DIGITS = "server/writer:1.0.0", "server/digits:1.0.0"


@contextmanager
def two_nodes() -> Iterator[tuple[NodeProcess, NodeProcess]]:
    """(one that serves, one that asks it); both know the two models."""
    with open_swarm() as swarm:
        asking = swarm.folder / "asking"
        asking.mkdir(parents=True)
        (asking / "config.toml").write_text('roles = ["store"]\n')
        server = swarm.start("server")
        other = swarm.start("asking", join=[server.address])
        with Client(home=server.home) as client:
            client.models.add(WRITER, json.loads(format_spec(inference.body())))
            client.models.add(DIGITS, fill("mlp"))
        yield server, other


# --- predictions ------------------------------------------------------------------------------------------------------


def kserve_request(samples: int) -> tuple[bytes, dict[str, str]]:
    data = np.random.default_rng(0).normal(size=(samples, 64)).astype("<f4").tobytes()
    said = {
        "inputs": [
            {
                "name": "input", "shape": [samples, 64], "datatype": "FP32",
                "parameters": {"binary_data_size": len(data)},
            }
        ],
        "outputs": [{"name": "raw", "parameters": {"binary_data": True}}],
    }  # fmt: skip
    head = json.dumps(said).encode()
    return head + data, {"Inference-Header-Content-Length": str(len(head))}


def asking(node: NodeProcess, clients: int, samples: int, seconds: float) -> tuple[float, float]:
    """(samples a second, median milliseconds) of clients that each ask again as soon as they are answered."""
    body, headers = kserve_request(samples)
    url = f"{node.ready['api']}/v2/models/{DIGITS}/infer"

    async def run() -> tuple[float, float]:
        limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
        async with httpx.AsyncClient(limits=limits, timeout=TIMEOUT_S) as http:

            async def ask() -> None:
                answer = await http.post(url, content=body, headers=headers)
                answer.raise_for_status()

            await ask()
            return await serving.closed_loop(ask, clients, seconds)

    rate, median_ms = trio.run(run)
    return samples * rate, median_ms


def predictions(server: NodeProcess, other: NodeProcess, seconds: float) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as temporary:
        folder, body = Path(temporary), parse_spec(fill("mlp"))
        initial_weights(body, bytes(32), folder / "weights.safetensors")
        (folder / "spec.json").write_bytes(format_spec(body))
        predictor: Predictor = load_model(body, folder / "weights.safetensors").predictor()
        predictor.warm_up()
        alone_rate, alone_ms = serving.engine(predictor, seconds / 2, 1)
        batched_rate, _ = serving.engine(predictor, seconds / 2, BATCH)
        _, near_ms = asking(server, 1, 1, seconds)
        _, far_ms = asking(other, 1, 1, seconds)
        near_rate, _ = asking(server, 8, BATCH, seconds)
        far_rate, _ = asking(other, 8, BATCH, seconds)
        beside = trio.run(serving.fastapi, folder / "spec.json", folder / "weights.safetensors", seconds)
    fast, name = (None, "FastAPI on uvicorn (not installed)") if beside is None else (beside[serving.TOGETHER][0], "")
    rows = [
        figure(
            "one prediction over HTTP: median", near_ms, "ms", against=f"engine {alone_ms:.3f} ms",
            ratio=near_ms / alone_ms, aim=f"≤ engine + {AIM_ALONE_MS:g} ms", met=near_ms <= alone_ms + AIM_ALONE_MS,
        ),
        figure(
            "one prediction over HTTP and a remote peer: median", far_ms, "ms", against=f"engine {alone_ms:.3f} ms",
            ratio=far_ms / alone_ms, aim=f"≤ engine + {AIM_ALONE_MS:g} ms", met=far_ms <= alone_ms + AIM_ALONE_MS,
        ),
        figure(
            f"batches of {BATCH} over HTTP", near_rate, "samples/s",
            against=f"engine, {BATCH} at a time {batched_rate:.0f}", ratio=near_rate / batched_rate,
        ),
    ]  # fmt: skip
    through = f"batches of {BATCH} over HTTP and a remote peer"
    against = f"{name or f'FastAPI on uvicorn {fast:.0f}'}; engine, one at a time {alone_rate:.0f}"
    ratio = None if fast is None else far_rate / fast
    met = None if ratio is None else ratio >= AIM_FASTAPI
    aim = f"≥ {AIM_FASTAPI:g} × FastAPI"
    return [*rows, figure(through, far_rate, "samples/s", against=against, ratio=ratio, aim=aim, met=met)]


# --- texts ------------------------------------------------------------------------------------------------------------


def streamed(node: NodeProcess, tokens: int, clients: int) -> float:
    """Tokens a second of that many answers at once, their prompts read in between."""

    def one(sequence: int) -> int:
        asked = {
            "model": WRITER, "prompt": inference.prompt(sequence), "max_tokens": tokens, "temperature": 0,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        count = 0
        url = f"{node.ready['api']}/v1/completions"
        with httpx.stream("POST", url, json=asked, timeout=TIMEOUT_S) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                count = (json.loads(line[6:]).get("usage") or {}).get("completion_tokens", count)
        return count

    with ThreadPoolExecutor(clients) as pool:
        began = time.perf_counter()
        told = sum(pool.map(one, range(clients)))
    assert told == clients * tokens, "an answer has another number of tokens"
    return told / (time.perf_counter() - began)


def texts(server: NodeProcess, other: NodeProcess, tokens: int, repeats: int) -> list[dict[str, Any]]:
    _, slots = inference.writer(CLIENTS)

    def engine() -> float:
        began = time.perf_counter()
        inference.generate(slots, range(CLIENTS), tokens - 1)
        return CLIENTS * tokens / (time.perf_counter() - began)

    ways: dict[str, Callable[[], float]] = {
        "engine": engine,
        "over HTTP": lambda: streamed(server, tokens, CLIENTS),
        "over HTTP and a remote peer": lambda: streamed(other, tokens, CLIENTS),
    }
    for way in ways.values():
        way()  # loads it
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            rates[name].append(way())
    base = max(rates.pop("engine"))
    rows = [figure(f"{CLIENTS} texts at once, engine alone", base, "tokens/s")]
    for name, found in rates.items():
        ratio = max(found) / base
        rows.append(
            figure(
                f"{CLIENTS} texts at once, {name}", max(found), "tokens/s",
                against=f"engine {base:.0f}, all {', '.join(f'{one:.0f}' for one in found)}", ratio=ratio,
                aim=f"≥ {AIM_TEXT:g} of the engine", met=ratio >= AIM_TEXT,
            )
        )  # fmt: skip
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="simulations.bench.surfaces", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with two_nodes() as (server, other):
        figures = predictions(server, other, options.seconds) + texts(server, other, options.tokens, options.repeats)
    if options.json:
        print(json.dumps(figures, indent=1))
        return 0
    from simulations.bench.__main__ import show  # noqa: PLC0415

    show(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
