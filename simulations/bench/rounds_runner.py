"""One peer of hivemind's AllReduceRunner, for `simulations.bench.rounds`: its default, float32, no compression.

The bare all-reduce without the averager around it: no DHT, no matchmaking, no second process. Nothing is verified.
"""

from __future__ import annotations

import asyncio
import sys
import time

import numpy as np
import torch
import uvloop
from hivemind.averaging.allreduce import AllReduceRunner
from hivemind.p2p import P2P, PeerID
from hivemind.utils.multiaddr import Multiaddr

from simulations.bench.rounds_peers import START_S, hear, quiet, say


async def serve(place: int, count: int, size: int) -> None:
    values = torch.from_numpy(np.random.default_rng(place).standard_normal(size).astype(np.float32))
    p2p = await P2P.create(
        host_maddrs=["/ip4/127.0.0.1/tcp/0"],
        nat_port_map=False,
        auto_nat=False,
        use_relay=False,
        use_ipfs=False,
        startup_timeout=START_S,
    )
    try:
        addresses = [str(address) for address in await p2p.get_visible_maddrs()]
        say({"peer": p2p.peer_id.to_base58(), "addresses": addresses})
        roster = await asyncio.to_thread(hear)
        for other in roster:
            if other["peer"] != p2p.peer_id.to_base58():
                dial = [Multiaddr(address.rpartition("/p2p/")[0]) for address in other["addresses"]]
                await p2p._client.connect(PeerID.from_base58(other["peer"]), dial)
        say({})
        while (number := await asyncio.to_thread(hear)) is not None:
            runner = AllReduceRunner(
                p2p=p2p,
                servicer_type=AllReduceRunner,
                prefix=str(number),
                group_id=number.to_bytes(8, "big"),
                tensors=[values],
                ordered_peer_ids=[PeerID.from_base58(other["peer"]) for other in roster],
                peer_fractions=(1 / count,) * count,
            )
            await runner.add_p2p_handlers(p2p, namespace=str(number))
            say({})
            await asyncio.to_thread(hear)
            began = time.perf_counter()
            async for difference in runner:
                difference.add_(values)
            say({"seconds": time.perf_counter() - began})
    finally:
        await p2p.shutdown()


if __name__ == "__main__":
    quiet()
    torch.set_num_threads(1)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:  # as hivemind's own run
        loop.run(serve(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
