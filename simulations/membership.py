"""The membership machine among a thousand peers: how soon the dead are gone, and who is wronged.

    python -m simulations.membership --peers 1000 --seed 7 --plot membership.svg --json

An established swarm under loss and latency; peers crash, leave, come new and come back. Nothing is mocked: the
machine is the node's own, every record is really signed. Same seed, same trace.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import quantiles
from typing import Any

from celluler.identity import Identity, PeerId
from celluler_protocols.membership.machine import Left, Profile, Send, Status, Swim, SwimConfig, Updated
from celluler_protocols.membership.messages import Capabilities, message_bytes, open_peer_record

from .world import Network, World

PROFILE = Profile("simulated", Capabilities(8, 16_384, "cpu", ("train", "serve", "store")))
FIRST_INCARNATION = 1_700_000_000


@dataclass(frozen=True, slots=True)
class Scenario:
    """What happens. Rates are for the whole swarm; the last `quiet_s` see no crash, so that all can be noticed."""

    peers: int = 1000
    seed: int = 7
    seconds: float = 120.0
    loss: float = 0.05
    latency_s: tuple[float, float] = (0.01, 0.15)
    crashes_per_minute: float = 30.0
    leaves_per_minute: float = 10.0
    joins_per_minute: float = 20.0
    returns_per_minute: float = 10.0
    quiet_s: float = 40.0
    config: SwimConfig = field(default_factory=SwimConfig)


@dataclass(frozen=True, slots=True)
class Spread:
    """Of a set of durations, in seconds."""

    count: int
    median: float
    p99: float
    highest: float


@dataclass(frozen=True, slots=True)
class Report:
    """What happened.

    first_suspicion: crash until anybody suspects. eviction: crash until a survivor evicts, each survivor one sample.
    everywhere: crash until the last survivor has evicted. still_listed: pairs (survivor, dead) left at the end.
    false_suspicions: of a living peer's incarnation by anybody. false_evictions: pairs (node, living peer).
    """

    peers: int
    seed: int
    seconds: float
    loss: float
    crashes: int
    leaves: int
    joins: int
    first_suspicion: Spread
    eviction: Spread
    everywhere: Spread
    still_listed: int
    false_suspicions: int
    false_evictions: int
    false_eviction_rate: float
    messages_a_node_a_second: float
    bytes_a_node_a_second: float
    busiest_bytes_a_second: float
    cpu_s: float
    trace: str


def spread(samples: Sequence[float]) -> Spread:
    if len(samples) < 2:
        only = samples[0] if samples else 0.0
        return Spread(len(samples), only, only, only)
    cuts = quantiles(samples, n=100, method="inclusive")
    return Spread(len(samples), round(cuts[49], 3), round(cuts[98], 3), round(max(samples), 3))


class Swarm:
    """Machines in a world, and the book of what they noticed."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.world = World(
            scenario.seed,
            Network(latency_s=scenario.latency_s, loss=scenario.loss),
            sends=Send,
            observe=self._observe,
            size_of=message_bytes,
        )
        self.rng = random.Random(scenario.seed + 1)
        self.open_record = cache(open_peer_record)  # one verification of each record for all machines together
        self.identities: dict[PeerId, Identity] = {}
        self.crashed: dict[PeerId, float] = {}
        self.alive_since: dict[PeerId, float] = {}
        self.crash_log: list[tuple[PeerId, float]] = []
        self.suspected: dict[tuple[PeerId, float], float] = {}
        self.evicted: dict[tuple[PeerId, float], list[float]] = {}
        self.false_suspicions: set[tuple[PeerId, int]] = set()
        self.false_evictions: list[tuple[PeerId, PeerId, float]] = []
        self.left: list[PeerId] = []
        self.lives = 0
        self.joins = 0
        self.node_seconds = 0.0

    # --- who lives ---

    def machine(self, peer: PeerId) -> Swim:
        machine = self.world[peer]
        assert isinstance(machine, Swim)
        return machine

    def living(self) -> tuple[PeerId, ...]:
        return tuple(PeerId(name) for name in self.world.names)

    def start(self, identity: Identity) -> Swim:
        """A machine of this identity begins to live, knowing nobody."""
        peer, world = identity.peer_id, self.world
        self.lives += 1
        machine = Swim(
            identity,
            PROFILE,
            (f"/ip4/192.0.2.{len(self.identities) % 250}/tcp/4001/p2p/{peer}",),
            incarnation=FIRST_INCARNATION + int(world.now),
            now=world.now,
            rng=random.Random(self.scenario.seed * 1_000_003 + self.lives),
            config=self.scenario.config,
            open_record=self.open_record,
        )
        self.identities[peer] = identity
        self.crashed.pop(peer, None)
        self.alive_since[peer] = world.now
        world.add(peer, machine)
        return machine

    def new_identity(self) -> Identity:
        return Identity(self.rng.randbytes(32))

    def establish(self) -> None:
        """The swarm as it stands at time zero: everybody knows everybody."""
        machines = [self.start(self.new_identity()) for _ in range(self.scenario.peers)]
        records = [machine.own for machine in machines]
        for machine in machines:
            machine.adopt(records, self.world.now)
            self.world.apply(machine.peer, ())

    def join(self, identity: Identity) -> None:
        """A peer starts and asks somebody who lives."""
        bootstrap = self.rng.choice(self.living())
        machine = self.start(identity)
        self.joins += 1
        self.world.apply(machine.peer, machine.join(bootstrap, self.world.now))

    def crash(self, peer: PeerId) -> None:
        self._end(peer)
        self.crashed[peer] = self.world.now
        self.crash_log.append((peer, self.world.now))

    def leave(self, peer: PeerId) -> None:
        self.world.apply(peer, self.machine(peer).leave(self.world.now))
        self._end(peer)
        self.left.append(peer)

    def _end(self, peer: PeerId) -> None:
        self.node_seconds += self.world.now - self.alive_since.pop(peer)
        self.world.remove(peer)

    # --- what the machines say ---

    def _observe(self, name: str, output: Any, now: float) -> None:
        if isinstance(output, Left) and not output.left:
            crashed_at = self.crashed.get(output.peer)
            if crashed_at is not None:
                self.evicted.setdefault((output.peer, crashed_at), []).append(now - crashed_at)
            elif output.peer in self.world:
                self.false_evictions.append((PeerId(name), output.peer, now))
        elif isinstance(output, Updated) and output.member.status is Status.SUSPECT:
            peer = output.member.peer
            crashed_at = self.crashed.get(peer)
            if crashed_at is not None:
                self.suspected.setdefault((peer, crashed_at), now - crashed_at)
            elif peer in self.world:
                self.false_suspicions.add((peer, output.member.incarnation))

    def still_listed(self) -> int:
        """Pairs (living node, dead peer on its list)."""
        dead = [*self.crashed, *(peer for peer in self.left if peer not in self.world)]
        return sum(peer in self.machine(node) for node in self.living() for peer in dead)


def plan(swarm: Swarm) -> None:
    """Write the whole of the churn into the world's calendar, from its seed."""
    scenario, rng, world = swarm.scenario, swarm.rng, swarm.world

    def crash() -> None:
        swarm.crash(rng.choice(swarm.living()))

    def leave() -> None:
        swarm.leave(rng.choice(swarm.living()))

    def join() -> None:
        swarm.join(swarm.new_identity())

    def come_back() -> None:
        """Long after the crash: what is back before it was missed is no detection to be measured."""
        gone = [peer for peer, at in swarm.crashed.items() if world.now - at > scenario.quiet_s]
        if gone:
            swarm.join(swarm.identities[rng.choice(gone)])

    last = scenario.seconds - scenario.quiet_s
    for action, per_minute in (
        (crash, scenario.crashes_per_minute),
        (leave, scenario.leaves_per_minute),
        (join, scenario.joins_per_minute),
        (come_back, scenario.returns_per_minute),
    ):
        when = 0.0
        while per_minute > 0 and (when := when + rng.expovariate(per_minute / 60.0)) < last:
            world.at(when, action)


def simulate(scenario: Scenario) -> tuple[Report, Swarm]:
    """Run a scenario to its end."""
    began = time.process_time()
    swarm = Swarm(scenario)
    gc.disable()  # a million long-lived entries: walking them again and again doubles the time
    try:
        swarm.establish()
        plan(swarm)
        swarm.world.run(scenario.seconds)
    finally:
        gc.enable()
    return report(swarm, time.process_time() - began), swarm


def report(swarm: Swarm, cpu_s: float) -> Report:
    scenario, world = swarm.scenario, swarm.world
    node_seconds = swarm.node_seconds + sum(world.now - since for since in swarm.alive_since.values())
    evictions = [delay for delays in swarm.evicted.values() for delay in delays]
    per_node = [traffic.sent_bytes / scenario.seconds for traffic in world.traffic.values()]
    return Report(
        peers=scenario.peers,
        seed=scenario.seed,
        seconds=scenario.seconds,
        loss=scenario.loss,
        crashes=len(swarm.crash_log),
        leaves=len(swarm.left),
        joins=swarm.joins,
        first_suspicion=spread(list(swarm.suspected.values())),
        eviction=spread(evictions),
        everywhere=spread([max(delays) for delays in swarm.evicted.values()]),
        still_listed=swarm.still_listed(),
        false_suspicions=len(swarm.false_suspicions),
        false_evictions=len(swarm.false_evictions),
        false_eviction_rate=len(swarm.false_evictions) / max(1, len(swarm.false_evictions) + len(evictions)),
        messages_a_node_a_second=round(sum(t.sent for t in world.traffic.values()) / node_seconds, 3),
        bytes_a_node_a_second=round(sum(t.sent_bytes for t in world.traffic.values()) / node_seconds, 1),
        busiest_bytes_a_second=round(max(per_node), 1),
        cpu_s=round(cpu_s, 1),
        trace=world.trace,
    )


def quiet(scenario: Scenario) -> Scenario:
    """The same swarm when nothing happens in it."""
    return replace(
        scenario, crashes_per_minute=0.0, leaves_per_minute=0.0, joins_per_minute=0.0, returns_per_minute=0.0
    )


def by_size(scenario: Scenario) -> list[Report]:
    """What a node sends in quiet swarms of growing size."""
    sizes = [size for size in (10, 30, 100, 300) if size < scenario.peers]
    return [simulate(replace(quiet(scenario), peers=size, seconds=60.0))[0] for size in sizes]


def plot(swarm: Swarm, sizes: Sequence[Report], path: Path) -> None:
    """Two panels: how soon the dead are gone, and what a node sends by the size of the swarm."""
    import matplotlib as mpl  # noqa: PLC0415  only for drawing

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "celluler"  # the same figures give the same file
    import matplotlib.pyplot as plt  # noqa: PLC0415

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True)
    scenario = swarm.scenario
    curves = {
        "somebody suspects it": list(swarm.suspected.values()),
        "a survivor has evicted it": [delay for delays in swarm.evicted.values() for delay in delays],
        "every survivor has": [max(delays) for delays in swarm.evicted.values()],
    }
    for label, samples in curves.items():
        if samples:
            shares = [place / 200 for place in range(201)]
            ordered = sorted(samples)
            left.plot(
                [ordered[min(int(share * len(ordered)), len(ordered) - 1)] for share in shares], shares, label=label
            )
    left.set(xlabel="seconds after the crash", ylabel="share", xlim=(0, None), ylim=(0, 1))
    left.set_title(f"{scenario.peers} peers, {scenario.loss:.0%} loss, churn, seed {scenario.seed}", fontsize=10)
    left.legend(fontsize=8, loc="center", bbox_to_anchor=(0.42, 0.5))
    names = [str(result.peers) for result in sizes]
    right.bar(names, [result.bytes_a_node_a_second for result in sizes], color="tab:gray")
    right.set(xlabel="peers in a quiet swarm", ylabel="bytes a node sends in a second")
    for place, result in enumerate(sizes):
        label = f"{result.messages_a_node_a_second:.2f}/s"
        right.annotate(label, (place, result.bytes_a_node_a_second), ha="center", va="bottom", fontsize=8)
    right.set_title("messages a node sends in a second, above the bars", fontsize=10)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def show(result: Report) -> str:
    """The report for people."""
    lines = [f"seed {result.seed}, trace {result.trace}, {result.cpu_s} s of processor time"]
    lines.append(f"{result.peers} peers for {result.seconds:.0f} s, {result.loss:.0%} of messages lost")
    lines.append(f"{result.crashes} crashed, {result.leaves} left, {result.joins} joined")
    for name in ("first_suspicion", "eviction", "everywhere"):
        times: Spread = getattr(result, name)
        figures = f"median {times.median:.1f} s, p99 {times.p99:.1f} s, longest {times.highest:.1f} s"
        lines.append(f"{name.replace('_', ' '):16} {figures} ({times.count})")
    lines.append(f"{'false':16} {result.false_suspicions} suspicions, {result.false_evictions} evictions of the living")
    traffic = f"{result.messages_a_node_a_second} messages, {result.bytes_a_node_a_second} bytes a node a second"
    lines.append(f"{'sent':16} {traffic}; the busiest node {result.busiest_bytes_a_second} bytes")
    lines.append(f"{'still listed':16} {result.still_listed} pairs of a living node and a dead peer")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m simulations.membership", description="see the module's docstring")
    parser.add_argument("--peers", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=120.0, help="virtual, the last 40 without a crash")
    parser.add_argument("--loss", type=float, default=0.05)
    parser.add_argument("--plot", type=Path, help="draw to this .svg or .png; also runs quiet swarms of other sizes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    scenario = Scenario(peers=options.peers, seed=options.seed, seconds=options.seconds, loss=options.loss)
    result, swarm = simulate(scenario)
    sizes: list[Report] = []
    if options.plot is not None:
        sizes = [*by_size(scenario), simulate(replace(quiet(scenario), seconds=60.0))[0]]
        plot(swarm, sizes, options.plot)
    print(
        json.dumps({**asdict(result), "quiet": [asdict(size) for size in sizes]}, indent=1)
        if options.json
        else show(result)
    )
    return 0 if result.false_evictions == 0 and result.still_listed == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
