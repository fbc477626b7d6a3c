"""One peer of torch.distributed's gloo all-reduce, for `simulations.bench.rounds`: float32 over plain TCP.

Between machines of one owner: no encryption, no identity, nothing verified, and one that fails fails all.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as distributed

from simulations.bench.rounds_peers import ROUND_S, hear, quiet, say


def serve(place: int, count: int, size: int) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    values = torch.from_numpy(np.random.default_rng(place).standard_normal(size).astype(np.float32))
    meeting = tempfile.mktemp(prefix="celluler-bench-gloo-") if not place else ""  # gloo makes the file itself
    say({"meeting": meeting})
    meeting = hear()[0]["meeting"]
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=place, world_size=count, timeout=timedelta(seconds=ROUND_S)
    )
    try:
        say({})
        while hear() is not None:
            say({})
            hear()
            began = time.perf_counter()
            distributed.all_reduce(values)
            values /= count
            say({"seconds": time.perf_counter() - began})
    finally:
        distributed.destroy_process_group()
        if not place and os.path.exists(meeting):
            os.unlink(meeting)


if __name__ == "__main__":
    quiet()
    torch.set_num_threads(1)
    serve(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
