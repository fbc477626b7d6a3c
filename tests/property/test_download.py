"""The download machine under random schedules of honest, partial, lying, dying, busy and silent sources."""

from __future__ import annotations

import random
import tempfile
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celluler.content.digest import Digest, digest_of
from celluler.content.download import Download
from celluler.content.manifest import Description, Piece, describe
from celluler.content.memory import MemoryStore
from celluler.content.movers import Chunk
from celluler.content.steps import Begin, KeepBlock, KeepChunk, KeepPlaced, Reason, Step
from celluler.errors import BlockAbsent, CorruptBlock, PeerViolation, ProtocolViolation, Unavailable

LIARS = ("flips a bit", "sends another block", "cuts short", "answers twice", "denies what was not asked")
OTHERS = ("honest", "partial", "empty", "busy", "dies", "silent")


def _content(size: int, seed: int) -> tuple[Description, bytes]:
    data = random.Random(seed).randbytes(size // 2) * 2  # repeats: some digests stand at two places
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(data)
        return describe(path, "model", chunk_size=1024), data


CONTENTS = [_content(size, seed) for seed, size in enumerate((0, 800, 2048, 9000, 30_000))]


@dataclass
class World:
    """Moves answers in an order that `rng` chooses; the store is a real one."""

    described: Description
    data: bytes
    behaviours: dict[str, str]
    rng: random.Random
    now: float = 0.0
    owed: list[tuple[str, Digest]] = field(default_factory=list)
    steps: deque[Step] = field(default_factory=deque)
    false_and_believed: set[str] = field(default_factory=set)
    answered: dict[str, int] = field(default_factory=dict)
    only: frozenset[int] | None = None  # pieces wanted, all when None
    later: list[frozenset[int]] = field(default_factory=list)  # wanted too, from some moment on
    by_mover: dict[tuple[str, Digest], Chunk] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store, self.begun, self.wanted = MemoryStore(1 << 20), False, frozenset[int]()
        self.download = Download(self.described.root)
        self.truth = {piece.digest: self._cut(piece.offset, piece.length) for piece in self.described.layout()}
        self.truth |= {digest_of(block): block for block in (self.described.manifest_bytes, *self.described.leaves)}
        for source in self.behaviours:
            self.download.join(source, self.now)

    def _cut(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]

    def run(self) -> Unavailable | None:
        """Until complete or hopeless; returns why it is hopeless."""
        for _ in range(5000):
            if self.download.complete:
                return None
            if (failure := self.download.failure(self.now)) is not None:
                return failure
            self._move()
        raise AssertionError("the download neither ends nor fails")

    def _move(self) -> None:
        self.now += self.rng.choice((0.0, 0.001, 0.1))
        moves = [self._ask, *([self._answer] * 3 if self.owed else []), *([self._keep] if self.steps else [])]
        moves += [self._widen] if self.later and self.begun else []
        asked = len(self.owed)
        move = self.rng.choice(moves)
        move()
        if move == self._ask and len(self.owed) == asked and not self.owed and not self.steps:
            for source in self.behaviours:
                self._ask_one(source)
            if not self.owed and not self.steps:  # time alone can bring something now
                self.now += 1.0
                self.download.expire(self.now)

    def _ask(self) -> None:
        self._ask_one(self.rng.choice(sorted(self.behaviours)))

    def _ask_one(self, source: str) -> None:
        for digest in self.download.requests(source, self.now):
            if self.begun and self.rng.random() < 0.5:
                self.by_mover[source, digest] = self.download.chunk(digest)
            if self.behaviours[source] != "silent":
                self.owed.append((source, digest))

    def _answer(self) -> None:
        source, digest = self.owed.pop(self.rng.randrange(len(self.owed)))
        count = self.answered[source] = self.answered.get(source, 0) + 1
        behaviour, truth = self.behaviours[source], self.truth[digest]
        if behaviour in LIARS and self.rng.random() < 0.3:
            return self._lie(source, digest, truth)
        if behaviour == "busy" or (behaviour == "dies" and count > 3):
            return self.download.leave(source, Reason.BUSY if behaviour == "busy" else Reason.GONE)
        if behaviour == "empty" or (behaviour == "partial" and digest[0] % 2):
            return self.download.absent(source, digest, self.now)
        if chunk := self.by_mover.pop((source, digest), None):
            self.steps.extend(self.download.placed(source, chunk, self.now))
        else:
            self.steps.extend(self.download.found(source, digest, truth, self.now))
        return None

    def _lie(self, source: str, digest: Digest, truth: bytes) -> None:
        honest_again = {"answers twice": truth}
        lies = {
            "flips a bit": bytes([truth[0] ^ 1]) + truth[1:],
            "sends another block": b"another" * 30,
            "cuts short": truth[:-1],
        }
        try:
            if self.behaviours[source] == "denies what was not asked":
                if self.download.asks(source):
                    self.false_and_believed.add(source)
                self.download.absent(source, digest_of(b"never asked"), self.now)
                return
            data = (lies | honest_again)[self.behaviours[source]]
            if self.by_mover.get((source, digest)) and digest_of(data) != digest and self.download.asks(source):
                raise self.download.falsified(source, digest)
            steps = self.download.found(source, digest, data, self.now)
            self.steps.extend(steps)
            if steps and digest_of(data) != digest:
                self.false_and_believed.add(source)
            if self.behaviours[source] == "answers twice":
                self.steps.extend(self.download.found(source, digest, data, self.now))
        except PeerViolation as error:
            self.false_and_believed.add(error.peer or "nobody")

    def _keep(self) -> None:
        match self.steps.popleft():
            case KeepBlock(data):
                self.store.put_block(data)
            case Begin():
                self._begin(self.only)
            case KeepPlaced() as step:
                for index in step.indices:  # where the mover was told to write it
                    self.store.put_chunk(self.described.root, index, self.truth[step.digest])
                self.download.kept(step, self.now)
            case KeepChunk() as step:
                try:
                    for index in step.indices:
                        self.store.put_chunk(self.described.root, index, step.data)
                except CorruptBlock:
                    assert self.download.corrupt(step).peer == step.source
                else:
                    self.download.kept(step, self.now)

    def _begin(self, indices: frozenset[int] | None) -> None:
        lengths = list(self.described.manifest.lengths())
        self.wanted |= frozenset(range(len(lengths))) if indices is None else indices
        self.store.begin(self.described.root, indices)
        self.begun = True
        self.download.begun(self.store.missing(self.described.root), sum(lengths[index] for index in self.wanted))

    def _widen(self) -> None:
        while self.steps:  # the store is told in order
            self._keep()
        self._begin(self.later.pop())


behaviours = st.lists(st.sampled_from(LIARS + OTHERS), max_size=6).map(
    lambda kinds: {f"{place}: {kind}": kind for place, kind in enumerate(kinds)}
)
contents = st.sampled_from(CONTENTS)
seeds = st.integers(0, 2**32)


@settings(max_examples=120, deadline=None)
@given(contents, behaviours, seeds)
def test_with_one_honest_source_it_always_ends_complete_and_true(
    content: tuple[Description, bytes], crowd: dict[str, str], seed: int
) -> None:
    world = World(*content, crowd | {"the honest one": "honest"}, random.Random(seed))
    assert world.run() is None
    assert world.store.path(world.described.root).read_bytes() == world.data
    progress = world.download.progress(world.now)
    assert (progress.kept_bytes, progress.wanted_bytes) == (len(world.data), len(world.data))
    world.store.close()


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(CONTENTS[2:]), behaviours, seeds)
def test_of_a_part_that_grows_exactly_what_is_wanted_is_brought(
    content: tuple[Description, bytes], crowd: dict[str, str], seed: int
) -> None:
    rng = random.Random(seed)
    pieces = list(content[0].layout())
    first, *later = (frozenset(rng.sample(range(len(pieces)), rng.randrange(len(pieces) + 1))) for _ in range(3))
    world = World(*content, crowd | {"the honest one": "honest"}, random.Random(seed), only=first, later=later)
    assert world.run() is None
    wanted = [pieces[index] for index in world.wanted]
    part = world.store.partial(world.described.root, world.wanted).read_bytes()
    assert all(part[each.offset : each.offset + each.length] == world._cut(each.offset, each.length) for each in wanted)
    progress, asked_for = world.download.progress(world.now), sum(each.length for each in wanted)
    assert (progress.kept_bytes, progress.wanted_bytes) == (asked_for, asked_for)
    held = {piece.digest for piece in pieces if world.store.has(piece.digest)}
    assert held == {each.digest for each in wanted}
    world.store.close()


@settings(max_examples=120, deadline=None)
@given(contents, behaviours, seeds)
def test_liars_are_named_and_only_liars(content: tuple[Description, bytes], crowd: dict[str, str], seed: int) -> None:
    world = World(*content, crowd, random.Random(seed))
    failure = world.run()
    while world.steps:
        world._keep()
    liars = set(world.download.liars)
    assert liars == world.false_and_believed
    assert all(world.behaviours[name] in LIARS for name in liars)
    assert (failure is None) == world.download.complete
    assert set(world.download.received) <= crowd.keys()
    world.store.close()


@settings(max_examples=60, deadline=None)
@given(contents, behaviours, seeds, st.integers(0, 60))
def test_what_an_interrupted_fetch_kept_the_next_one_does_not_ask_for(
    content: tuple[Description, bytes], crowd: dict[str, str], seed: int, moves: int
) -> None:
    world = World(*content, crowd | {"the honest one": "honest"}, random.Random(seed))
    for _ in range(moves):
        if not world.download.complete and world.download.failure(world.now) is None:
            world._move()
    kept = {digest for digest in world.truth if world.store.has(digest)}
    again = Download(world.described.root)
    begun = False
    while not begun and (here := [digest for digest in again.wanted if world.store.has(digest)]):
        for digest in here:
            begun = begun or Begin() in again.here(digest, world.store.get(digest))
    if begun:
        world.store.begin(world.described.root)
        again.begun(world.store.missing(world.described.root))
    assert not kept & set(again.wanted)
    again.join("anybody", 0.0)
    assert not kept & set(again.requests("anybody", 0.0))
    world.store.close()


def test_windows_bound_what_one_source_owes() -> None:
    described, _ = CONTENTS[-1]
    download = Download(described.root)
    download.join("alice", 0.0)
    assert download.requests("alice", 0.0) == (described.root,)
    assert download.requests("alice", 0.0) == ()
    download.found("alice", described.root, described.manifest_bytes, 0.0)
    assert len(download.requests("alice", 0.0)) == len(described.leaves)


def test_a_source_that_was_left_is_asked_again_only_when_it_comes_again() -> None:
    download = Download(digest_of(b"root"))
    download.join("alice", 0.0)
    download.leave("alice", Reason.BUSY)
    assert download.requests("alice", 1.0) == ()
    assert not download.asks("alice")
    download.join("alice", 2.0)
    assert download.asks("alice")
    assert download.left == {}


def test_a_source_that_lied_never_comes_back() -> None:
    download = Download(digest_of(b"root"))
    download.join("alice", 0.0)
    download.violated("alice", ProtocolViolation("nonsense", peer="alice"))
    download.join("alice", 100.0)
    assert not download.asks("alice")
    assert download.liars == ("alice",)


def test_a_manifest_that_gives_one_chunk_two_lengths_lies_and_no_source_is_blamed() -> None:
    described, _ = CONTENTS[2]
    download = Download(described.root)
    download.join("alice", 0.0)
    download.requests("alice", 0.0)
    download.found("alice", described.root, described.manifest_bytes, 0.0)
    for leaf in described.leaves:
        download.requests("alice", 0.0)
        download.found("alice", digest_of(leaf), leaf, 0.0)
    first, *_ = described.layout()
    liar = Piece(first.index + 1, first.digest, first.length - 1, first.offset)
    with pytest.raises(ProtocolViolation) as lied:
        download.begun((first, liar), first.length)
    assert lied.value.peer is None
    assert download.liars == ()


def test_absence_everywhere_is_absence() -> None:
    download = Download(digest_of(b"root"))
    for source in ("alice", "bob"):
        download.join(source, 0.0)
        download.requests(source, 0.0)
    download.absent("alice", digest_of(b"root"), 0.0)
    assert download.failure(100.0) is None
    download.absent("bob", digest_of(b"root"), 0.0)
    assert isinstance(download.failure(0.0), BlockAbsent)
