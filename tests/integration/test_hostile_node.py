"""What a hostile peer can do to a live node: it goes on serving, names the offender, and takes in nothing false."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from celluler.client import Client
from celluler.content.digest import Codec, Digest, cid_of, digest_of, parse_cid
from celluler.content.manifest import Header, Manifest, Tensor, parse_manifest
from celluler.content.memory import MemoryStore
from celluler.errors import CellulerError, NotFound, PeerViolation
from celluler.identity import Identity, PeerId, seal
from celluler.models.manifest import VersionEntry, VersionIndex, describe_model
from celluler.models.spec import format_spec, parse_spec
from celluler.models.weights import initial_weights
from celluler.wire import pack
from celluler_protocols import catalogue, content
from celluler_protocols.directory import Head, head_key
from celluler_protocols.gossip import TOPIC, HeadAnnouncement, ModelAnnouncement
from celluler_protocols.host import Host
from simulations.swarm import NodeProcess, Swarm, open_swarm
from tests.support.hostile import (
    LIBP2P_PROTOCOLS,
    PROTOCOLS,
    WAIT_S,
    Provider,
    Spoken,
    announced,
    assert_serves,
    await_named,
    block,
    blocks_of,
    forged,
    framed,
    gossip_until_named,
    in_dht,
    relabelled,
    soon,
    stranger,
    throw_each,
    told_protocols,
    violations_of,
    wrong_frames,
)
from tests.support.specs import TINY, dense, regression

SEED = 20_26


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    with open_swarm(tmp_path_factory.mktemp("swarm")) as swarm:
        swarm.start("alice")
        swarm.start("bob", join=[swarm.nodes[0].address])
        yield swarm


@pytest.fixture(scope="module")
def node(swarm: Swarm) -> NodeProcess:
    return swarm.nodes[0]


@pytest.fixture(scope="module")
def blob(node: NodeProcess, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Root of a content of 8 MB that the node holds."""
    path = tmp_path_factory.mktemp("blob") / "blob"
    path.write_bytes(random.Random(SEED).randbytes(8 << 20))
    with Client(home=node.home) as client:
        return parse_cid(client.blobs.add(path).cid)


# --- bytes on streams ------------------------------------------------------------------------------------------------


async def test_every_protocol_that_the_node_serves_is_attacked_here(node: NodeProcess) -> None:
    async with stranger(node) as mallory:

        async def told() -> frozenset[str]:
            return told_protocols(mallory, node)

        assert await soon(told) == {spoken.protocol for spoken in PROTOCOLS} | set(LIBP2P_PROTOCOLS)


@pytest.mark.parametrize("spoken", PROTOCOLS, ids=lambda spoken: spoken.protocol)
async def test_nonsense_names_who_sent_it_and_changes_nothing(spoken: Spoken, node: NodeProcess, blob: bytes) -> None:
    """Random bytes, lengths over every limit, and well-formed frames that are no message of the protocol."""
    dice = random.Random(f"{SEED} {spoken.protocol}")
    attacks = [framed(dice.randbytes(size)) for size in (1, 7, 5000)]
    attacks += [b"\xff" + dice.randbytes(5000), b"\xff\xff\xff\xff", bytes(4)]
    attacks += wrong_frames(spoken)
    whole = spoken.frames().encode(spoken.opening)
    torn = [whole[:size] for size in (1, 4, len(whole) - 1)]
    if spoken.names_truncation:
        attacks += torn
    else:
        await throw_each(node, spoken.protocol, torn)
    await await_named(node, await throw_each(node, spoken.protocol, attacks))
    await assert_serves(node, blob)


# --- gossip ----------------------------------------------------------------------------------------------------------


def announcement(name: str, *, issued_s: int | None = None, life_s: int = 600) -> ModelAnnouncement:
    issued_s = int(time.time()) if issued_s is None else issued_s
    return ModelAnnouncement(name, "1.0.0", digest_of(b"m"), digest_of(b"w"), 1, "eve", 1, issued_s, issued_s + life_s)


def false_announcements() -> dict[str, bytes]:
    """What no honest peer sends, by what is wrong with it."""
    eve, victim = Identity.generate(), Identity.generate()
    record = announcement("false")
    return {
        "garbage": random.Random(SEED).randbytes(300),
        "forged": forged(eve, record),
        "in another's name": forged(eve, record, name=victim),
        "signed as another kind": relabelled(eve, record, HeadAnnouncement.KIND),
        "living for ever": seal(eve, announcement("false", life_s=10**9)),
        "cut short": seal(eve, record)[:-1],
    }


@pytest.mark.parametrize("wrong", false_announcements())
async def test_a_false_announcement_names_who_brought_it_and_is_not_kept(
    wrong: str, node: NodeProcess, blob: bytes
) -> None:
    data = false_announcements()[wrong]
    async with stranger(node) as mallory:
        await gossip_until_named(mallory, node, data)
    assert data not in await announced(node)


async def test_an_expired_announcement_is_not_kept_and_a_later_true_one_is(node: NodeProcess, blob: bytes) -> None:
    eve, now = Identity.generate(), int(time.time())
    expired = seal(eve, announcement("old", issued_s=now - 700))
    ahead = seal(eve, announcement("ahead", issued_s=now + 80_000))
    true = seal(eve, announcement("true"))
    async with stranger(node) as mallory:
        await mallory.pubsub.subscribe(TOPIC, lambda *_: True)

        async def spread() -> bool:
            for data in (expired, ahead, true):
                await mallory.pubsub.publish(TOPIC, data)
            return true in await announced(node)

        await soon(spread)
        assert not {expired, ahead} & await announced(node)
        assert await violations_of(node, mallory.peer_id) == 0
    await assert_serves(node, blob)


async def test_a_neighbour_whose_catalogue_holds_a_forgery_is_named(node: NodeProcess) -> None:
    lie = false_announcements()["in another's name"]
    identity = Identity.generate()

    async def answer(_peer: PeerId, stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(catalogue.frames().encode(catalogue.Page((lie,), last=True)))

    async with stranger(node, identity, protocols={catalogue.PROTOCOL_ID: answer}):
        await await_named(node, {identity.peer_id: 1})
    assert lie not in await announced(node)


# --- content ---------------------------------------------------------------------------------------------------------


def content_of(folder: Path, data: bytes) -> tuple[Digest, dict[bytes, bytes]]:
    """Root and blocks of a blob."""
    store, path = MemoryStore(1 << 26), folder / "content"
    path.write_bytes(data)
    root = store.add(path, "blob")
    return root, blocks_of(store, root)


def corrupted(root: Digest, blocks: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Manifest and leaves as they are, every chunk with one bit changed."""
    kept = {root, *parse_manifest(blocks[root]).leaves}
    return {digest: data if digest in kept else bytes([data[0] ^ 1]) + data[1:] for digest, data in blocks.items()}


async def fetched(node: NodeProcess, cid: str, target: Path) -> int:
    def get() -> int:
        with Client(home=node.home) as client:
            return client.blobs.get(cid, target)

    return await trio.to_thread.run_sync(get)


async def provide(host: Host, provider: Provider, *roots: bytes) -> None:
    """Serve, and tell the DHT that we do."""
    host.serve(content.PROTOCOL_ID, provider)
    await in_dht(host)
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            for root in roots:
                nursery.start_soon(host.dht.provide, root)


async def test_a_provider_of_corrupt_chunks_is_named_and_an_honest_one_completes(
    node: NodeProcess, tmp_path: Path
) -> None:
    data = random.Random(f"{SEED} chunks").randbytes(5 << 20)
    root, blocks = content_of(tmp_path, data)
    lies = corrupted(root, blocks)
    cid, target, lied = cid_of(root, Codec.MANIFEST), tmp_path / "target", trio.Event()

    async def after_the_lie(digest: bytes) -> None:
        if lies[digest] != blocks[digest]:
            await lied.wait()

    async def note(digest: bytes) -> None:
        if lies[digest] != blocks[digest]:
            lied.set()

    async with stranger(node, listens=True) as mallory:
        await provide(mallory, Provider(lies), root)
        with pytest.raises(CellulerError):
            await fetched(node, cid, target)
        await await_named(node, {mallory.peer_id: 1})
        assert await bytes_held(node, root) == 0
    async with stranger(node, listens=True) as mallory, stranger(node, listens=True) as alice:
        await provide(mallory, Provider(lies, before=note), root)
        await provide(alice, Provider(blocks, before=after_the_lie), root)
        assert await fetched(node, cid, target) == len(data)
        assert target.read_bytes() == data
        await await_named(node, {mallory.peer_id: 1})
        assert await violations_of(node, alice.peer_id) == 0


async def bytes_held(node: NodeProcess, root: bytes) -> int:
    def ask() -> int:
        with Client(home=node.home) as client:
            return client.blobs.stat(cid_of(root, Codec.MANIFEST)).have_bytes

    return await trio.to_thread.run_sync(ask)


def lying_manifests() -> dict[str, Manifest]:
    leaf = (digest_of(b"leaf"),)
    header = Header(digest_of(b"header"), 100)
    plain = Manifest(1, "blob", 4096, 4096, None, (), leaf, ())
    first = Tensor("a", "F32", (1024,), 100, 4096, 0, 1)
    second = Tensor("b", "F32", (1024,), 4196, 4096, 1, 1)
    model = Manifest(1, "model", 100 + 8192, 4096, header, (first, second), leaf, ())
    return {
        "more bytes than its leaves can hold": replace(plain, total_len=1 << 44),
        "leaves for bytes that are not there": replace(plain, total_len=0),
        "tensors without a header": replace(model, header=None),
        "overlapping tensors": replace(model, tensors=(first, replace(second, offset=2148))),
        "a tensor beyond the end": replace(model, total_len=8192),
        "a tensor of another size than its shape": replace(model, tensors=(replace(first, shape=(9,)), second)),
        "two tensors of one name": replace(model, tensors=(first, replace(second, name="a"))),
        "chunks claimed twice": replace(model, tensors=(first, replace(second, first_chunk=0))),
    }


async def test_a_manifest_that_lies_is_refused_and_nothing_of_it_is_stored(node: NodeProcess, tmp_path: Path) -> None:
    blocks: dict[bytes, bytes] = {}
    lies = {what: block(blocks, pack(manifest)) for what, manifest in lying_manifests().items()}
    garbage = block(blocks, random.Random(SEED).randbytes(500))
    async with stranger(node, listens=True) as mallory:
        await provide(mallory, Provider(blocks), *lies.values(), garbage)
        for what, root in {**lies, "garbage": garbage}.items():
            with pytest.raises(PeerViolation):
                await fetched(node, cid_of(root, Codec.MANIFEST), tmp_path / "target")
            with pytest.raises(NotFound):
                await bytes_held(node, root)
            assert not (tmp_path / "target").exists(), what
    assert not await holds_any(node, blocks)


async def holds_any(node: NodeProcess, digests: Any) -> bool:
    """Whether the node gives a stranger any of these blocks."""
    async with stranger(node) as alice:
        for digest in digests:
            try:
                await content.fetch_block(
                    digest,
                    MemoryStore(1 << 20),
                    [PeerId(node.peer_id)],
                    lambda peer: alice.open_stream(peer, content.PROTOCOL_ID),
                )
            except NotFound:
                continue
            return True
    return False


# --- models and heads ------------------------------------------------------------------------------------------------


class Author:
    """An author and the blocks of its models."""

    def __init__(self, folder: Path) -> None:
        self.identity, self.blocks, self._folder = Identity.generate(), {}, folder
        self.blocks: dict[bytes, bytes] = {}

    def weights(self, spec: dict[str, Any]) -> Digest:
        store, path = MemoryStore(1 << 20), self._folder / "weights.safetensors"
        initial_weights(parse_spec(spec), bytes(32), path)
        root = store.add(path, "model")
        self.blocks |= blocks_of(store, root)
        return root

    def manifest(self, spec: dict[str, Any], weights: bytes, *, version: str = "1.0.0", **lies: Any) -> Digest:
        record = describe_model("m", version, format_spec(parse_spec(spec)), weights, created_s=1)
        return block(self.blocks, seal(self.identity, replace(record, **lies)))

    def index(self, number: int, version: str, manifest: bytes) -> Digest:
        return block(
            self.blocks, seal(self.identity, VersionIndex("m", number, (VersionEntry(version, manifest),), ()))
        )

    def head(self, number: int, index: bytes, *, signer: Identity | None = None) -> bytes:
        return seal(signer or self.identity, Head("m", number, index, int(time.time())))


def with_client(node: NodeProcess, call: Any) -> Any:
    def run() -> Any:
        with Client(home=node.home) as client:
            return call(client)

    return trio.to_thread.run_sync(run)


async def test_a_model_that_does_not_fit_its_own_spec_is_refused(node: NodeProcess, tmp_path: Path) -> None:
    author = Author(tmp_path)
    weights, other = author.weights(TINY), author.weights(regression(dense(2)))
    record_lies: tuple[dict[str, Any], ...] = (
        {"weights_bytes": 1},
        {"task": "regression"},
        {"labels": ("one",)},
        {"spec": b"{}"},
        {"spec": b'{"spec":1,"layers":' + b"[" * 5000},
    )
    lies = [author.manifest(TINY, weights, **each) for each in record_lies]
    lies.append(author.manifest(TINY, other))
    lies.append(block(author.blocks, forged(Identity.generate(), Head("m", 1, weights, 1))))
    async with stranger(node, author.identity, listens=True) as mallory:
        await provide(mallory, Provider(author.blocks), *lies, other)
        for cid in map(cid_of, lies):
            with pytest.raises(PeerViolation):
                await with_client(node, lambda client, cid=cid: client.models.pull(cid))
    held = {model.cid for model in await with_client(node, lambda client: client.models.ls()) if model.local}
    assert not held & {cid_of(manifest, Codec.MANIFEST) for manifest in lies}


async def test_a_head_never_goes_back_and_only_its_author_moves_it(node: NodeProcess, tmp_path: Path) -> None:
    author = Author(tmp_path)
    weights = author.weights(TINY)
    old, new, false = (author.manifest(TINY, weights, version=version) for version in ("1.0.0", "2.0.0", "9.0.0"))
    first, second = author.index(1, "1.0.0", old), author.index(2, "2.0.0", new)
    key, name = head_key(author.identity.peer_id, "m"), f"{author.identity.peer_id}/m"

    async def shown() -> str:
        return str((await with_client(node, lambda client: client.models.show(name))).version)

    async def put(host: Host, value: bytes) -> None:
        await in_dht(host)
        with trio.fail_after(WAIT_S):
            await host.dht.put(key, value)

    async with stranger(node, author.identity, listens=True) as mallory:
        mallory.serve(content.PROTOCOL_ID, Provider(author.blocks))
        await put(mallory, author.head(1, first))
        assert await shown() == "1.0.0"
        await put(mallory, author.head(2, second))
        assert await shown() == "2.0.0"
        await put(mallory, author.head(1, first))
        assert await shown() == "2.0.0"
        async with stranger(node, listens=True) as eve:
            third = author.index(3, "9.0.0", false)
            await put(eve, author.head(3, third, signer=Identity.generate()))
            await put(eve, forged(Identity.generate(), Head("m", 3, third, 1), name=author.identity))
            await put(eve, b"\xff" * 100)
            assert await shown() == "2.0.0"
