"""Each store against a dictionary: any sequence of calls leaves both alike."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from celluler.content.digest import Digest, digest_of
from celluler.content.disk import DiskStore
from celluler.content.manifest import Description, describe
from celluler.content.memory import MemoryStore
from celluler.content.store import Store, bitmap_of
from celluler.errors import BlockAbsent, CorruptBlock, LocalError, QuotaExceeded
from tests.support.stores import place

QUOTA_BYTES = 26_000


def _contents() -> list[tuple[Description, bytes]]:
    """Some share chunks, some share a leaf, one repeats itself, one is empty."""
    rng = random.Random(3)
    one, two = rng.randbytes(5000), rng.randbytes(3000)
    kinds = [(b"", "blob"), (one, "blob"), (one, "dataset"), (one[:2048] + two, "blob"), (bytes(4000), "blob")]
    with tempfile.TemporaryDirectory() as folder:
        path, made = Path(folder) / "file", []
        for data, kind in kinds:
            path.write_bytes(data)
            made.append((describe(path, kind, chunk_size=1024), data))
    return made


CONTENTS = _contents()
numbers = st.integers(0, len(CONTENTS) - 1)
indices = st.integers(0, 6)


class Model(RuleBasedStateMachine):
    """`blocks` and `contents` are what the store must hold: root -> number, the indices it has and those wanted."""

    def open(self, folder: Path) -> Store:
        raise NotImplementedError

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.store = self.open(Path(self.folder.name) / "store")
        self.blocks: dict[Digest, bytes] = {}
        self.contents: dict[Digest, tuple[int, set[int], set[int]]] = {}
        self.pinned: set[Digest] = set()

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.folder.cleanup()

    # --- what the model knows ----------------------------------------------------------------------------------

    def used(self) -> int:
        wanted = (self.length(number, wanted) for number, _, wanted in self.contents.values())
        return sum(wanted) + sum(map(len, self.blocks.values()))

    def length(self, number: int, indices: Iterable[int]) -> int:
        layout = CONTENTS[number][0].layout()
        return sum(layout[index].length for index in indices)

    def leaves(self) -> set[bytes]:
        return {leaf for number, _, _ in self.contents.values() for leaf in CONTENTS[number][0].manifest.leaves}

    def held(self) -> dict[Digest, bytes]:
        held = dict(self.blocks)
        for number, have, _ in self.contents.values():
            described, data = CONTENTS[number]
            layout = described.layout()
            held |= {layout[i].digest: data[layout[i].offset :][: layout[i].length] for i in have}
        return held

    # --- rules -------------------------------------------------------------------------------------------------

    @rule(data=st.sampled_from([b"", b"a block", b"x" * 9000, bytes(1024)]))
    def put_block(self, data: bytes) -> None:
        extra = 0 if digest_of(data) in self.blocks else len(data)
        if self.used() + extra > QUOTA_BYTES:
            with pytest.raises(QuotaExceeded):
                self.store.put_block(data)
        else:
            self.blocks[self.store.put_block(data)] = data

    @rule(number=numbers, leaves=st.booleans())
    def put_tree(self, number: int, leaves: bool) -> None:
        described, _ = CONTENTS[number]
        for block in (described.manifest_bytes, *(described.leaves if leaves else ())):
            self.put_block(block)

    @rule(number=numbers, some=st.none() | st.sets(indices, max_size=4))
    def begin(self, number: int, some: set[int] | None) -> None:
        described, _ = CONTENTS[number]
        root, layout = described.root, described.layout()
        _, have, wanted = self.contents.get(root, (number, set(), set()))
        more = (set(range(len(layout))) if some is None else some) - wanted
        if root not in self.contents and not {root, *described.manifest.leaves} <= self.blocks.keys():
            with pytest.raises(BlockAbsent):
                self.store.begin(root, some)
        elif more and max(more) >= len(layout):
            with pytest.raises(LocalError):
                self.store.begin(root, some)
        elif self.used() + self.length(number, more) > QUOTA_BYTES:
            with pytest.raises(QuotaExceeded):
                self.store.begin(root, some)
        else:
            before = set(self.held()) - set(self.blocks)
            self.store.begin(root, some)
            adopted = {piece.index for piece in layout if more and piece.digest in before} & (wanted | more)
            self.contents[root] = (number, have | adopted, wanted | more)

    @rule(number=numbers, some=st.lists(indices, max_size=4))
    def place(self, number: int, some: list[int]) -> None:
        described, data = CONTENTS[number]
        root, layout = described.root, described.layout()
        _, have, wanted = self.contents.get(root, (number, set(), set()))
        if root not in self.contents:
            with pytest.raises(BlockAbsent):
                self.store.placed(root, some)
        elif len(have) == len(layout):
            self.store.placed(root, some)
        elif some and max(some) >= len(layout):
            with pytest.raises(LocalError):
                self.store.placed(root, some)
        elif self.used() + self.length(number, set(some) - wanted) > QUOTA_BYTES:
            with pytest.raises(QuotaExceeded):
                place(self.store, described, data, some)
        else:
            place(self.store, described, data, some)
            self.contents[root] = (number, have | set(some), wanted | set(some))

    @rule(number=numbers)
    def pin(self, number: int) -> None:
        root = CONTENTS[number][0].root
        if root not in self.contents:
            with pytest.raises(BlockAbsent):
                self.store.pin(root)
        elif root in self.pinned:
            self.store.unpin(root)
            self.pinned.remove(root)
        else:
            self.store.pin(root)
            self.pinned.add(root)

    @rule(number=numbers, most=st.integers(0, QUOTA_BYTES))
    def collect(self, number: int, most: int) -> None:
        """While one of them is held."""
        held = CONTENTS[number][0].root
        with self.store.hold(held):
            planned = self.store.collect(most, dry_run=True)
            went = self.store.collect(most)
            assert [stat.root for stat in went] == [stat.root for stat in planned]
        for stat in went:
            assert stat.root != held
            assert stat.root not in self.pinned
            assert self.used() > most
            self.forget(self.contents[stat.root][0])
        assert self.used() <= most or self.contents.keys() <= self.pinned | {held}

    @rule(number=numbers, index=indices, corrupt=st.booleans())
    def put_chunk(self, number: int, index: int, corrupt: bool) -> None:
        described, data = CONTENTS[number]
        layout = described.layout()
        if described.root not in self.contents:
            with pytest.raises(BlockAbsent):
                self.store.put_chunk(described.root, index, b"")
        elif index >= len(layout):
            with pytest.raises(LocalError):
                self.store.put_chunk(described.root, index, b"")
        elif corrupt:
            with pytest.raises(CorruptBlock):
                self.store.put_chunk(described.root, index, b"corrupt")
        else:
            piece, (_, have, wanted) = layout[index], self.contents[described.root]
            if index not in wanted and self.used() + piece.length > QUOTA_BYTES:
                with pytest.raises(QuotaExceeded):
                    self.store.put_chunk(described.root, index, data[piece.offset :][: piece.length])
            else:
                self.store.put_chunk(described.root, index, data[piece.offset :][: piece.length])
                have.add(index)
                wanted.add(index)

    @rule(number=numbers)
    def fill(self, number: int) -> None:
        for index in range(len(CONTENTS[number][0].layout())):
            self.put_chunk(number, index, False)

    @rule(number=numbers)
    def add(self, number: int) -> None:
        _, data = CONTENTS[number]
        path = Path(self.folder.name) / "original"
        path.write_bytes(data)
        described = describe(path, CONTENTS[number][0].manifest.kind)
        blocks = {digest_of(block): block for block in (described.manifest_bytes, *described.leaves)}
        fresh = sum(len(block) for digest, block in blocks.items() if digest not in self.blocks)
        kind = CONTENTS[number][0].manifest.kind
        if self.used() + fresh + len(data) > QUOTA_BYTES:
            with pytest.raises(QuotaExceeded):
                self.store.add(path, kind)
        else:
            assert self.store.add(path, kind) == described.root
            assert self.store.path(described.root).read_bytes() == data
            self.store.remove(described.root)
            if fresh < sum(map(len, blocks.values())):  # some were here before, and went with the content
                for digest in blocks:
                    self.blocks.pop(digest, None)

    @rule(number=numbers)
    def remove(self, number: int) -> None:
        self.store.remove(CONTENTS[number][0].root)
        self.forget(number)

    def forget(self, number: int) -> None:
        described, _ = CONTENTS[number]
        self.blocks.pop(described.root, None)
        self.pinned.discard(described.root)
        if self.contents.pop(described.root, None):
            for leaf in set(described.manifest.leaves) - self.leaves():
                self.blocks.pop(Digest(leaf), None)

    @rule(number=numbers)
    def remove_leaf(self, number: int) -> None:
        for leaf in CONTENTS[number][0].manifest.leaves:
            if leaf in self.leaves():
                with pytest.raises(LocalError):
                    self.store.remove(leaf)
            else:
                self.store.remove(leaf)
                self.blocks.pop(Digest(leaf), None)

    # --- what holds after each of them -------------------------------------------------------------------------

    @invariant()
    def the_store_says_what_the_model_says(self) -> None:
        if not hasattr(self, "store"):
            return
        assert self.store.used_bytes() == self.used() <= QUOTA_BYTES
        assert self.store.roots() == tuple(sorted(self.contents))
        held = self.held()
        for digest, data in held.items():
            assert self.store.has(digest)
            assert self.store.get(digest) == data
        for root, (number, have, wanted) in self.contents.items():
            described, data = CONTENTS[number]
            layout = described.layout()
            stat = self.store.stat(root)
            assert {piece.index for piece in self.store.missing(root)} == wanted - have
            assert self.store.have(root) == bitmap_of(have, len(layout))
            assert (stat.wanted_bytes, stat.pinned) == (self.length(number, wanted), root in self.pinned)
            assert self.store.verify(root) == (root, stat.have_bytes, ())
            assert stat.have_bytes == sum(layout[index].length for index in have)
            assert stat.complete == (len(have) == len(layout))
            if stat.complete:
                assert self.store.path(root).read_bytes() == data
        for described, _ in CONTENTS:
            for piece in described.layout():
                assert self.store.has(piece.digest) == (piece.digest in held)


class MemoryModel(Model):
    def open(self, folder: Path) -> Store:
        return MemoryStore(QUOTA_BYTES)


class DiskModel(Model):
    def open(self, folder: Path) -> Store:
        return DiskStore(folder, QUOTA_BYTES)

    @rule()
    def close_and_open_again(self) -> None:
        self.store.close()
        self.store = self.open(Path(self.folder.name) / "store")


brief = settings(max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
TestMemoryStore = MemoryModel.TestCase
TestMemoryStore.settings = brief
TestDiskStore = DiskModel.TestCase
TestDiskStore.settings = brief
