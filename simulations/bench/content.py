"""How fast `fetch` brings a content in, against a bare socket that hashes and writes the same bytes, in the same run.

`python -m simulations.bench.content [--mebibytes 256] [--repeats 5] [--json]`

Two processes each time, on loopback. The provider holds one content in a disk store; the client fetches it into a fresh
one. Four ways take turns, so that a busy machine hits all of them, and medians are reported:

    floor     a TCP socket: the provider sends the file, the client hashes and writes each MiB, fdatasync at the end
    tcp       fetch() over a trio SocketStream
    stream    one stream between two libp2p hosts (noise, yamux): bytes alone, nothing hashed or written
    libp2p    fetch() over the same hosts
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio
from blake3 import blake3

from celluler.content.disk import DiskStore
from celluler.identity import Identity, PeerId
from celluler_protocols.content import PROTOCOL_ID, fetch, serve_content
from celluler_protocols.host import Host, open_host

MIB = 1 << 20
WAYS = ("floor", "tcp", "stream", "libp2p")
STREAM_PROTOCOL = "/celluler/bench/bytes/1"
AIM_TCP, AIM_LIBP2P = 0.5, 0.8
_QUOTA_BYTES = 1 << 40
_RUN_S = 300.0


# --- the provider --------------------------------------------------------------------------------------------------


async def provide(folder: Path) -> None:
    """Serve the one content of a store in all four ways, until the input ends."""
    store = DiskStore(folder, _QUOTA_BYTES)
    (root,) = store.roots()
    path = store.path(root)

    async def send_file(stream: trio.SocketStream) -> None:
        with path.open("rb") as file:
            await trio.to_thread.run_sync(_send_file, stream.socket.fileno(), file.fileno(), path.stat().st_size)

    async def send_bytes(peer: PeerId, stream: trio.abc.Stream) -> None:
        block = os.urandom(MIB)
        for _ in range(int.from_bytes(await stream.receive_some(4), "big")):
            await stream.send_all(block)

    async with open_host(Identity.generate(), listen=["/ip4/127.0.0.1/tcp/0"]) as host, trio.open_nursery() as nursery:
        host.serve(PROTOCOL_ID, lambda _, stream: serve_content(store, stream))
        host.serve(STREAM_PROTOCOL, send_bytes)
        ports = [await _listen(nursery, handler) for handler in (send_file, lambda s: serve_content(store, s))]
        print(json.dumps({"floor": ports[0], "tcp": ports[1], "host": host.addresses[0]}), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()
    store.close()


async def _listen(nursery: trio.Nursery, handler: Callable[[trio.SocketStream], Awaitable[None]]) -> int:
    async def guarded(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, OSError):
            await handler(stream)

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, guarded, [listener])
    port: int = listener.socket.getsockname()[1]
    return port


def _send_file(out: int, file: int, size: int) -> None:
    os.set_blocking(out, True)
    sent = 0
    while sent < size:
        sent += os.sendfile(out, file, sent, size - sent)


# --- the client ----------------------------------------------------------------------------------------------------


class Client:
    """Fetches once in a given way; each answers with the seconds it took."""

    def __init__(self, folder: Path, root: bytes, size: int, where: dict[str, Any], host: Host) -> None:
        self._folder, self._root, self._size, self._where, self._host = folder, root, size, where, host
        self._digest: bytes | None = None

    async def once(self, way: str) -> float:
        folder = self._folder / "fetched"
        began = time.perf_counter()
        match way:
            case "floor":
                await trio.to_thread.run_sync(self._floor, folder)
            case "tcp":
                await self._fetch(folder, self._dial)
            case "libp2p":
                await self._fetch(folder, lambda peer: self._host.open_stream(peer, PROTOCOL_ID))
            case _:
                await self._stream()
        took = time.perf_counter() - began
        shutil.rmtree(folder, ignore_errors=True)
        return took

    def _floor(self, folder: Path) -> None:
        folder.mkdir()
        buffer = memoryview(bytearray(MIB))
        with (
            socket.create_connection(("127.0.0.1", self._where["floor"])) as connection,
            (folder / "data").open("wb", buffering=0) as file,
        ):
            remaining = self._size
            while remaining:
                count = connection.recv_into(buffer, min(MIB, remaining), socket.MSG_WAITALL)
                blake3(buffer[:count]).digest()
                file.write(buffer[:count])
                remaining -= count
            os.fdatasync(file.fileno())

    async def _fetch(self, folder: Path, open_stream: Callable[[PeerId], Awaitable[Any]]) -> None:
        peer = await self._host.connect(self._where["host"])
        store = DiskStore(folder, _QUOTA_BYTES)
        await fetch(self._root, store, [peer], open_stream)
        assert store.stat(self._root).complete
        store.close()

    async def _dial(self, _: PeerId) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self._where["tcp"])

    async def _stream(self) -> None:
        peer = await self._host.connect(self._where["host"])
        async with await self._host.open_stream(peer, STREAM_PROTOCOL) as stream:
            await stream.send_all((self._size // MIB).to_bytes(4, "big"))
            received = 0
            while received < self._size:
                received += len(await stream.receive_some(MIB))


async def measure(mebibytes: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of every repeat, by way."""
    with tempfile.TemporaryDirectory(prefix="celluler-bench-") as folder:
        original = Path(folder) / "original"
        with original.open("wb") as file:
            for _ in range(mebibytes):
                file.write(os.urandom(MIB))
        store = DiskStore(Path(folder) / "provider", _QUOTA_BYTES)
        root = store.add(original, "blob")
        store.close()
        original.unlink()
        command = [sys.executable, "-m", "simulations.bench.content", "--provider", str(Path(folder) / "provider")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as provider:  # noqa: ASYNC220
            try:
                assert provider.stdout is not None
                where = json.loads(provider.stdout.readline())
                async with open_host(Identity.generate()) as host:
                    client = Client(Path(folder), root, mebibytes * MIB, where, host)
                    return await _take_turns(client, repeats)
            finally:
                provider.kill()


async def _take_turns(client: Client, repeats: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(repeats + 1):
        for way in WAYS:
            with trio.fail_after(_RUN_S):
                took = await client.once(way)
            if turn:  # the first warms up caches and connections
                seconds[way].append(took)
    return seconds


def report(seconds: dict[str, list[float]], mebibytes: int) -> list[dict[str, Any]]:
    speed = {way: mebibytes * MIB / 1e6 / statistics.median(times) for way, times in seconds.items()}
    rows = [
        ("bulk fetch, TCP", "tcp", "floor", AIM_TCP),
        ("bulk fetch, libp2p", "libp2p", "stream", AIM_LIBP2P),
        ("libp2p stream alone", "stream", "floor", None),
        ("bare socket, BLAKE3 and write", "floor", None, None),
    ]
    return [
        {
            "name": name,
            "value": round(speed[way], 1),
            "unit": "MB/s",
            "against": against,
            "ratio": against and round(speed[way] / speed[against], 3),
            "aim": aim,
            "met": None if aim is None else speed[way] >= aim * speed[against or way],
        }
        for name, way, against, aim in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mebibytes", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--provider", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if options.provider is not None:
        return trio.run(provide, options.provider)
    rows = report(trio.run(measure, options.mebibytes, options.repeats), options.mebibytes)
    if options.json:
        print(json.dumps(rows, indent=1))
        return None
    for row in rows:
        against = f"{row['ratio']:.2f} of {row['against']}" if row["against"] else ""
        aim = f"aim {row['aim']}: {'met' if row['met'] else 'missed'}" if row["aim"] else ""
        print(f"{row['name']:32} {row['value']:8.1f} {row['unit']}  {against:18} {aim}")
    return None


if __name__ == "__main__":
    main()
