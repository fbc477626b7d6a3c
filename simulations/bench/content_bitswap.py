"""py-libp2p's own bitswap between two of its hosts: blocks of at most 256 KiB, SHA-256, over Noise and Yamux.

Far slower than the rest, hence with a smaller content. Nobody else here runs in a process with it.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import trio

from simulations.bench.content_ways import MIB, Child, Content, Way, make_durable, orders, say

MEBIBYTES = 16
_MODULE = "simulations.bench.content_bitswap"
_BLOCK_BYTES = 1 << 18


@contextmanager
def open_ways(content: Content) -> Iterator[Mapping[str, Way]]:
    small = content.scratch / "small"
    with content.path.open("rb") as file:
        small.write_bytes(file.read(MEBIBYTES * MIB))
    with Child(_MODULE, "provide", str(small)) as provider, Child(_MODULE, "fetch") as client:
        where = dict(provider.about)
        yield {"bitswap": lambda folder: client.seconds(into=str(folder / "data"), **where)}


@asynccontextmanager
async def _peer() -> AsyncIterator[tuple[Any, Any]]:
    """A host and its bitswap."""
    from libp2p import new_host  # noqa: PLC0415
    from libp2p.bitswap import BitswapClient  # noqa: PLC0415
    from multiaddr import Multiaddr  # noqa: PLC0415

    host = new_host()
    async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]), trio.open_nursery() as nursery:
        bitswap = BitswapClient(host)
        bitswap.set_nursery(nursery)
        await bitswap.start()
        yield host, bitswap


async def _provide(path: Path) -> None:
    from libp2p.bitswap.dag import MerkleDag  # noqa: PLC0415

    async with _peer() as (host, bitswap):
        root = await MerkleDag(bitswap).add_file(str(path), chunk_size=_BLOCK_BYTES)
        say(root=bytes(root).hex(), address=str(host.get_addrs()[0]))
        await trio.to_thread.run_sync(sys.stdin.read)
        os._exit(0)  # its hosts would take their time


async def _fetch() -> None:
    from libp2p.bitswap import MemoryBlockStore  # noqa: PLC0415
    from libp2p.bitswap.dag import MerkleDag  # noqa: PLC0415
    from libp2p.peer.peerinfo import info_from_p2p_addr  # noqa: PLC0415
    from multiaddr import Multiaddr  # noqa: PLC0415

    async with _peer() as (host, bitswap):
        say()
        waiting = iter(orders())
        while (order := await trio.to_thread.run_sync(next, waiting, None)) is not None:
            info = info_from_p2p_addr(Multiaddr(order["address"]))
            await host.connect(info)
            bitswap.block_store = MemoryBlockStore()
            began = time.perf_counter()
            data, _ = await MerkleDag(bitswap).fetch_file(bytes.fromhex(order["root"]), info.peer_id, timeout=60)
            _keep(Path(order["into"]), data)
            say(seconds=time.perf_counter() - began)
        os._exit(0)


def _keep(into: Path, data: bytes) -> None:
    into.write_bytes(data)
    make_durable(into)


def main() -> None:
    logging.disable(logging.CRITICAL)
    trio.run(_provide, Path(sys.argv[2])) if sys.argv[1] == "provide" else trio.run(_fetch)


if __name__ == "__main__":
    main()
