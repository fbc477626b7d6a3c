"""The bodies of what strangers announce: kept when they are what was said, and never at the cost of what is here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from celluler.content.digest import Digest, digest_of
from celluler.content.manifest import describe
from celluler.content.memory import MemoryStore
from celluler.identity import Identity, PeerId, Signed, open_envelope, seal
from celluler.models.manifest import describe_model, seal_manifest
from celluler.models.spec import format_spec, parse_spec
from celluler_node.repository.catalogue import Catalogue
from celluler_node.repository.shelf import Shelf
from celluler_node.state import NodeState
from celluler_protocols.gossip import ModelAnnouncement
from simulations.digits import MLP

ALICE = Identity(bytes(31) + b"\x01")


class World:
    """What a swarm announces and holds, with the real catalogue, shelf and store. Stands for resolver and fetcher."""

    def __init__(self) -> None:
        self.store, self.state = MemoryStore(1 << 20), NodeState()
        self.told: list[Signed[ModelAnnouncement]] = []
        self.blocks: dict[Digest, bytes] = {}
        shelf = Shelf(self.store, self.state, lambda: None)
        self.catalogue = Catalogue(self.store, shelf, cast(Any, self), cast(Any, self), self.state)

    def announced(self) -> tuple[Signed[ModelAnnouncement], ...]:
        return tuple(self.told)

    async def block(self, digest: Digest, *, hints: Sequence[PeerId] = ()) -> bytes:
        self.store.put_block(self.blocks[digest])
        return self.blocks[digest]

    def announce(self, name: str, block: bytes) -> ModelAnnouncement:
        digest = digest_of(block)
        self.blocks[digest] = block
        record = ModelAnnouncement(name, "1.0.0", digest, bytes(32), 1, "alice", 1, 1, 2)
        self.told.append(open_envelope(ModelAnnouncement, seal(ALICE, record)))
        return record


@pytest.fixture
def world() -> World:
    return World()


def manifest(name: str) -> bytes:
    spec = format_spec(parse_spec(dict(MLP)))
    return seal_manifest(ALICE, describe_model(name, "1.0.0", spec, bytes(32), created_s=1))


async def test_a_body_is_kept_while_it_is_announced(world: World) -> None:
    record = world.announce("digits", manifest("digits"))
    await world.catalogue.sweep()
    assert world.catalogue.body(record) is not None
    world.told.clear()
    await world.catalogue.sweep()
    assert not world.store.has(record.manifest)


@pytest.mark.parametrize("lie", [manifest("another"), b"no manifest at all"])
async def test_a_body_that_is_something_else_is_not_kept(world: World, lie: bytes) -> None:
    record = world.announce("digits", lie)
    await world.catalogue.sweep()
    assert not world.store.has(record.manifest)
    assert world.state.catalogue == []


@pytest.mark.parametrize("place", ["root", "leaf"])
async def test_an_announcement_that_names_a_piece_of_a_content_costs_us_nothing(
    world: World, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_bytes(bytes(5000))
    described = describe(tmp_path / "file", "blob")
    record = world.announce("digits", described.manifest_bytes if place == "root" else described.leaves[0])
    bring = world.block

    async def block_and_content(digest: Digest, *, hints: Sequence[PeerId] = ()) -> bytes:
        """Somebody here fetches that content in the same moment."""
        world.store.add(tmp_path / "file", "blob")
        return await bring(digest, hints=hints)

    world.block = block_and_content  # type: ignore[method-assign]
    await world.catalogue.sweep()
    assert world.store.stat(described.root).complete
    assert world.store.has(record.manifest)
