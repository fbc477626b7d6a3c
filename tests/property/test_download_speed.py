"""How fast the download machine is, in virtual time: throttled sources, one slow, one lying, one that dies.

No bytes move: a source is a rate and a delay, its answers are those of a mover.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest

from celluler.content.digest import Digest, digest_of
from celluler.content.download import Download
from celluler.content.manifest import Layout, Leaf, Manifest
from celluler.content.movers import Chunk
from celluler.content.steps import KeepPlaced, Reason
from celluler.wire import pack

MIB = 1 << 20
KEEP_S = 0.003  # a visit to the store
TICK_S = 0.1  # how often the adapter looks at the clock


def layout_of(mebibytes: int, rng: random.Random) -> tuple[Layout, list[bytes]]:
    """A content of random digests, and its blocks, the manifest first."""
    digests = tuple(Digest(rng.randbytes(32)) for _ in range(mebibytes))
    leaf = Leaf(digests)
    manifest = Manifest(1, "blob", mebibytes * MIB, MIB, None, (), (digest_of(pack(leaf)),), ())
    return Layout(manifest, [leaf]), [pack(manifest), pack(leaf)]


@dataclass
class Source:
    """Answers in the order asked, each chunk at `rate` bytes a second, `delay_s` on the way there and back."""

    rate: float
    delay_s: float
    lies_after: int | None = None
    dies_at: float | None = None  # share of the content kept
    says_goodbye: bool = False
    free_s: float = 0.0
    asked: deque[Chunk] = field(default_factory=deque)
    alive: bool = True
    answers: int = 0


class World:
    def __init__(self, sources: dict[str, Source], mebibytes: int, seed: int) -> None:
        self.rng, self.sources, self.now = random.Random(seed), sources, 0.0
        self.layout, blocks = layout_of(mebibytes, self.rng)
        self.total = mebibytes * MIB
        self.download = Download(digest_of(blocks[0]), start=self.rng.random())
        for block in blocks:
            self.download.here(digest_of(block), block)
        self.download.begun(self.layout)
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.deaths: dict[str, float] = {}
        self.repeated_bytes = 0

    def at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, next(self._order), event))

    def run(self) -> float:
        """Seconds until complete."""
        for name in self.sources:
            self.download.join(name, 0.0)
        self.ask()
        self.at(TICK_S, self.tick)
        while not self.download.complete:
            assert self.download.failure(self.now) is None
            self.now, _, event = heapq.heappop(self.events)
            event()
        return self.now

    def tick(self) -> None:
        self.download.expire(self.now)
        self.ask()
        self.at(self.now + TICK_S, self.tick)

    def ask(self) -> None:
        for name, source in self.sources.items():
            chunks = [self.download.chunk(digest) for digest in self.download.requests(name, self.now)]
            for chunk in chunks if source.alive else ():
                source.free_s = max(source.free_s, self.now + source.delay_s) + chunk.length / source.rate
                self.at(source.free_s + source.delay_s, lambda n=name, c=chunk: self.answer(n, c))  # type: ignore[misc]

    def answer(self, name: str, chunk: Chunk) -> None:
        source = self.sources[name]
        if not source.alive or not self.download.asks(name):
            return
        source.answers += 1
        if source.lies_after is not None and source.answers > source.lies_after:
            self.download.falsified(name, chunk.digest)
            self.deaths[name] = self.now
        else:
            steps = self.download.placed(name, chunk, self.now)
            self.repeated_bytes += 0 if steps else chunk.length
            self.at(self.now + KEEP_S, lambda: self.keep(steps))  # type: ignore[arg-type]
        self.ask()

    def keep(self, steps: Iterable[KeepPlaced]) -> None:
        for step in steps:
            self.download.kept(step, self.now)
        kept = self.download.progress(self.now).kept_bytes / self.total
        for name, source in self.sources.items():
            if source.alive and source.dies_at is not None and kept >= source.dies_at:
                source.alive, self.deaths[name] = False, self.now
                if source.says_goodbye:
                    self.download.leave(name, Reason.GONE)
        self.ask()

    def ideal_s(self) -> float:
        """With every source at its full rate until it died or lied."""
        ends = {name: self.deaths.get(name) for name in self.sources}
        given = sum(self.sources[name].rate * end for name, end in ends.items() if end is not None)
        return (self.total - given) / sum(self.sources[name].rate for name, end in ends.items() if end is None)


def crowd(seed: int) -> dict[str, Source]:
    """Two honest ones, a slow one, a liar and one that dies, silently or not."""
    rng = random.Random(seed)

    def source(low: float, high: float) -> Source:
        return Source(rng.uniform(low, high) * MIB, rng.uniform(0.0005, 0.05))

    liar, dying = source(10, 40), source(10, 40)
    liar.lies_after = rng.randrange(40)
    dying.dies_at, dying.says_goodbye = 0.4, rng.random() < 0.5
    return {"one": source(10, 40), "two": source(10, 40), "slow": source(0.3, 2), "liar": liar, "dying": dying}


@pytest.mark.parametrize("seed", range(12))
def test_throttled_sources_give_what_they_have_whoever_is_slow_lies_or_dies(seed: int) -> None:
    world = World(crowd(seed), 1024, seed)
    took_s = world.run()
    share = world.ideal_s() / took_s
    assert share >= 0.95, f"seed {seed}: {share:.3f} of what the sources could give"
    assert world.download.liars == ("liar",)
    assert world.repeated_bytes <= 0.03 * world.total
