"""A node by itself: from start to ready, its memory when idle, the round trip of a small request.

`python -m simulations.bench.node [--json] [--runs 5]`. Memory is PSS of the process where the kernel tells it (each
shared page counted in part), beside RSS. Medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from celluler.client import Client
from simulations.swarm import NodeProcess, open_swarm

READY_AIM_S = 3.0
MEMORY_AIM_MB = 130.0
SETTLE_S = 3.0


def measure(runs: int) -> list[dict[str, Any]]:
    starts, rss, pss = [], [], []
    with open_swarm() as swarm:
        for run in range(runs):
            began = time.perf_counter()
            node = swarm.start(f"node-{run}")
            starts.append(time.perf_counter() - began)
            time.sleep(SETTLE_S)
            one, other = memory_mb(node)
            rss.append(one)
            pss.append(other)
            if torch_loaded(node):
                raise RuntimeError("the node has loaded torch")
            if run < runs - 1:
                node.call("down")
        floor = median_of(import_floor_s, runs)
        neighbour = swarm.start("neighbour", join=[swarm.nodes[-1].address])
        http_s = median_of(lambda: http_round_trip_s(neighbour), 5)
        peer_s = median_of(lambda: peer_round_trip_s(neighbour, swarm.nodes[-2].peer_id), 21)
    start = statistics.median(starts)
    memory = statistics.median(rss)
    return [
        figure("node.start_to_ready", start, "s", f"import of libp2p alone: {floor:.2f} s", start / floor, READY_AIM_S),
        figure("node.idle_rss", memory, "MB", f"PSS {statistics.median(pss):.0f} MB", None, MEMORY_AIM_MB),
        figure("node.http_round_trip", 1000 * http_s, "ms", "GET /healthz, connection kept", None, None),
        figure("node.peer_round_trip", 1000 * peer_s, "ms", "member list on a fresh stream", None, None),
    ]


def figure(name: str, value: float, unit: str, against: str, ratio: float | None, aim: float | None) -> dict[str, Any]:
    met = None if aim is None else value <= aim
    return {"name": name, "value": value, "unit": unit, "against": against, "ratio": ratio, "aim": aim, "met": met}


def memory_mb(node: NodeProcess) -> tuple[float, float]:
    """(RSS, PSS) in MB (10^6)."""
    info = psutil.Process(node.process.pid).memory_full_info()
    return info.rss / 1e6, getattr(info, "pss", info.rss) / 1e6


def torch_loaded(node: NodeProcess) -> bool:
    maps = Path(f"/proc/{node.process.pid}/maps")
    return maps.exists() and "libtorch" in maps.read_text()


def import_floor_s() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import celluler_protocols.host"], check=True)
    return time.perf_counter() - began


def http_round_trip_s(node: NodeProcess) -> float:
    import httpx  # noqa: PLC0415

    with httpx.Client() as http:
        http.get(f"{node.ready['api']}/healthz")
        began = time.perf_counter()
        for _ in range(50):
            http.get(f"{node.ready['api']}/healthz")
        return (time.perf_counter() - began) / 50


def peer_round_trip_s(node: NodeProcess, peer: str) -> float:
    with Client(home=node.home) as client:
        return client.peers.ping(peer).round_trip_s


def median_of(measure_once: Callable[[], float], times: int) -> float:
    return statistics.median(measure_once() for _ in range(times))


def main() -> None:
    parser = argparse.ArgumentParser(prog="simulations.bench.node", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    figures = measure(options.runs)
    if options.json:
        print(json.dumps(figures))
    else:
        from simulations.bench.__main__ import show  # noqa: PLC0415

        show(figures)


if __name__ == "__main__":
    main()
