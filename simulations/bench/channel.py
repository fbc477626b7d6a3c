"""What the channel to a process costs, against a bare socketpair between two processes, in the same run.

`python -m simulations.bench.channel [--mebibytes 100] [--repeats 7] [--calls 2000] [--json]`

The bare side does the least that could do: one process sends what the other returns (small), or sends a buffer that
the other receives into fresh memory, as whoever keeps it must, and acknowledges (large). The ways take turns, so that
a busy machine hits both; the median of the repeats is reported, and for small calls the best repeat's median.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
import trio

from celluler_node.processes.supervisor import Child, open_process
from celluler_node.processes.words import Limits, Program
from simulations.bench.channel_child import REPLIES, REQUESTS, Fetch, Hold

SMALL_BYTES = 40
AIM_SMALL_EXTRA_US = 100.0
AIM_LARGE_GB_S = 1.0
_RUN_S = 300.0

PROGRAM = Program("bench", "simulations.bench.channel_child", REQUESTS, REPLIES, max_blob_bytes=1 << 32)
CONFINED = Program("bench", "simulations.bench.channel_child", REQUESTS, REPLIES, confined=True)


# --- the bare socketpair -------------------------------------------------------------------------------------------


@contextmanager
def bare_pair(size: int) -> Iterator[socket.socket]:
    """Our end; at the other a forked process echoes messages of up to 100 bytes, or takes `size` bytes at a time."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _echo(theirs) if size <= SMALL_BYTES else _take(theirs, size)
        os._exit(0)
    theirs.close()
    with ours:
        yield ours
    os.waitpid(pid, 0)


def _echo(sock: socket.socket) -> None:
    while data := sock.recv(100):
        sock.send(data)


def _take(sock: socket.socket, size: int) -> None:
    first = bytearray(1)
    while sock.recv_into(first):
        buffer, received = memoryview(bytearray(size)), 1
        while received < size:
            received += sock.recv_into(buffer[received:])
        sock.send(b".")


def bare_small(calls: int) -> list[float]:
    message, times = bytes(SMALL_BYTES), []
    with bare_pair(SMALL_BYTES) as sock:
        for _ in range(calls):
            start = time.perf_counter()
            sock.send(message)
            sock.recv(100)
            times.append(time.perf_counter() - start)
    return times


def bare_large(blob: bytes) -> float:
    """Bytes a second."""
    with bare_pair(len(blob)) as sock:
        start = time.perf_counter()
        sock.sendall(blob)
        sock.recv(1)
        elapsed = time.perf_counter() - start
    return len(blob) / elapsed


# --- the channel ---------------------------------------------------------------------------------------------------


async def channel_small(child: Child, calls: int) -> list[float]:
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        await child.call(Fetch(0))
        times.append(time.perf_counter() - start)
    return times


async def channel_out(child: Child, blob: bytes) -> float:
    start = time.perf_counter()
    await child.call(Hold(), blob)
    return len(blob) / (time.perf_counter() - start)


async def channel_in(child: Child, size: int) -> float:
    start = time.perf_counter()
    reply = await child.call(Fetch(size))
    assert len(reply.blobs[0]) == size
    return size / (time.perf_counter() - start)


async def start_ms(program: Program, scratch: Path) -> float:
    start = time.perf_counter()
    async with open_process(program, limits=Limits(), scratch=scratch):
        return (time.perf_counter() - start) * 1e3


# --- the report ----------------------------------------------------------------------------------------------------


async def measure(mebibytes: int, repeats: int, calls: int, scratch: Path) -> list[dict[str, Any]]:
    blob = os.urandom(1 << 20) * mebibytes
    small: dict[str, list[float]] = {"bare": [], "channel": []}
    large: dict[str, list[float]] = {"bare": [], "out": [], "in": []}
    starts: dict[str, list[float]] = {"plain": [], "confined": []}
    async with open_process(PROGRAM, limits=Limits(), scratch=scratch) as child:
        await channel_small(child, calls // 4)
        for _ in range(repeats):
            small["bare"].append(statistics.median(bare_small(calls)) * 1e6)
            small["channel"].append(statistics.median(await channel_small(child, calls)) * 1e6)
            large["bare"].append(bare_large(blob) / 1e9)
            large["out"].append(await channel_out(child, blob) / 1e9)
            large["in"].append(await channel_in(child, len(blob)) / 1e9)
    for _ in range(repeats):
        starts["plain"].append(await start_ms(PROGRAM, scratch))
        starts["confined"].append(await start_ms(CONFINED, scratch))
    bare_us, channel_us = min(small["bare"]), min(small["channel"])
    bare_gb_s = statistics.median(large["bare"])
    plain_ms, confined_ms = statistics.median(starts["plain"]), statistics.median(starts["confined"])
    out_gb_s, in_gb_s = statistics.median(large["out"]), statistics.median(large["in"])
    over = "bare socketpair"
    return [
        row("channel: round trip of a small call", channel_us, "us", over, channel_us / bare_us),
        row("channel: that beyond the bare socketpair", channel_us - bare_us, "us", aim=AIM_SMALL_EXTRA_US),
        row(f"channel: {mebibytes} MiB to the process", out_gb_s, "GB/s", over, out_gb_s / bare_gb_s, AIM_LARGE_GB_S),
        row(f"channel: {mebibytes} MiB from the process", in_gb_s, "GB/s", over, in_gb_s / bare_gb_s, AIM_LARGE_GB_S),
        row("process: start to ready", plain_ms, "ms"),
        row("process: start to ready, confined", confined_ms, "ms", "not confined", confined_ms / plain_ms),
    ]


def row(
    name: str,
    value: float,
    unit: str,
    against: str | None = None,
    ratio: float | None = None,
    aim: float | None = None,
) -> dict[str, Any]:
    """aim: at most, in microseconds; at least, in GB/s."""
    met = None if aim is None else value >= aim if unit == "GB/s" else value <= aim
    rounded = None if ratio is None else round(ratio, 3)
    return {
        "name": name,
        "value": round(value, 3),
        "unit": unit,
        "against": against,
        "ratio": rounded,
        "aim": aim,
        "met": met,
    }


async def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder, trio.fail_after(_RUN_S):
        return await measure(options.mebibytes, options.repeats, options.calls, Path(folder))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mebibytes", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    rows = trio.run(run, options)
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        for line in rows:
            compared = f"{line['ratio']:.2f} x {line['against']}" if line["against"] else ""
            aim = "" if line["aim"] is None else f"aim {line['aim']:g}: {'met' if line['met'] else 'MISSED'}"
            print(f"{line['name']:45} {line['value']:9.2f} {line['unit']:5} {compared:30} {aim}")
    return 0 if all(line["met"] is not False for line in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
