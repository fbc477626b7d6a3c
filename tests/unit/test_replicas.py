"""What a node keeps for others: a model's files beside its weights come, count and go with them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from celluler.content.manifest import Manifest
from celluler.content.memory import MemoryStore
from celluler.errors import InvalidSpec
from celluler.identity import Identity
from celluler.models.beside import LIMITS, FileBeside
from celluler.models.manifest import OpenedManifest, describe_model, open_manifest, seal_manifest
from celluler_node.replicas import _Replicas
from celluler_node.repository import small_enough
from tests.support.specs import TINY, as_bytes

ALICE = Identity(b"a" * 32)
ALLOWANCE = 1 << 20


@dataclass
class Repository:
    """What the swarm announces, and where `replicate` takes it from."""

    store: MemoryStore
    source: dict[bytes, Path]
    told: list[OpenedManifest] = field(default_factory=list)
    refused: frozenset[bytes] = frozenset()
    used: set[bytes] = field(default_factory=set)

    def announced(self) -> list[Any]:
        records = [SimpleNamespace(manifest=one.digest, root=one.record.weights) for one in self.told]
        return [SimpleNamespace(record=record) for record in records]

    @property
    def shelf(self) -> Any:
        return SimpleNamespace(either=lambda digest: next((one for one in self.told if one.digest == digest), None))

    def uses(self, root: bytes) -> bool:
        return root in self.used

    async def replicate(self, signed: Any) -> None:
        opened = self.shelf.either(signed.record.manifest)
        for root in (opened.record.weights, *(one.root for one in opened.record.files)):
            self.store.add(self.source[root], "blob", pin=False)


def a_model(name: str, weights: bytes, file: bytes) -> OpenedManifest:
    files = [FileBeside("tokenizer", file, None)]
    return open_manifest(
        seal_manifest(ALICE, describe_model(name, "1.0.0", as_bytes(TINY), weights, created_s=1, files=files))
    )


async def test_files_beside_the_weights_come_count_and_go_with_them(tmp_path: Path) -> None:
    store, roots = MemoryStore(1 << 30), {}
    for name in ("first", "second", "shared"):
        (tmp_path / name).write_bytes(name.encode() * 1000)
        roots[name] = store.add(tmp_path / name, "blob")
        store.remove(roots[name])
    repository = Repository(store, {root: tmp_path / name for name, root in roots.items()})
    repository.told = [a_model(name, roots[name], roots["shared"]) for name in ("first", "second")]
    withdrawn: list[bytes] = []
    core: Any = SimpleNamespace(
        store=store,
        state=SimpleNamespace(replicas=[]),
        repository=repository,
        fetcher=SimpleNamespace(withdraw=withdrawn.append, transfers=tuple),
        config=SimpleNamespace(roles=("store",), replica_bytes=ALLOWANCE, store_quota_bytes=1 << 30),
        save=lambda: None,
    )
    replicas = _Replicas(core)
    for opened in repository.told:
        await replicas.pull(opened.record.weights, opened.digest)
    assert set(core.state.replicas) == {root.hex() for root in roots.values()}
    assert replicas.room() == ALLOWANCE - sum(1000 * len(name) for name in roots)
    await replicas.release(roots["first"])
    assert set(store.roots()) == {roots["second"], roots["shared"]}  # the other model needs it too
    await replicas.release(roots["second"])
    assert not store.roots()
    assert set(withdrawn) == set(roots.values())
    assert not core.state.replicas
    repository.used.add(roots["shared"])
    await replicas.pull(roots["first"], repository.told[0].digest)
    await replicas.release(roots["first"])
    assert set(store.roots()) == {roots["shared"]}  # its user has come to use it


def test_a_file_that_is_too_large_is_refused_before_any_of_it_is_fetched() -> None:
    limit = LIMITS["tokenizer"]
    manifest = Manifest(1, "blob", limit, 1 << 20, None, (), (bytes(32),), ())
    assert list(small_enough("tokenizer", manifest)) == list(range(32))
    for sealed in (False, True):
        with pytest.raises(InvalidSpec, match="bytes, the limit is 33554432"):
            small_enough("tokenizer", replace(manifest, total_len=1 << 40), sealed=sealed)
