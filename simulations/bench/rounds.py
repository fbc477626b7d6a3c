"""How long a robust round takes against hivemind's own and against bare sockets, in the same run.

`python -m simulations.bench.rounds [--peers 5] [--values 10000000] [--repeats 5] [--json]`

Each peer is three processes that take turns: one with our averager and rule NK, one with hivemind's AllReduceRunner
(its default: float32, no compression), both over a p2pd each on loopback; and one that sends the stock round's bytes
through plain TCP sockets. The repeats alternate, so that a busy machine hits all three; medians are reported, a round
being as long as its slowest peer. The robust round counts what the stock one does within itself: encoding before and
decoding after. Not counted on either side: starting, connecting, and getting arrays to and from the process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import uvloop

KINDS = ("robust", "stock", "floor")
AIM = 2.0
RUN = bytes(range(32))
_START_S = 60.0
_ROUND_S = 120.0


# --- one peer ------------------------------------------------------------------------------------------------------


def peer(kind: str, place: int, count: int, size: int) -> None:
    """Serve one peer of one kind: lines of JSON in and out."""
    logging.disable(logging.CRITICAL)
    values = np.random.default_rng(place).standard_normal(size).astype(np.float32)
    if kind == "floor":
        _floor_peer(place, count, values)
    else:
        serve = _robust_peer if kind == "robust" else _stock_peer
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as our averager and hivemind's own run
            runner.run(serve(place, count, values))


def say(answer: Any) -> None:
    print(json.dumps(answer), flush=True)


async def hear() -> Any:
    line = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    return json.loads(line) if line else None


async def _robust_peer(place: int, count: int, values: np.ndarray) -> None:
    from celluler.aggregation.digests import part_hash  # noqa: PLC0415
    from celluler.aggregation.q16 import decode_parts, encode_parts, part_slices  # noqa: PLC0415
    from celluler.identity import Identity  # noqa: PLC0415
    from celluler_protocols.averaging import open_averager  # noqa: PLC0415
    from celluler_protocols.averaging_messages import Assignment, Member, Plan  # noqa: PLC0415

    identity, pieces = Identity.generate(), part_slices(len(values), count)
    async with open_averager(identity.seed) as averager:
        say({"peer": averager.peer_id, "addresses": averager.addresses, "author": identity.public_key.hex()})
        roster = await hear()
        await averager.admit(
            [Member(r["peer"], bytes.fromhex(r["author"]), tuple(r["addresses"]), (), ()) for r in roster]
        )
        while (number := await hear()) is not None:
            began = time.perf_counter()
            exponents, mantissas = encode_parts(values, count)
            hashes = [
                part_hash(
                    RUN, number, identity.public_key, part=part, exponent=exponents[part], mantissas=mantissas[cut]
                )
                for part, cut in enumerate(pieces)
            ]
            commit_s = time.perf_counter() - began
            say({"hashes": [h.hex() for h in hashes], "exponents": exponents})
            commits = await hear()
            members = tuple(
                Member(
                    r["peer"],
                    bytes.fromhex(r["author"]),
                    tuple(r["addresses"]),
                    tuple(bytes.fromhex(h) for h in c["hashes"]),
                    tuple(c["exponents"]),
                )
                for r, c in zip(roster, commits, strict=True)
            )
            assignments = tuple(Assignment(part, (part + number) % count) for part in range(count))
            plan = Plan(
                RUN, number, 0, bytes(32), place, members, len(values), count, assignments, "nk", (count - 1) // 2,
                count - (count - 1) // 3, _ROUND_S / 2, _ROUND_S,
            )  # fmt: skip
            began = time.perf_counter()
            outcome, aggregate = await averager.exchange(plan, mantissas.data)
            exchange_s = time.perf_counter() - began
            assert not outcome.missing, outcome.faults
            assert not outcome.faults, outcome.faults
            decode_parts(tuple(each.exponent for each in outcome.reduced), np.frombuffer(aggregate, np.int16))
            say({"seconds": commit_s + time.perf_counter() - began, "exchange": exchange_s})
            await averager.drain(5)


async def _stock_peer(place: int, count: int, values: np.ndarray) -> None:
    import torch  # noqa: PLC0415
    from hivemind.averaging.allreduce import AllReduceRunner  # noqa: PLC0415
    from hivemind.p2p import P2P, PeerID  # noqa: PLC0415
    from hivemind.utils.multiaddr import Multiaddr  # noqa: PLC0415

    torch.set_num_threads(1)
    p2p = await P2P.create(
        host_maddrs=["/ip4/127.0.0.1/tcp/0"], nat_port_map=False, auto_nat=False, use_relay=False, use_ipfs=False
    )
    try:
        addresses = [str(address) for address in await p2p.get_visible_maddrs()]
        say({"peer": p2p.peer_id.to_base58(), "addresses": addresses})
        roster = await hear()
        for other in roster:
            if other["peer"] != p2p.peer_id.to_base58():
                dial = [Multiaddr(address.rpartition("/p2p/")[0]) for address in other["addresses"]]
                await p2p._client.connect(PeerID.from_base58(other["peer"]), dial)
        while (number := await hear()) is not None:
            runner = AllReduceRunner(
                p2p=p2p,
                servicer_type=AllReduceRunner,
                prefix=str(number),
                group_id=number.to_bytes(8, "big"),
                tensors=[torch.from_numpy(values)],
                ordered_peer_ids=[PeerID.from_base58(other["peer"]) for other in roster],
                peer_fractions=(1 / count,) * count,
            )
            await runner.add_p2p_handlers(p2p, namespace=str(number))
            say({})
            await hear()
            began = time.perf_counter()
            async for difference in runner:
                difference.add_(torch.from_numpy(values))
            say({"seconds": time.perf_counter() - began})
    finally:
        await p2p.shutdown()


def _floor_peer(place: int, count: int, values: np.ndarray) -> None:
    part = np.array_split(values, count)[0].tobytes()
    listener = socket.create_server(("127.0.0.1", 0), backlog=count)
    say({"port": listener.getsockname()[1]})
    roster = json.loads(sys.stdin.readline())
    dialled = [socket.create_connection(("127.0.0.1", r["port"])) for i, r in enumerate(roster) if i != place]
    accepted = [listener.accept()[0] for _ in range(count - 1)]
    while line := sys.stdin.readline():
        if json.loads(line) is None:
            break
        say({})
        sys.stdin.readline()
        began = time.perf_counter()
        for _ in ("parts", "aggregates"):
            work: list[Callable[[], Any]] = [*(lambda s=s: s.sendall(part) for s in dialled)]
            work += [*(lambda s=s: _swallow(s, len(part)) for s in accepted)]
            threads = [threading.Thread(target=each) for each in work]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        say({"seconds": time.perf_counter() - began})


def _swallow(sock: socket.socket, size: int) -> None:
    space = memoryview(bytearray(size))
    while space:
        space = space[sock.recv_into(space) :]


# --- all peers -----------------------------------------------------------------------------------------------------


class Group:
    """The peers of one kind."""

    def __init__(self, kind: str, count: int, size: int) -> None:
        root = Path(__file__).parents[2]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(root / folder) for folder in ("", "protocols", "node")),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "simulations.bench.rounds", "--peer", kind]
        self._peers = [
            subprocess.Popen(
                [*command, str(place), "--peers", str(count), "--values", str(size)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
                cwd=root,
            )
            for place in range(count)
        ]
        self._tell(self._ask(_START_S))

    def round(self, number: int) -> dict[str, float]:
        """Seconds of one round: of the slowest peer, by phase."""
        self._tell(number)
        self._tell(self._ask(_ROUND_S))
        answers = self._ask(_ROUND_S)
        return {phase: max(answer[phase] for answer in answers) for phase in answers[0]}

    def cpu_s(self) -> float:
        """Processor time so far of all its processes, p2pd included: what a busy machine does not falsify."""
        roots = [psutil.Process(process.pid) for process in self._peers]
        family = [*roots, *(child for root in roots for child in root.children(recursive=True))]
        return sum(sum(process.cpu_times()[:2]) for process in family)

    def close(self) -> None:
        for process in self._peers:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._peers:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _tell(self, what: Any) -> None:
        for process in self._peers:
            assert process.stdin is not None
            process.stdin.write(json.dumps(what) + "\n")
            process.stdin.flush()

    def _ask(self, wait_s: float) -> list[Any]:
        killer = threading.Timer(wait_s, lambda: [process.kill() for process in self._peers])
        killer.start()
        try:
            lines = [process.stdout.readline() for process in self._peers if process.stdout is not None]
        finally:
            killer.cancel()
        if not all(lines):
            raise RuntimeError("a peer of the benchmark ended")
        return [json.loads(line) for line in lines]


def measure(count: int, size: int, repeats: int) -> list[dict[str, Any]]:
    """Rows of the report. The first round of each kind warms up and does not count."""
    groups: dict[str, Group] = {}
    seconds: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory(prefix="celluler-bench-"):
        try:
            for kind in KINDS:
                groups[kind] = Group(kind, count, size)
            for number in range(1, repeats + 2):
                for kind in KINDS:
                    before = groups[kind].cpu_s()
                    measured = groups[kind].round(number)
                    seconds[kind].append({**measured, "cpu": groups[kind].cpu_s() - before})
        finally:
            for group in groups.values():
                group.close()
    medians = {
        kind: {phase: statistics.median(r[phase] for r in rounds[1:]) for phase in rounds[0]}
        for kind, rounds in seconds.items()
    }
    shape = f"{count} peers x {size:,} values"
    robust, stock, floor = (medians[kind]["seconds"] for kind in KINDS)
    exchange = medians["robust"]["exchange"]
    robust_cpu, stock_cpu = medians["robust"]["cpu"], medians["stock"]["cpu"]
    return [
        _row(f"robust round, {shape}", robust, "hivemind's AllReduceRunner", robust / stock, AIM),
        _row(f"  of which the exchange, {shape}", exchange, "the robust round", exchange / robust),
        _row(f"robust round, processor time of all, {shape}", robust_cpu, "hivemind's", robust_cpu / stock_cpu, AIM),
        _row(f"hivemind's AllReduceRunner, {shape}", stock, "bare sockets", stock / floor),
        _row(f"bare sockets, {shape}", floor),
    ]


def _row(
    name: str, value: float, against: str | None = None, ratio: float | None = None, aim: float | None = None
) -> dict[str, Any]:
    return {
        "name": name,
        "value": round(value, 4),
        "unit": "s",
        "against": against,
        "ratio": None if ratio is None else round(ratio, 3),
        "aim": aim,
        "met": None if aim is None or ratio is None else ratio <= aim,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=5)
    parser.add_argument("--values", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peer", nargs=2, metavar=("KIND", "PLACE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer is not None:
        peer(options.peer[0], int(options.peer[1]), options.peers, options.values)
        return 0
    rows = measure(options.peers, options.values, options.repeats)
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            compared = f"{row['ratio']:.2f} x {row['against']}" if row["against"] else ""
            aim = f"aim <= {row['aim']:g}: {'met' if row['met'] else 'MISSED'}" if row["aim"] else ""
            print(f"{row['name']:60} {row['value']:8.3f} {row['unit']}  {compared:40} {aim}")
    return 0 if all(row["met"] is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
