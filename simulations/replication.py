"""Replication among fifty peers: how soon what died with its holders is there again, and what it costs.

    python -m simulations.replication --peers 50 --seed 7 --json

A swarm in three regions under a virtual clock: authors publish and some leave, holders are killed, peers join, the
swarm parts in two and heals. Nothing is mocked in what decides: each peer runs the node's own machine. The network is
modelled: look-ups take a second or two, announcements are seen late and outlive their peers, deaths are noticed after
15 to 22 s (as measured in `simulations.membership`), pulls take as long as their bytes. Same seed, same trace.

The second part counts the puts by which contents are kept known in the DHT over a day, again with the node's machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from heapq import heappop, heappush
from statistics import median

from celluler.content.replication import Candidate, Policy, Replicated, Verdict
from celluler.content.replication_watch import Wanted, Watch
from celluler.identity import PeerId
from celluler_protocols.renewal import DirectoryTiming, Renewal

REGIONS = ("eu", "us", "asia")
MIB = 1 << 20
WORKERS = 2
INTERVAL_S = 30.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """What happens. In the last `quiet_s` nobody dies, so that everything can be restored."""

    peers: int = 50
    contents: int = 40
    seed: int = 7
    hours: float = 6.0
    kills: int = 15
    joins: int = 10
    parted_s: float = 1200.0
    quiet_s: float = 2 * 3600.0
    share_that_stores: float = 0.9
    share_that_is_full: float = 0.1
    rate_bytes_s: int = 20 * MIB
    policy: Policy = field(default_factory=Policy)


@dataclass(frozen=True, slots=True)
class Report:
    """What happened.

    restored: seconds from a death until a content it took below its aim had it again, one sample a content.
    most_copies: live ones of one content above its aim at any time while the swarm was whole, and after it had parted.
    wasted: pulls that at their end made one copy more than was wanted. lookups: a peer a minute.
    """

    peers: int
    contents: int
    seed: int
    kills: int
    joins: int
    published: float
    restored_median_s: float
    restored_p95_s: float
    restored_longest_s: float
    restorations: int
    below_aim_at_the_end: int
    lost: int
    most_above_aim: int
    most_above_aim_parted: int
    above_aim_at_the_end: int
    pulls: int
    failed: int
    wasted: int
    released: int
    lookups_a_peer_a_minute: float
    trace: str


@dataclass(slots=True)
class Peer:
    """One node: its machine, and what it has."""

    me: Candidate
    watch: Watch
    room: int
    joined: float
    died: float = math.inf
    side: int = 0
    complete: dict[bytes, bool] = field(default_factory=dict)  # root -> spare
    coming: set[bytes] = field(default_factory=set)
    busy: int = 0
    wake: int = 0

    @property
    def alive(self) -> bool:
        return self.died == math.inf


class Swarm:
    """Peers, contents and events."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario, self.now = scenario, 0.0
        self.rng = random.Random(scenario.seed)
        self.peers: dict[PeerId, Peer] = {}
        self.contents: dict[bytes, Replicated] = {}
        self.records: dict[bytes, dict[PeerId, float]] = {}  # root -> provider -> seen from
        self.parted_at, self.healed_at = math.inf, math.inf
        self.below: dict[bytes, float] = {}
        self.restored: list[float] = []
        self.published: list[float] = []
        self.most = self.most_parted = 0
        self.counts: Counter[str] = Counter()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0
        self._hash = hashlib.blake2b(digest_size=16)

    # --- time ---

    def at(self, when: float, action: Callable[[], None]) -> None:
        self._serial += 1
        heappush(self._events, (when, self._serial, action))

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, action = heappop(self._events)
            action()
        self.now = until

    def note(self, what: str, peer: PeerId | str, root: bytes = b"") -> None:
        self._hash.update(f"{self.now:.6f} {what} {peer} {root.hex()}\n".encode())

    @property
    def trace(self) -> str:
        return self._hash.hexdigest()

    # --- who is there ---

    def living(self) -> list[Peer]:
        return [peer for peer in self.peers.values() if peer.alive]

    def start(self) -> Peer:
        scenario, rng, number = self.scenario, self.rng, len(self.peers)
        stores = rng.random() < scenario.share_that_stores
        room = 0 if rng.random() < scenario.share_that_is_full else rng.randrange(4, 40) * 512 * MIB
        me = Candidate(PeerId(f"peer{number:04d}"), REGIONS[number % len(REGIONS)], stores)
        machine = Watch(me, INTERVAL_S, random.Random(scenario.seed * 1_000_003 + number), scenario.policy)
        peer = self.peers[me.peer] = Peer(me, machine, room, self.now)
        self.note("starts", me.peer)
        self.at(self.now + rng.random() * INTERVAL_S / 3, lambda: self._keep_up(peer))
        return peer

    def kill(self, peer: Peer) -> None:
        peer.died = self.now
        self.note("dies", peer.me.peer)
        for root in (*peer.complete, *peer.coming):
            self._count(root)

    def sees(self, one: Peer, other: Peer) -> bool:
        """Whether `other` is a member in the eyes of `one`: news takes seconds, silence is noticed after 15 to 22 s."""
        if one is other or self.now < other.joined + 3.0:
            return False
        notice_s = 15.0 + 7.0 * (hash_of(one.me.peer, other.me.peer) / 2**32)
        gone_since = min(other.died, self.parted_at if one.side != other.side else math.inf)
        return self.now < gone_since + notice_s

    def members(self, peer: Peer) -> list[Candidate]:
        """The others as `peer` sees them."""
        return [other.me for other in self.peers.values() if self.sees(peer, other)]

    # --- what is where ---

    def publish(self, author: Peer, content: Replicated) -> None:
        self.contents[content.root], self.records[content.root] = content, {}
        author.complete[content.root] = False
        self.below[content.root] = -self.now  # negative: never was at its aim
        self.note("publishes", author.me.peer, content.root)
        self._announce(author, content.root)

    def copies(self, root: bytes, side: int | None = None) -> int:
        return sum(root in peer.complete for peer in self.living() if side is None or peer.side == side)

    def _announce(self, peer: Peer, root: bytes) -> None:
        self.records[root].setdefault(peer.me.peer, self.now + self.rng.uniform(0.5, 4.0))

    def _count(self, root: bytes) -> None:
        """Note how many live copies there are now."""
        content, copies = self.contents[root], self.copies(root)
        if self.now < self.parted_at:
            self.most = max(self.most, copies - content.copies)
        self.most_parted = max(self.most_parted, copies - content.copies)
        since = self.below.get(root)
        if copies < content.copies:
            self.below.setdefault(root, self.now)
        elif since is not None:
            del self.below[root]
            if since > 0:
                self.restored.append(self.now - since)
            else:
                self.published.append(self.now + since)

    # --- one peer's life ---

    def _keep_up(self, peer: Peer) -> None:
        if peer.alive:
            peer.watch.update(self._catalogue(peer), self.members(peer), self.now)
            self._work(peer)
            self.at(self.now + INTERVAL_S / 3, lambda: self._keep_up(peer))

    def _catalogue(self, peer: Peer) -> Iterable[Wanted]:
        return [
            Wanted(content, root, root in peer.complete or root in peer.coming, peer.complete.get(root, False))
            for root, content in self.contents.items()
        ]

    def _work(self, peer: Peer) -> None:
        """Whatever is due, as many at a time as there are workers."""
        if not peer.alive:
            return
        while peer.busy < WORKERS and (wanted := peer.watch.due(self.now)) is not None:
            peer.busy += 1
            self.counts["lookups"] += 1
            self.at(self.now + self.rng.uniform(0.3, 2.5), lambda wanted=wanted: self._judge(peer, wanted))  # type: ignore[misc]
        peer.wake += 1
        mine, wait_s = peer.wake, peer.watch.wait_s(self.now)
        if peer.busy < WORKERS and wait_s < math.inf:
            self.at(self.now + wait_s + 1e-6, lambda: self._work(peer) if peer.wake == mine else None)

    def _judge(self, peer: Peer, wanted: Wanted) -> None:
        peer.busy -= 1
        if not peer.alive:
            return
        root = wanted.content.root
        told = [one for one, seen_from in self.records[root].items() if seen_from <= self.now and one != peer.me.peer]
        providers = [one for one in told if self._holds(self.peers[one], root) or not self.peers[one].alive]
        decision = peer.watch.judge(root, providers, peer.room, self.now)
        if decision.verdict is Verdict.PULL:
            self._pull(peer, wanted.content)
        elif decision.verdict is Verdict.RELEASE:
            self.note("releases", peer.me.peer, root)
            self.counts["released"] += 1
            del peer.complete[root]
            del self.records[root][peer.me.peer]
            peer.room += wanted.content.size_bytes
            peer.watch.pulled(root, self.now, done=True)
            self._count(root)
        self._work(peer)

    def _holds(self, peer: Peer, root: bytes) -> bool:
        """What a test of the claim would say: a part that is on its way answers too."""
        return root in peer.complete or root in peer.coming

    def _pull(self, peer: Peer, content: Replicated) -> None:
        self.note("pulls", peer.me.peer, content.root)
        self.counts["pulls"] += 1
        peer.busy += 1
        peer.coming.add(content.root)
        peer.room -= content.size_bytes
        self._announce(peer, content.root)
        took_s = content.size_bytes / (self.scenario.rate_bytes_s * self.rng.uniform(0.3, 1.0))
        self.at(self.now + took_s, lambda: self._arrived(peer, content))

    def _arrived(self, peer: Peer, content: Replicated) -> None:
        if not peer.alive:
            return
        root = content.root
        sources = [one for one in self.living() if root in one.complete and one.side == peer.side]
        peer.busy -= 1
        peer.coming.discard(root)
        if sources:
            wanted = self._is_wanted(peer, content)
            self.counts["wasted"] += not wanted
            peer.complete[root] = True
            self.note("has" if wanted else "wastes", peer.me.peer, root)
        else:
            self.counts["failed"] += 1
            peer.room += content.size_bytes
            self.records[root].pop(peer.me.peer, None)
            self.note("fails", peer.me.peer, root)
        peer.watch.pulled(root, self.now, done=bool(sources))
        self._count(root)
        self._work(peer)

    def _is_wanted(self, peer: Peer, content: Replicated) -> bool:
        """Whether one more is due here: in all that this side has, or in the peer's region."""
        if self.copies(content.root, peer.side) < content.copies:
            return True
        share = -(-content.copies // max(1, len(content.regions)))
        held = [one for one in self.living() if content.root in one.complete and one.me.region == peer.me.region]
        return peer.me.region in content.regions and len(held) < share


@cache
def hash_of(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("/".join(parts).encode()).digest()[:4], "big")


def plan(swarm: Swarm) -> None:
    """Write what happens into the calendar, from the seed."""
    scenario, rng = swarm.scenario, swarm.rng
    for _ in range(scenario.peers):
        swarm.start()
    for number in range(scenario.contents):
        content = Replicated(
            hashlib.sha256(f"{scenario.seed}/{number}".encode()).digest(),
            rng.choice((2, 30, 250, 1500)) * MIB,
            rng.choice((0, 0, 2, 5)),
            rng.choice(((), (), REGIONS, ("eu", "us"))),
        )
        swarm.at(
            30.0 + rng.random() * 600.0, lambda content=content: swarm.publish(rng.choice(swarm.living()), content)
        )  # type: ignore[misc]
    first, last = 1800.0, scenario.hours * 3600.0 - scenario.quiet_s
    for _ in range(scenario.kills):
        swarm.at(rng.uniform(first, last), lambda: swarm.kill(rng.choice(swarm.living())))
    for _ in range(scenario.joins):
        swarm.at(rng.uniform(first, last), lambda: swarm.start() and None)
    if scenario.parted_s:
        swarm.at(last, lambda: part(swarm))
        swarm.at(last + scenario.parted_s, lambda: heal(swarm))


def part(swarm: Swarm) -> None:
    """A third of the swarm is cut off."""
    swarm.note("parts", "")
    swarm.parted_at = swarm.now
    for place, peer in enumerate(swarm.peers.values()):
        peer.side = int(place % 3 == 0)


def heal(swarm: Swarm) -> None:
    swarm.note("heals", "")
    for peer in swarm.peers.values():
        peer.side = 0


def simulate(scenario: Scenario) -> Report:
    """Run a scenario to its end."""
    swarm = Swarm(scenario)
    plan(swarm)
    swarm.run(scenario.hours * 3600.0)
    return report(swarm)


def report(swarm: Swarm) -> Report:
    scenario, counts = swarm.scenario, swarm.counts
    restored = sorted(swarm.restored) or [0.0]
    held = {root: swarm.copies(root) for root in swarm.contents}
    alive_s = sum(min(peer.died, swarm.now) - peer.joined for peer in swarm.peers.values())
    return Report(
        peers=scenario.peers,
        contents=len(swarm.contents),
        seed=scenario.seed,
        kills=scenario.kills,
        joins=scenario.joins,
        published=round(median(swarm.published or [0.0]), 1),
        restored_median_s=round(median(restored), 1),
        restored_p95_s=round(restored[int(len(restored) * 0.95)], 1),
        restored_longest_s=round(restored[-1], 1),
        restorations=len(swarm.restored),
        below_aim_at_the_end=sum(0 < held[root] < content.copies for root, content in swarm.contents.items()),
        lost=sum(not copies for copies in held.values()),
        most_above_aim=swarm.most,
        most_above_aim_parted=swarm.most_parted,
        above_aim_at_the_end=max(held[root] - content.copies for root, content in swarm.contents.items()),
        pulls=counts["pulls"],
        failed=counts["failed"],
        wasted=counts["wasted"],
        released=counts["released"],
        lookups_a_peer_a_minute=round(counts["lookups"] / (alive_s / 60), 2),
        trace=swarm.trace,
    )


# --- keeping contents known ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Provision:
    """Puts into the DHT for contents of one peer. busiest: the most in any 10 s after the first hour."""

    contents: int
    chunks: int
    hours: float
    puts: int
    busiest_in_10_s: int
    busiest_after_an_hour: int
    told_s: float


def provision(contents: int, chunks: int, *, seed: int = 7, hours: float = 24.0, reach: int = 50) -> Provision:
    """A peer starts with that many contents of that many chunks each, in a large network; neighbours change."""
    renewal, now, puts = Renewal(DirectoryTiming(), random.Random(seed), 0.0), 0.0, []
    rng, told = random.Random(seed), 0.0
    for number in range(contents):
        renewal.add(hashlib.sha256(f"{seed}/{number}".encode()).digest(), now)
    while now < hours * 3600.0:
        if (key := renewal.take(now)) is None:
            now += min(max(renewal.wait_s(now), 1e-3), 60.0)
            renewal.see({PeerId(f"peer{rng.randrange(1000)}") for _ in range(30)}, reach, now)
            continue
        puts.append(now)
        told = now if len(puts) == contents else told
        renewal.done(key, now, reach=reach)
    return Provision(contents, chunks, hours, len(puts), busiest(puts), busiest([at for at in puts if at > 3600]), told)


def busiest(times: Sequence[float], window_s: float = 10.0) -> int:
    most, first = 0, 0
    for place, at in enumerate(times):
        while times[first] <= at - window_s:
            first += 1
        most = max(most, place - first + 1)
    return most


def show(result: Report, provisions: Sequence[Provision]) -> str:
    """The report for people."""
    lines = [
        f"seed {result.seed}, trace {result.trace}",
        f"{result.peers} peers in {len(REGIONS)} regions, {result.contents} contents; {result.kills} killed, "
        f"{result.joins} joined, parted once and healed",
        f"published     at the aim after {result.published:.0f} s (median)",
        f"restored      median {result.restored_median_s:.0f} s, p95 {result.restored_p95_s:.0f} s, longest "
        f"{result.restored_longest_s:.0f} s ({result.restorations})",
        f"at the end    {result.below_aim_at_the_end} below their aim, {result.lost} lost, at most "
        f"{result.above_aim_at_the_end} above",
        f"most copies   {result.most_above_aim} above the aim; {result.most_above_aim_parted} after it had parted",
        f"pulls         {result.pulls}: {result.wasted} wasted, {result.failed} failed; {result.released} released",
        f"look-ups      {result.lookups_a_peer_a_minute} a peer a minute",
    ]
    for one in provisions:
        lines.append(
            f"provision     {one.contents} contents of {one.chunks} chunks: {one.puts} puts in {one.hours:.0f} h, all "
            f"told after {one.told_s:.0f} s; at most {one.busiest_in_10_s} in 10 s, later {one.busiest_after_an_hour}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m simulations.replication", description="see the module's docstring")
    parser.add_argument("--peers", type=int, default=50)
    parser.add_argument("--contents", type=int, default=40)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--hours", type=float, default=6.0, help="virtual, the last 2 without a death")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    result = simulate(Scenario(options.peers, options.contents, options.seed, options.hours))
    provisions = [provision(1, 10_000), provision(1000, 10_000)]
    if options.json:
        print(json.dumps({**asdict(result), "provision": [asdict(one) for one in provisions]}, indent=1))
    else:
        print(show(result, provisions))
    return 0 if result.below_aim_at_the_end == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
