"""One peer of hivemind's DecentralizedAverager, for `simulations.bench.rounds`: the stock way to average.

Counted from when the group stands and everybody lets go, to the averaged tensor. Its matchmaking takes seconds by
design and is not counted, as a verified round's commits and votes are not. Float32, no compression, nothing verified.
"""

from __future__ import annotations

import sys
import time

import hivemind
import numpy as np
import torch
from hivemind.averaging.control import AveragingStage, StepControl

from simulations.bench.rounds_peers import ROUND_S, START_S, hear, quiet, say

MATCHMAKING_S = 2.0
_POLL_S = 0.02


def serve(place: int, count: int, size: int) -> None:
    values = torch.from_numpy(np.random.default_rng(place).standard_normal(size).astype(np.float32))
    dht = _dht(()) if not place else None
    say({"addresses": [] if dht is None else [str(address) for address in dht.get_visible_maddrs()]})
    roster = hear()
    dht = dht or _dht(roster[0]["addresses"])
    averager = hivemind.DecentralizedAverager(
        [values],
        dht,
        start=True,
        prefix="bench",
        target_group_size=count,
        min_group_size=count,
        min_matchmaking_time=MATCHMAKING_S,
        request_timeout=MATCHMAKING_S / 2,
        allow_state_sharing=False,
    )
    try:
        say({})
        while hear() is not None:
            control = _grouped(averager)
            say({})
            hear()
            began = time.perf_counter()
            control.allow_allreduce()
            group = control.result(ROUND_S)
            passed_s = time.perf_counter() - began
            assert group is not None, "the averager gave up"
            assert len(group) == count, "a group of another size"
            say({"seconds": passed_s})
    finally:
        averager.shutdown()
        dht.shutdown()


def _dht(known: tuple[str, ...] | list[str]) -> hivemind.DHT:
    return hivemind.DHT(
        initial_peers=list(known), start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"], use_relay=False,
        use_auto_relay=False, use_ipfs=False, nat_port_map=False, auto_nat=False, startup_timeout=START_S,
    )  # fmt: skip


def _grouped(averager: hivemind.DecentralizedAverager) -> StepControl:
    """A step whose group has been found and waits for us to let go."""
    control = averager.step(require_trigger=True, wait=False, allow_retries=True)
    while control.stage is not AveragingStage.AWAITING_TRIGGER:
        assert not control.done(), "matchmaking ended without a group"
        time.sleep(_POLL_S)
    return control


if __name__ == "__main__":
    quiet()
    torch.set_num_threads(1)
    serve(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
